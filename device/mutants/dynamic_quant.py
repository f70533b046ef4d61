"""Wrong quantisations of rows."""

from __future__ import annotations

import torch

from npudiff import Target, mutant
from npudiff.device.ascend.dynamic_quant import (
    Outputs,
    composed_dynamic_quant,
    npu_dynamic_quant_int4,
    quantised,
    smoothed,
)
from npudiff.reference.dynamic_quant import DynamicQuantInputs


@mutant(
    composed_dynamic_quant,
    "MOE-02 vllm-project/vllm-ascend/pull/4822: counts of rows where ends of experts belong",
    supports={"smooth": ("per expert",), "experts": range(2, 1025)},
)
def counts_for_ends(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Read the rows of each expert as if they were where it ends; what lies behind is the last one's."""
    if inputs.smooth is None or inputs.expert_ends is None:
        return quantised(smoothed(inputs), inputs.bits)
    counts = torch.diff(inputs.expert_ends, prepend=inputs.expert_ends.new_zeros(1))
    token = torch.arange(len(inputs.states), device=inputs.states.device)
    expert = torch.bucketize(token, counts.cummax(0).values, right=True).clamp(max=len(counts) - 1)
    return quantised(inputs.states.float() * inputs.smooth[expert].float(), inputs.bits)


@mutant(npu_dynamic_quant_int4, "QNT-05 vllm-project/compressed-tensors/pull/518: a negative low nibble is not masked")
def low_nibble_not_masked(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Pack pairs without masking the lower one, as a negative number is all ones above."""
    right = npu_dynamic_quant_int4(inputs, target)
    low, high = right["quantised"][:, 0::2], right["quantised"][:, 1::2]
    return {**right, "quantised": torch.stack([low, torch.where(low < 0, -1, high)], dim=-1).flatten(1).to(torch.int8)}


@mutant(npu_dynamic_quant_int4, "QNT-04 amd/Quark/pull/30: integers in another order than the reader expects")
def nibbles_swapped(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Take the higher nibble of each pair for the first."""
    right = npu_dynamic_quant_int4(inputs, target)
    return {**right, "quantised": right["quantised"].view(len(inputs.states), -1, 2).flip(2).flatten(1)}


@mutant(composed_dynamic_quant, "QNT-10 sgl-project/sglang/pull/31529: what is quantised already is quantised again")
def quantised_twice(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Quantise the integers, and return the second scale."""
    first = composed_dynamic_quant(inputs, target)
    return quantised(first["quantised"].float(), inputs.bits)


IN_MEMORY = 3.0e4
"""What lanes hold that no load has written."""


@mutant(
    composed_dynamic_quant, "TRI-02 triton-lang/triton-ascend/pull/714: lanes that a masked load leaves out are not 0"
)
def masked_lanes_hold_memory(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Look for the largest element of a row in a whole tile, whose size is a power of two."""
    states = smoothed(inputs)
    width = states.shape[1]
    lanes = 2 ** (width - 1).bit_length()
    tile = torch.nn.functional.pad(states, (0, lanes - width), value=IN_MEMORY)
    outputs = quantised(tile, inputs.bits)
    return {**outputs, "quantised": outputs["quantised"][:, :width]}
