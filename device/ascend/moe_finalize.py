"""Bringing rows back together as sglang's Ascend backend does it (``hardware_backend/npu/moe/finalize.py``, 34-68)."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.moe_finalize import MoeFinalizeInputs

ALL_THERE: Box = {"dropped": ("none",)}

BY_COLUMN, BY_ROW, BY_ROW_OR_NONE = 0, 2, 3
"""drop_pad_mode: whether places are numbered by column or by row, and whether -1 is left out."""


def finalized(inputs: MoeFinalizeInputs, src_to_dst_row: torch.Tensor, mode: int, rows: torch.Tensor) -> torch.Tensor:
    """Call npu_moe_finalize_routing."""
    return torch.ops.npu.npu_moe_finalize_routing(  # type: ignore[no-any-return]
        rows,
        skip1=inputs.residual,
        skip2=None,
        bias=None,
        scales=inputs.weights,
        expanded_src_to_dst_row=src_to_dst_row,
        export_for_source_row=None,
        drop_pad_mode=mode,
    )


@implementation("moe_finalize", supports={**ALL_THERE, "spare_rows": (0,)}, on_device=True, graph=True)
def finalize_by_row(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """npu_moe_finalize_routing with drop_pad_mode 2, which goes with the second version of init routing."""
    return finalized(inputs, inputs.src_to_dst_row.flatten(), BY_ROW, inputs.expanded_rows)


@implementation("moe_finalize", supports={**ALL_THERE, "spare_rows": (0,)}, on_device=True, graph=True)
def finalize_by_column(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """npu_moe_finalize_routing with drop_pad_mode 0, which goes with the first version of init routing."""
    return finalized(inputs, inputs.src_to_dst_row.T.flatten(), BY_COLUMN, inputs.expanded_rows)


@implementation("moe_finalize", on_device=True, graph=True)
def finalize_with_none(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """npu_moe_finalize_routing with drop_pad_mode 3: rows of [experts, capacity, width], and -1 for none."""
    return finalized(inputs, inputs.src_to_dst_row.flatten(), BY_ROW_OR_NONE, inputs.expanded_rows.unsqueeze(0))


@implementation("moe_finalize", supports={"poison": ("large",)}, on_device=True, graph=True)
def token_unpermute(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """npu_moe_token_unpermute. It does not know -1: such copies take row 0, with weight 0.

    So row 0 must be finite even where no place names it: 0 * NaN is NaN.
    """
    weights = inputs.weights.masked_fill(inputs.src_to_dst_row < 0, 0.0)
    total: torch.Tensor = torch.ops.npu.npu_moe_token_unpermute(
        inputs.expanded_rows, inputs.src_to_dst_row.clamp(min=0).flatten(), probs=weights
    )
    return total if inputs.residual is None else total + inputs.residual


@implementation("moe_finalize", on_device=True, graph=True)
def native_finalize(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """Composed of an index, a product and a sum in float32."""
    return together(inputs)


def together(inputs: MoeFinalizeInputs) -> torch.Tensor:
    """Weighted sum of the rows of each token, in float32."""
    rows = inputs.expanded_rows[inputs.src_to_dst_row.clamp(min=0).long()].float()
    rows = rows.masked_fill((inputs.src_to_dst_row < 0).unsqueeze(2), 0.0)
    total = (rows * inputs.weights.float().unsqueeze(2)).sum(dim=1)
    if inputs.residual is not None:
        total = total + inputs.residual.float()
    return total.to(inputs.expanded_rows.dtype)
