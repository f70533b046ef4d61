"""Softmax over the last axis, two ways of computing it that are right, and three that are not."""

from dataclasses import dataclass

import torch

import npudiff
from npudiff.reference.inexact import Inexact
from npudiff.reference.inexact import softmax as exact_softmax


@dataclass(frozen=True)
class SoftmaxInputs:
    x: torch.Tensor
    """``[rows, width]``, bfloat16, float16 or float32."""


@dataclass(frozen=True)
class SoftmaxCase(npudiff.Case):
    rows: int = npudiff.axis("rows", range(1, 2**16 + 1), drawn=(1, 2, 3, 17, 257))
    width: int = npudiff.axis("elements of a row", range(1, 2**14 + 1), 64, drawn=(2, 3, 64, 1000, 1, 4097))
    dtype: str = npudiff.axis("dtype", ("bfloat16", "float16", "float32"), "bfloat16")
    factor: int = npudiff.axis("scores are this much larger", range(1, 101), 1, drawn=(1, 1, 100))
    seed: int = npudiff.seed()

    def inputs(self):
        x = self.normal("x", self.rows, self.width) * self.factor
        return SoftmaxInputs(x.to(getattr(torch, self.dtype)))


@npudiff.component(SoftmaxCase, outputs=("y",))
def softmax(inputs):
    """Softmax over the last axis.

    Returns
    -------
    tensor
        ``y``, of the shape and dtype of ``x``.
    """
    return exact_softmax(Inexact.exact(inputs.x)).expected(inputs.x.dtype)


@npudiff.implementation("softmax")
def whole_rows(inputs, target):
    """torch.softmax in float32."""
    return torch.softmax(inputs.x.float(), -1).to(inputs.x.dtype)


@npudiff.implementation("softmax")
def two_tiles(inputs, target):
    """The sum of the first half is scaled when the second half has a larger maximum."""
    x = inputs.x.float()
    half = (x.shape[-1] + 1) // 2
    first = x[:, :half].amax(-1, keepdim=True)
    total = torch.exp(x[:, :half] - first).sum(-1, keepdim=True)
    largest = x.amax(-1, keepdim=True)
    total = total * torch.exp(first - largest) + torch.exp(x[:, half:] - largest).sum(-1, keepdim=True)
    return (torch.exp(x - largest) / total).to(inputs.x.dtype)


@npudiff.mutant(whole_rows, "the largest score is not subtracted")
def overflowing(inputs, target):
    weights = inputs.x.float().exp()
    return (weights / weights.sum(-1, keepdim=True)).to(inputs.x.dtype)


@npudiff.mutant(whole_rows, "weights are rounded before they are added", supports={"dtype": ("bfloat16",)})
def rounded_early(inputs, target):
    x = inputs.x.float()
    weights = (x - x.amax(-1, keepdim=True)).exp().to(inputs.x.dtype)
    return (weights.float() / weights.float().sum(-1, keepdim=True)).to(inputs.x.dtype)


@npudiff.mutant(whole_rows, "the last element of odd rows is not in the sum", supports={"width": range(3, 5000)})
def last_left_out(inputs, target):
    x = inputs.x.float()
    weights = (x - x.amax(-1, keepdim=True)).exp()
    return (weights / weights[:, : x.shape[1] // 2 * 2].sum(-1, keepdim=True)).to(inputs.x.dtype)
