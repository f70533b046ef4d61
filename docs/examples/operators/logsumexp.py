"""Logarithm of the sum of exponentials over the last axis, which attention merges its parts by."""

from dataclasses import dataclass

import torch

import npudiff
from npudiff.reference.inexact import Inexact, exp, log


@dataclass(frozen=True)
class LogSumExpInputs:
    x: torch.Tensor
    """``[rows, width]``, bfloat16, float16 or float32."""


@dataclass(frozen=True)
class LogSumExpCase(npudiff.Case):
    rows: int = npudiff.axis("rows", range(1, 2**16 + 1), drawn=(1, 2, 3, 17, 257))
    width: int = npudiff.axis("elements of a row", range(1, 2**14 + 1), 64, drawn=(2, 3, 64, 1000, 1, 4097))
    dtype: str = npudiff.axis("dtype", ("bfloat16", "float16", "float32"), "bfloat16")
    factor: int = npudiff.axis("scores are this much larger", range(1, 101), 1, drawn=(1, 1, 100))
    seed: int = npudiff.seed()

    def inputs(self):
        x = self.normal("x", self.rows, self.width) * self.factor
        return LogSumExpInputs(x.to(getattr(torch, self.dtype)))


@npudiff.component(LogSumExpCase, outputs=("lse",))
def logsumexp(inputs):
    """Logarithm of the sum of exponentials over the last axis, in float32.

    Returns
    -------
    tensor
        ``lse``: float32 ``[rows]``.
    """
    x = Inexact.exact(inputs.x)
    less = x.minus(x.largest(keepdim=True)).in_float32()
    lse = log(exp(less).sum()).plus(x.largest())
    return lse.in_float32().expected(torch.float32)  # parts that are merged are rounded as well


@npudiff.implementation("logsumexp")
def of_torch(inputs, target):
    """Torch's own, in float32."""
    return torch.logsumexp(inputs.x.float(), -1)


@npudiff.implementation("logsumexp")
def merged(inputs, target):
    """Of two halves, merged by their own logarithms of sums."""
    x = inputs.x.float()
    half = (x.shape[-1] + 1) // 2
    parts = [torch.logsumexp(part, -1) for part in (x[:, :half], x[:, half:]) if part.shape[-1]]
    return torch.logsumexp(torch.stack(parts), 0)


@npudiff.mutant(of_torch, "the largest score is not subtracted")
def overflowing(inputs, target):
    return inputs.x.float().exp().sum(-1).log()


@npudiff.mutant(of_torch, "the logarithm has base 2")
def in_base_two(inputs, target):
    return torch.logsumexp(inputs.x.float(), -1) / torch.log(torch.tensor(2.0))


@npudiff.mutant(
    of_torch, "the result is rounded to the dtype of the scores", supports={"dtype": ("bfloat16", "float16")}
)
def rounded(inputs, target):
    return torch.logsumexp(inputs.x.float(), -1).to(inputs.x.dtype).float()
