"""Cumulative sums over the last axis, accumulated in float32."""

from dataclasses import dataclass

import torch

import npudiff
from npudiff.reference.bounds import accumulation_error
from npudiff.reference.inexact import Inexact


@dataclass(frozen=True)
class CumsumInputs:
    x: torch.Tensor
    """``[rows, width]``, bfloat16, float16 or float32."""


@dataclass(frozen=True)
class CumsumCase(npudiff.Case):
    rows: int = npudiff.axis("rows", range(1, 2**16 + 1), drawn=(1, 2, 3, 17, 257))
    width: int = npudiff.axis("elements of a row", range(1, 2**14 + 1), 64, drawn=(2, 3, 64, 1000, 1, 4097))
    dtype: str = npudiff.axis("dtype", ("bfloat16", "float16", "float32"), "bfloat16")
    seed: int = npudiff.seed()

    def inputs(self):
        return CumsumInputs(self.normal("x", self.rows, self.width, dtype=self.dtype))


@npudiff.component(CumsumCase, outputs=("y",))
def cumsum(inputs):
    """Sums of all elements up to each one.

    Returns
    -------
    tensor
        ``y``, of the shape and dtype of ``x``.
    """
    x = inputs.x.double()
    sums = Inexact(x.cumsum(-1), accumulation_error(x.shape[-1]) * x.abs().cumsum(-1))
    return sums.expected(inputs.x.dtype)


@npudiff.implementation("cumsum")
def of_torch(inputs, target):
    """Torch's own, in float32."""
    return inputs.x.float().cumsum(-1).to(inputs.x.dtype)


@npudiff.implementation("cumsum")
def in_blocks(inputs, target):
    """Sums within blocks of 64, and what the blocks before add up to."""
    x = torch.nn.functional.pad(inputs.x.float(), (0, -inputs.x.shape[1] % 64)).unflatten(1, (-1, 64))
    within = x.cumsum(-1)
    before = within[..., -1].cumsum(-1) - within[..., -1]
    return (within + before[..., None]).flatten(1)[:, : inputs.x.shape[1]].to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the sum is carried in the dtype of the numbers", supports={"dtype": ("bfloat16", "float16")})
def carried_low(inputs, target):
    total, sums = torch.zeros_like(inputs.x[:, 0]), []
    for column in inputs.x.unbind(1):
        total = total + column
        sums.append(total)
    return torch.stack(sums, 1)


@npudiff.mutant(of_torch, "blocks do not know of those before", supports={"width": range(65, 5000)})
def blocks_alone(inputs, target):
    return torch.cat([part.float().cumsum(-1) for part in inputs.x.split(64, 1)], 1).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the element itself is not in its sum")
def exclusive(inputs, target):
    return (inputs.x.float().cumsum(-1) - inputs.x.float()).to(inputs.x.dtype)
