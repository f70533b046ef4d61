"""Layers that are divided among ranks, by operators that multiply and communicate at once.

Sources: vllm-ascend, ``device/device_op.py`` (``npu_mm_reduce_scatter_base`` in the mode aiv) and #14018, which has the
bias behind it; op-plugin's documents of the three operators, which want no bias but zeros in two of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.parallel_linear import given, quantised_by_offset
from npudiff.device.ascend.tensor_parallel import LAYERS, Outputs, Steps, padded, run
from npudiff.device.communicators import name_of
from npudiff.model.constraints import Box
from npudiff.reference.sharded_linear import LinearCheckpoint
from npudiff.reference.tensor_parallel import TensorParallelPart

ALL_REDUCED: Box = {"layer": ("row", "column_row", "row_norm_column"), "form": ("whole",), "ranks": (1, 2, 4, 8)}
SCATTERED: Box = {"layer": ("row", "column_row", "row_norm_column"), "form": ("sequence",), "ranks": (2, 4, 8)}
GATHERED: Box = {
    "layer": ("column", "column_row"), "form": ("sequence",), "ranks": (2, 4, 8), "format": ("float",),
    "hidden": range(256, 2**14, 8),
}  # fmt: skip
"""The operator takes an inner axis of 256 and more."""


def all_reduced(
    layer: LinearCheckpoint, states: torch.Tensor, bias: torch.Tensor | None, quant_bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply and sum over ranks; int32 is the only bias beside integers."""
    weight = layer.weight.transpose(0, 1).contiguous()
    scale, token_scale, added = None, None, bias
    if layer.format == "w8a8_static":
        states, added = quantised_by_offset(layer, states), quant_bias
        scale = torch.ops.npu.npu_trans_quant_param(given(layer.deq_scale))
    elif layer.format == "w8a8_dynamic":
        states, token_scale = torch.ops.npu.npu_dynamic_quant(states)
        scale = given(layer.scale).flatten()
    total: torch.Tensor = torch.ops.npu.npu_mm_all_reduce_base(
        states, weight, name_of(), reduce_op="sum", bias=added, dequant_scale=scale, pertoken_scale=token_scale
    )
    return total


@implementation(
    "tensor_parallel",
    supports=(
        {**ALL_REDUCED, "format": ("float",)},
        {**ALL_REDUCED, "format": ("w8a8_static", "w8a8_dynamic"), "dtype": ("float16",)},
    ),
    on_device=True,
)
def mm_all_reduce(inputs: TensorParallelPart, target: Target) -> Outputs:
    """npu_mm_all_reduce_base, with scales of float16 models, since bfloat16 ones would have to be cut."""
    whole = inputs.first.format == "w8a8_dynamic"
    return run(inputs, replace(LAYERS, partial=all_reduced, sum=lambda _, rows: rows, bias_behind=whole))


def scattered(inputs: TensorParallelPart) -> Steps:
    """Steps whose products are summed over ranks by the operator, each rank having its rows of the sum."""

    def partial(
        layer: LinearCheckpoint, states: torch.Tensor, bias: torch.Tensor | None, quant_bias: torch.Tensor | None
    ) -> torch.Tensor:
        rows, weight, scales = padded(inputs, states), layer.weight.transpose(0, 1).contiguous(), {}
        if layer.format == "w8a8_dynamic":
            rows, token_scale = torch.ops.npu.npu_dynamic_quant(rows)
            scales = {"x1_scale": token_scale.view(-1, 1), "x2_scale": given(layer.scale).view(1, -1),
                      "output_dtype": states.dtype}  # fmt: skip
        own: torch.Tensor = torch.ops.npu.npu_mm_reduce_scatter_base(
            rows, weight, name_of(), inputs.ranks, reduce_op="sum", comm_mode="aiv", **scales
        )
        return own

    return replace(LAYERS, partial=partial, sum=lambda _, rows: rows, bias_behind=True)


@implementation("tensor_parallel", supports={**SCATTERED, "format": ("float", "w8a8_dynamic")}, on_device=True)
def mm_reduce_scatter(inputs: TensorParallelPart, target: Target) -> Outputs:
    """npu_mm_reduce_scatter_base in the mode aiv, with the bias behind it."""
    return run(inputs, scattered(inputs))


@implementation("tensor_parallel", supports=GATHERED, on_device=True)
def all_gather_mm(inputs: TensorParallelPart, target: Target) -> Outputs:
    """npu_all_gather_base_mm, and npu_mm_reduce_scatter_base where a second layer is summed over ranks."""

    def product(
        layer: LinearCheckpoint, states: torch.Tensor, bias: torch.Tensor | None, quant_bias: torch.Tensor | None
    ) -> torch.Tensor:
        weight = layer.weight.transpose(0, 1).contiguous()
        rows, _ = torch.ops.npu.npu_all_gather_base_mm(states, weight, name_of(), inputs.ranks, gather_output=False)
        result: torch.Tensor = rows[: inputs.tokens]
        return result if bias is None else result + bias

    return run(inputs, replace(scattered(inputs), product=product, gather=lambda _, rows: rows))
