"""GELU by the error function."""

import math
from dataclasses import dataclass

import torch

import npudiff
from npudiff.reference.inexact import Inexact, erf


@dataclass(frozen=True)
class GeluInputs:
    x: torch.Tensor
    """``[rows, width]``, bfloat16, float16 or float32."""


@dataclass(frozen=True)
class GeluCase(npudiff.Case):
    rows: int = npudiff.axis("rows", range(1, 2**16 + 1), drawn=(1, 2, 3, 17, 257))
    width: int = npudiff.axis("elements of a row", range(1, 2**14 + 1), 64, drawn=(2, 3, 64, 1000, 1, 4097))
    dtype: str = npudiff.axis("dtype", ("bfloat16", "float16", "float32"), "bfloat16")
    factor: int = npudiff.axis("numbers are this much larger", range(1, 101), 1, drawn=(1, 1, 4))
    seed: int = npudiff.seed()

    def inputs(self):
        x = self.normal("x", self.rows, self.width) * self.factor
        return GeluInputs(x.to(getattr(torch, self.dtype)))


@npudiff.component(GeluCase, outputs=("y",))
def gelu(inputs):
    """``x / 2 * (1 + erf(x / sqrt(2)))``.

    Returns
    -------
    tensor
        ``y``, of the shape and dtype of ``x``.
    """
    x = Inexact.exact(inputs.x)
    weight = erf(x.times(math.sqrt(0.5)).in_float32(2)).plus(1.0).in_float32()
    return x.times(0.5).times(weight).in_float32().expected(inputs.x.dtype)


@npudiff.implementation("gelu")
def of_torch(inputs, target):
    """Torch's own, in float32."""
    return torch.nn.functional.gelu(inputs.x.float()).to(inputs.x.dtype)


@npudiff.implementation("gelu")
def composed(inputs, target):
    """As it is written, in float32."""
    x = inputs.x.float()
    return (x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the approximation by tanh", supports={"dtype": ("float16", "float32")})
def by_tanh(inputs, target):
    return torch.nn.functional.gelu(inputs.x.float(), approximate="tanh").to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the approximation by a sigmoid")
def by_sigmoid(inputs, target):
    x = inputs.x.float()
    return (x * torch.sigmoid(1.702 * x)).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the weight is rounded to bfloat16", supports={"dtype": ("bfloat16",)})
def weight_rounded(inputs, target):
    x = inputs.x.float()
    weight = (0.5 * (1 + torch.erf(x * math.sqrt(0.5)))).to(torch.bfloat16)
    return (inputs.x * weight).to(inputs.x.dtype)
