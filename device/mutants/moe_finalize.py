"""Wrong ways of bringing rows back together."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.moe_finalize import (
    BY_COLUMN,
    finalize_by_row,
    finalized,
    native_finalize,
    together,
)
from npudiff.reference.moe_finalize import MoeFinalizeInputs


@perturbed(native_finalize, "MOE-05 sgl-project/sglang/pull/40705: a copy that was left out reads the last row")
def last_row_for_none(inputs: MoeFinalizeInputs) -> MoeFinalizeInputs:
    """Index with -1."""
    last = len(inputs.expanded_rows) - 1
    return replace(inputs, src_to_dst_row=torch.where(inputs.src_to_dst_row < 0, last, inputs.src_to_dst_row))


@mutant(
    finalize_by_row,
    "MOE-05 sgl-project/sglang/pull/40705: drop_pad_mode that does not go with the places",
    supports={"tokens": range(2, 2**16 + 1), "top_k": range(2, 513)},
)
def places_by_row_read_by_column(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """Give places by row to the mode that numbers them by column."""
    return finalized(inputs, inputs.src_to_dst_row.flatten(), BY_COLUMN, inputs.expanded_rows)


@perturbed(
    native_finalize,
    "MOE-11 sgl-project/sglang/pull/24850: what padded tokens hold reaches the result",
    supports={"weights": ("zero for padding",), "tokens": range(3, 2**16 + 1)},
)
def padding_weighs(inputs: MoeFinalizeInputs) -> MoeFinalizeInputs:
    """Give padded tokens the weights of the first one."""
    none = (inputs.weights == 0).all(dim=1, keepdim=True)
    return replace(inputs, weights=torch.where(none, inputs.weights[:1], inputs.weights))


@mutant(native_finalize, "MOE-14 vllm-project/vllm-ascend/issues/6710: what is reduced already is reduced again")
def summed_twice(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """Add the result to itself, as a second all-reduce over two ranks does."""
    return 2 * together(inputs)
