"""Logarithm of the softmax over the last axis."""

from dataclasses import dataclass

import torch

import npudiff
from npudiff.reference.inexact import Inexact, exp, log


@dataclass(frozen=True)
class LogSoftmaxInputs:
    x: torch.Tensor
    """``[rows, width]``, bfloat16, float16 or float32."""


@dataclass(frozen=True)
class LogSoftmaxCase(npudiff.Case):
    rows: int = npudiff.axis("rows", range(1, 2**16 + 1), drawn=(1, 2, 3, 17, 257))
    width: int = npudiff.axis("elements of a row", range(1, 2**14 + 1), 64, drawn=(2, 3, 64, 1000, 1, 4097))
    dtype: str = npudiff.axis("dtype", ("bfloat16", "float16", "float32"), "bfloat16")
    factor: int = npudiff.axis("scores are this much larger", range(1, 101), 1, drawn=(1, 1, 100))
    seed: int = npudiff.seed()

    def inputs(self):
        x = self.normal("x", self.rows, self.width) * self.factor
        return LogSoftmaxInputs(x.to(getattr(torch, self.dtype)))


@npudiff.component(LogSoftmaxCase, outputs=("y",))
def log_softmax(inputs):
    """Logarithm of the softmax over the last axis.

    Returns
    -------
    tensor
        ``y``, of the shape and dtype of ``x``.
    """
    x = Inexact.exact(inputs.x)
    less = x.minus(x.largest(keepdim=True)).in_float32()
    return less.minus(log(exp(less).sum(keepdim=True))).in_float32(2).expected(inputs.x.dtype)


@npudiff.implementation("log_softmax")
def of_torch(inputs, target):
    """Torch's own, in float32."""
    return torch.log_softmax(inputs.x.float(), -1).to(inputs.x.dtype)


@npudiff.implementation("log_softmax")
def by_logsumexp(inputs, target):
    """Scores less their largest, and then less the logarithm of the sum."""
    x = inputs.x.float()
    less = x - x.amax(-1, keepdim=True)
    return (less - less.exp().sum(-1, keepdim=True).log()).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the logarithm of a softmax that has underflowed")
def log_of_softmax(inputs, target):
    return torch.softmax(inputs.x.float(), -1).log().to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the logarithm has base 2")
def in_base_two(inputs, target):
    x = inputs.x.float()
    less = x - x.amax(-1, keepdim=True)
    return (less - less.exp().sum(-1, keepdim=True).log2()).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the largest score is that of all rows")
def largest_of_all(inputs, target):
    less = inputs.x.float() - inputs.x.float().amax()
    return (less - less.exp().sum(-1, keepdim=True).log()).to(inputs.x.dtype)
