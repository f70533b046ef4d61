"""Group norm: each group of channels is normalised over its channels and positions."""

from dataclasses import dataclass

import torch

import npudiff
from npudiff.reference.inexact import Inexact, rsqrt


@dataclass(frozen=True)
class GroupNormInputs:
    x: torch.Tensor
    """``[batch, channels, positions]``, bfloat16, float16 or float32."""
    weight: torch.Tensor
    bias: torch.Tensor
    """``[channels]``, of the dtype of ``x``."""
    groups: int
    """A divisor of the channels."""


@dataclass(frozen=True)
class GroupNormCase(npudiff.Case):
    batch: int = npudiff.axis("samples", range(1, 257), drawn=(1, 2, 5))
    groups: int = npudiff.axis("groups", range(1, 65), 1, drawn=(1, 2, 3, 8))
    of_group: int = npudiff.axis("channels of a group", range(1, 65), 4, drawn=(2, 1, 3, 16))
    positions: int = npudiff.axis("positions", range(2, 4097), 16, drawn=(2, 3, 16, 1000))
    dtype: str = npudiff.axis("dtype", ("bfloat16", "float16", "float32"), "bfloat16")
    seed: int = npudiff.seed()

    def inputs(self):
        channels = self.groups * self.of_group
        x = self.normal("x", self.batch, channels, self.positions, dtype=self.dtype)
        weight, bias = (self.normal(name, channels, dtype=self.dtype) for name in ("weight", "bias"))
        return GroupNormInputs(x, weight, bias, self.groups)


EPSILON = 1e-5


@npudiff.component(GroupNormCase, outputs=("y",))
def group_norm(inputs):
    """Groups less their mean, divided by their standard deviation, times a weight and plus a bias per channel.

    Returns
    -------
    tensor
        ``y``, of the shape and dtype of ``x``.
    """
    x = Inexact.exact(inputs.x.reshape(len(inputs.x), inputs.groups, -1))
    weight, bias = (Inexact.exact(tensor.view(1, -1, 1)) for tensor in (inputs.weight, inputs.bias))
    centred = x.minus(x.mean(keepdim=True)).in_float32()
    variance = centred.square().in_float32().mean(keepdim=True)
    scaled = centred.times(rsqrt(variance.plus(EPSILON).in_float32())).in_float32()
    scaled = Inexact(scaled.value.view_as(inputs.x), scaled.error.view_as(inputs.x))
    return scaled.times(weight).in_float32().plus(bias).in_float32().expected(inputs.x.dtype)


@npudiff.implementation("group_norm")
def of_torch(inputs, target):
    """Torch's own, in float32."""
    x, weight, bias = (tensor.float() for tensor in (inputs.x, inputs.weight, inputs.bias))
    return torch.nn.functional.group_norm(x, inputs.groups, weight, bias, EPSILON).to(inputs.x.dtype)


@npudiff.implementation("group_norm")
def composed(inputs, target):
    """Mean, then variance, then weight and bias."""
    x = inputs.x.float().reshape(len(inputs.x), inputs.groups, -1)
    centred = x - x.mean(-1, keepdim=True)
    scaled = (centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + EPSILON)).view_as(inputs.x)
    return (scaled * inputs.weight.float().view(1, -1, 1) + inputs.bias.float().view(1, -1, 1)).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "channels of a group do not lie beside each other", supports={"groups": range(2, 65)})
def strided_groups(inputs, target):
    x = inputs.x.float()
    order = torch.arange(x.shape[1]).view(-1, inputs.groups).t().flatten()
    there = torch.nn.functional.group_norm(x[:, order], inputs.groups, eps=EPSILON)
    scaled = there[:, order.argsort()]
    return (scaled * inputs.weight.float().view(1, -1, 1) + inputs.bias.float().view(1, -1, 1)).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "weight and bias are those of the group")
def weight_of_the_group(inputs, target):
    x, first = inputs.x.float(), torch.arange(inputs.x.shape[1]) // (inputs.x.shape[1] // inputs.groups)
    weight, bias = inputs.weight.float()[first], inputs.bias.float()[first]
    return torch.nn.functional.group_norm(x, inputs.groups, weight, bias, EPSILON).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "positions are normalised channel by channel", supports={"of_group": range(2, 65)})
def channel_by_channel(inputs, target):
    x, weight, bias = (tensor.float() for tensor in (inputs.x, inputs.weight, inputs.bias))
    return torch.nn.functional.group_norm(x, x.shape[1], weight, bias, EPSILON).to(inputs.x.dtype)
