"""Bringing the rows of experts back together in sglang: ``hardware_backend/npu/moe/finalize_routing.py``."""

from __future__ import annotations

import torch
from sglang.srt.hardware_backend.npu.moe.finalize_routing import NPUFinalizeRouting, NPUMoETokenUnpermute

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.moe_finalize import MoeFinalizeInputs

_ALL_THERE: Box = {"dropped": ("none",), "spare_rows": (0,), "residual": (False,)}
"""All experts are on the rank, and what shared experts say is added by the layer."""

BY_COLUMN, BY_ROW = 0, 2
"""drop_pad_mode: how copies are numbered; each goes with one version of init routing."""


def _finalized(inputs: MoeFinalizeInputs, mode: int, places: torch.Tensor) -> torch.Tensor:
    finalize = NPUFinalizeRouting(drop_pad_mode=mode)
    answer: torch.Tensor = finalize._finalize_routing(inputs.expanded_rows, inputs.weights, places, None)
    return answer


@implementation("moe_finalize", name="NPUFinalizeRouting", supports=_ALL_THERE, on_device=True)
def by_row(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """NPUFinalizeRouting after the second version of init routing."""
    return _finalized(inputs, BY_ROW, inputs.src_to_dst_row.flatten())


@implementation("moe_finalize", name="NPUFinalizeRouting_of_columns", supports=_ALL_THERE, on_device=True)
def by_column(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """NPUFinalizeRouting as it is by default, after the first version of init routing."""
    return _finalized(inputs, BY_COLUMN, inputs.src_to_dst_row.T.flatten())


@implementation("moe_finalize", name="NPUMoETokenUnpermute", supports=_ALL_THERE, on_device=True)
def unpermuted(inputs: MoeFinalizeInputs, target: Target) -> torch.Tensor:
    """NPUMoETokenUnpermute."""
    places = inputs.src_to_dst_row.flatten()
    answer: torch.Tensor = NPUMoETokenUnpermute()._finalize_routing(inputs.expanded_rows, inputs.weights, places, None)
    return answer
