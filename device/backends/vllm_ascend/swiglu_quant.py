"""The activation between the products of quantised experts on vllm-ascend: the Triton kernel of ``quant_apply_mlp``."""

from __future__ import annotations

import importlib

import torch

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.world import options_of, triton
from npudiff.model.constraints import Box
from npudiff.reference.swiglu_quant import SwigluQuantInputs

Outputs = dict[str, torch.Tensor]

KIND = "group_list_type"
"""Whether experts are told where their rows end (0, as MC2's dispatch says it), or how many they have (1)."""

_NUMBERS: Box = {
    "sums": ("none",), "bias": (False,), "smooth": (False,), "groups": range(1, 1025), "activation": ("silu",),
    "gates": ("left",), "tokens": range(1, 17), "width": range(16, 4097, 16),
}  # fmt: skip
"""Rows are whole blocks of 32 bytes; a program follows the other in the interpreter, which wants few."""


@implementation(
    "swiglu_quant",
    name="swiglu_quant",
    supports=_NUMBERS,
    options={KIND: ("1", "0"), "triton": ("1",)},
    on_device=True,
)
def swiglu_quant(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """swiglu_quant, which quantises as many rows as the groups have."""
    counts = inputs.counts
    assert counts is not None  # noqa: S101 - grouped cases have them
    kind = int(options_of(inputs)[KIND])
    with triton(inputs):
        kernel = importlib.import_module("vllm_ascend.ops.triton.activation.swiglu_quant")
        rows, scale = kernel.swiglu_quant(inputs.states.contiguous(), counts if kind else counts.cumsum(0), kind)
    return {"quantised": rows, "scale": scale}
