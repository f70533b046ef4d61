"""Wrong ways of bringing rows back together."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.moe_finalize import ALL_THERE, BY_COLUMN, finalized, together
from npudiff.reference.moe_finalize import MoeFinalizeInputs


@npudiff.implementation(
    "moe_finalize",
    name="last_row_for_none",
    mutant_of="native_finalize",
    wrong="MOE-05 https://github.com/sgl-project/sglang/pull/40705: a copy that was left out reads the last row",
)
def last_row_for_none(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """Index with -1."""
    on_device = inputs.to(target.device)
    last = len(on_device.expert_rows) - 1
    return together(replace(on_device, places=torch.where(on_device.places < 0, last, on_device.places)))


@npudiff.implementation(
    "moe_finalize",
    name="places_by_row_read_by_column",
    supports={**ALL_THERE, "spare_rows": (0,), "tokens": range(2, 2**16 + 1), "chosen": range(2, 513)},
    mutant_of="finalize_by_row",
    wrong="MOE-05 https://github.com/sgl-project/sglang/pull/40705: drop_pad_mode that does not go with the places",
)
def places_by_row_read_by_column(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """Give places by row to the mode that numbers them by column."""
    on_device = inputs.to(target.device)
    return finalized(on_device, on_device.places.flatten(), BY_COLUMN, on_device.expert_rows)


@npudiff.implementation(
    "moe_finalize",
    name="padding_weighs",
    supports={"weights": ("zero for padding",), "tokens": range(3, 2**16 + 1)},
    mutant_of="native_finalize",
    wrong="MOE-11 https://github.com/sgl-project/sglang/pull/24850: what padded tokens hold reaches the result",
)
def padding_weighs(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """Give padded tokens the weights of the first one."""
    on_device = inputs.to(target.device)
    none = (on_device.weights == 0).all(dim=1, keepdim=True)
    return together(replace(on_device, weights=torch.where(none, on_device.weights[:1], on_device.weights)))


@npudiff.implementation(
    "moe_finalize",
    name="summed_twice",
    mutant_of="native_finalize",
    wrong="MOE-14 https://github.com/vllm-project/vllm-ascend/issues/6710: what is reduced already is reduced again",
)
def summed_twice(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """Add the result to itself, as a second all-reduce over two ranks does."""
    return 2 * together(inputs.to(target.device))
