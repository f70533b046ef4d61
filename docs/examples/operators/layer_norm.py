"""Layer norm over the last axis, two ways of computing it that are right, and three that are not."""

from dataclasses import dataclass

import torch

import npudiff
from npudiff.reference.inexact import Inexact, rsqrt


@dataclass(frozen=True)
class LayerNormInputs:
    x: torch.Tensor
    """``[rows, width]``, bfloat16, float16 or float32."""
    weight: torch.Tensor
    bias: torch.Tensor
    """``[width]``, of the dtype of ``x``."""
    epsilon: float
    """Added to the variance."""


@dataclass(frozen=True)
class LayerNormCase(npudiff.Case):
    rows: int = npudiff.axis("rows", range(1, 2**16 + 1), drawn=(1, 2, 3, 17, 257))
    width: int = npudiff.axis("elements of a row", range(2, 2**14 + 1), 64, drawn=(2, 3, 64, 1000, 4097))
    dtype: str = npudiff.axis("dtype", ("bfloat16", "float16", "float32"), "bfloat16")
    mean: int = npudiff.axis("mean of the rows", range(33), 0, drawn=(0, 0, 32))
    seed: int = npudiff.seed()

    def inputs(self):
        dtype = getattr(torch, self.dtype)
        x = (self.normal("x", self.rows, self.width) + self.mean).to(dtype)
        weight, bias = (self.normal(name, self.width, dtype=dtype) for name in ("weight", "bias"))
        return LayerNormInputs(x, weight, bias, 1e-5)


@npudiff.component(LayerNormCase, outputs=("y",))
def layer_norm(inputs):
    """Rows less their mean, divided by their standard deviation, times a weight, plus a bias.

    Returns
    -------
    tensor
        ``y``, of the shape and dtype of ``x``.
    """
    x, weight, bias = (Inexact.exact(tensor) for tensor in (inputs.x, inputs.weight, inputs.bias))
    centred = x.minus(x.mean(keepdim=True)).in_float32()
    variance = centred.square().in_float32().mean(keepdim=True)
    normalised = centred.times(rsqrt(variance.plus(inputs.epsilon).in_float32())).in_float32()
    return normalised.times(weight).in_float32().plus(bias).in_float32().expected(inputs.x.dtype)


@npudiff.implementation("layer_norm")
def of_torch(inputs, target):
    """Torch's own, in float32."""
    x, weight, bias = (tensor.float() for tensor in (inputs.x, inputs.weight, inputs.bias))
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, inputs.epsilon).to(inputs.x.dtype)


@npudiff.implementation("layer_norm")
def in_two_passes(inputs, target):
    """The mean first, then the variance of what is left."""
    x = inputs.x.float()
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + inputs.epsilon)
    return (scaled * inputs.weight.float() + inputs.bias.float()).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the variance is a mean of squares less a square of the mean, which cancels")
def in_one_pass(inputs, target):
    x = inputs.x.float()
    mean = x.mean(-1, keepdim=True)
    variance = x.pow(2).mean(-1, keepdim=True) - mean.pow(2)
    scaled = (x - mean) * torch.rsqrt(variance + inputs.epsilon)
    return (scaled * inputs.weight.float() + inputs.bias.float()).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the variance is that of a sample")
def of_a_sample(inputs, target):
    x = inputs.x.float()
    scaled = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + inputs.epsilon)
    return (scaled * inputs.weight.float() + inputs.bias.float()).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "epsilon is added to the standard deviation")
def epsilon_outside(inputs, target):
    x = inputs.x.float()
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True).sqrt() + inputs.epsilon)
    return (scaled * inputs.weight.float() + inputs.bias.float()).to(inputs.x.dtype)
