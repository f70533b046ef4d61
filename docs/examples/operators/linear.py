"""A linear layer: a matrix product and a bias, accumulated in float32 and rounded once."""

from dataclasses import dataclass

import torch

import npudiff
from npudiff.reference.inexact import Inexact


@dataclass(frozen=True)
class LinearInputs:
    x: torch.Tensor
    """``[tokens, in_features]``, bfloat16 or float16."""
    weight: torch.Tensor
    """``[out_features, in_features]``, of the same dtype."""
    bias: torch.Tensor
    """``[out_features]``, of the same dtype."""


@dataclass(frozen=True)
class LinearCase(npudiff.Case):
    tokens: int = npudiff.axis("rows", range(1, 2**12 + 1), drawn=(1, 2, 3, 17, 129))
    in_features: int = npudiff.axis("terms of a sum", range(1, 2**12 + 1), 64, drawn=(2, 3, 64, 1000))
    out_features: int = npudiff.axis("columns", range(1, 2**12 + 1), 64, drawn=(1, 3, 64, 129))
    dtype: str = npudiff.axis("dtype", ("bfloat16", "float16"), "bfloat16")
    seed: int = npudiff.seed()

    def inputs(self):
        x = self.normal("x", self.tokens, self.in_features, dtype=self.dtype)
        weight = self.normal("weight", self.out_features, self.in_features, dtype=self.dtype)
        return LinearInputs(x, weight, self.normal("bias", self.out_features, dtype=self.dtype))


@npudiff.component(LinearCase, outputs=("y",), relations=[npudiff.tokens_do_not_mix("x", most=2**12)])
def linear(inputs):
    """``x @ weight.T + bias``.

    Returns
    -------
    tensor
        ``y``: ``[tokens, out_features]``, of the dtype of ``x``.
    """
    x, weight, bias = (Inexact.exact(tensor) for tensor in (inputs.x, inputs.weight.t(), inputs.bias))
    return x.matmul(weight).plus(bias).in_float32().expected(inputs.x.dtype)


@npudiff.implementation("linear")
def of_torch(inputs, target):
    """Torch's own, in float32."""
    return torch.nn.functional.linear(inputs.x.float(), inputs.weight.float(), inputs.bias.float()).to(inputs.x.dtype)


@npudiff.implementation("linear")
def split(inputs, target):
    """Two halves of the sum, one after the other."""
    x, weight, half = inputs.x.float(), inputs.weight.float(), inputs.x.shape[1] // 2
    first = x[:, :half] @ weight[:, :half].t()
    return (first + x[:, half:] @ weight[:, half:].t() + inputs.bias.float()).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the product is rounded before the bias is added")
def rounded_twice(inputs, target):
    product = (inputs.x.float() @ inputs.weight.float().t()).to(inputs.x.dtype)
    return product + inputs.bias


@npudiff.mutant(of_torch, "the bias is added for every split of the sum", supports={"in_features": range(65, 4097)})
def bias_per_split(inputs, target):
    product = inputs.x.float() @ inputs.weight.float().t()
    return (product + 2 * inputs.bias.float()).to(inputs.x.dtype)


@npudiff.mutant(of_torch, "the last block of columns that is not whole is not written")
def last_block_missing(inputs, target):
    y = of_torch(inputs, target)
    y[:, y.shape[1] // 16 * 16 :] = 0
    return y
