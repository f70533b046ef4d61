"""GELU by its approximation with tanh, as Gemma's feed-forward layers have it."""

import math
from dataclasses import dataclass

import torch

import npudiff
from npudiff.reference.inexact import Inexact, tanh


@dataclass(frozen=True)
class GeluTanhInputs:
    x: torch.Tensor
    """``[rows, width]``, bfloat16, float16 or float32."""


@dataclass(frozen=True)
class GeluTanhCase(npudiff.Case):
    rows: int = npudiff.axis("rows", range(1, 2**16 + 1), drawn=(1, 2, 3, 17, 257))
    width: int = npudiff.axis("elements of a row", range(1, 2**14 + 1), 64, drawn=(2, 3, 64, 1000, 1, 4097))
    dtype: str = npudiff.axis("dtype", ("bfloat16", "float16", "float32"), "bfloat16")
    factor: int = npudiff.axis("numbers are this much larger", range(1, 101), 1, drawn=(1, 1, 4))
    seed: int = npudiff.seed()

    def inputs(self):
        x = self.normal("x", self.rows, self.width) * self.factor
        return GeluTanhInputs(x.to(getattr(torch, self.dtype)))


@npudiff.component(GeluTanhCase, outputs=("y",))
def gelu_tanh(inputs):
    """``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``.

    Returns
    -------
    tensor
        ``y``, of the shape and dtype of ``x``.
    """
    x = Inexact.exact(inputs.x)
    cube = x.square().in_float32().times(x).in_float32().times(0.044715).in_float32(2)
    weight = tanh(x.plus(cube).in_float32().times(math.sqrt(2 / math.pi)).in_float32(2)).plus(1.0).in_float32()
    return x.times(0.5).times(weight).in_float32().expected(inputs.x.dtype)


@npudiff.implementation("gelu_tanh")
def of_torch(inputs, target):
    """Torch's own, in float32."""
    return torch.nn.functional.gelu(inputs.x.float(), approximate="tanh").to(inputs.x.dtype)


@npudiff.implementation("gelu_tanh")
def composed(inputs, target):
    """As it is written, in float32."""
    x = inputs.x.float()
    return (x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the error function in place of tanh", supports={"dtype": ("float16", "float32")})
def by_erf(inputs, target):
    return torch.nn.functional.gelu(inputs.x.float()).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the cubic term is left out")
def without_cube(inputs, target):
    x = inputs.x.float()
    return (x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * x))).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the cube overflows in float16", supports={"dtype": ("float16",)})
def cube_in_float16(inputs, target):
    x = inputs.x.float()
    inner = (inputs.x**3).float() * 0.044715
    return (x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + inner)))).to(inputs.x.dtype)
