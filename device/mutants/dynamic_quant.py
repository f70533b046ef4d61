"""Wrong quantisations of rows."""

from __future__ import annotations

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.dynamic_quant import (
    RISING_ENDS,
    Outputs,
    composed_dynamic_quant,
    npu_dynamic_quant_int4,
    quantised,
    smoothed,
)
from npudiff.reference.dynamic_quant import DynamicQuantInputs


@npudiff.implementation(
    "dynamic_quant",
    name="counts_for_ends",
    supports={"smooth": ("per expert",), "experts": range(2, 1025)},
    mutant_of="composed_dynamic_quant",
    wrong="MOE-02 https://github.com/vllm-project/vllm-ascend/pull/4822: counts of rows where ends of experts belong",
)
def counts_for_ends(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Read the rows of each expert as if they were where it ends; what lies behind is the last one's."""
    on_device = inputs.to(target.device)
    if on_device.smooth is None or on_device.expert_ends is None:
        return quantised(smoothed(on_device), on_device.bits)
    counts = torch.diff(on_device.expert_ends, prepend=on_device.expert_ends.new_zeros(1))
    token = torch.arange(len(on_device.states), device=on_device.states.device)
    expert = torch.bucketize(token, counts.cummax(0).values, right=True).clamp(max=len(counts) - 1)
    return quantised(on_device.states.float() * on_device.smooth[expert].float(), on_device.bits)


@npudiff.implementation(
    "dynamic_quant",
    name="low_nibble_not_masked",
    supports={"bits": (4,), **RISING_ENDS},
    mutant_of="npu_dynamic_quant_int4",
    wrong="QNT-05 https://github.com/vllm-project/compressed-tensors/pull/518: a negative low nibble is not masked",
)
def low_nibble_not_masked(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Pack pairs without masking the lower one, as a negative number is all ones above."""
    right: Outputs = npu_dynamic_quant_int4(inputs, target)
    low, high = right["quantised"][:, 0::2], right["quantised"][:, 1::2]
    return {**right, "quantised": torch.stack([low, torch.where(low < 0, -1, high)], dim=-1).flatten(1).to(torch.int8)}


@npudiff.implementation(
    "dynamic_quant",
    name="nibbles_swapped",
    supports={"bits": (4,), **RISING_ENDS},
    mutant_of="npu_dynamic_quant_int4",
    wrong="QNT-04 https://github.com/amd/Quark/pull/30: integers in another order than the reader expects",
)
def nibbles_swapped(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Take the higher nibble of each pair for the first."""
    right: Outputs = npu_dynamic_quant_int4(inputs, target)
    return {**right, "quantised": right["quantised"].view(len(inputs.states), -1, 2).flip(2).flatten(1)}


@npudiff.implementation(
    "dynamic_quant",
    name="quantised_twice",
    mutant_of="composed_dynamic_quant",
    wrong="QNT-10 https://github.com/sgl-project/sglang/pull/31529: what is quantised already is quantised again",
)
def quantised_twice(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Quantise the integers, and return the second scale."""
    first: Outputs = composed_dynamic_quant(inputs, target)
    return quantised(first["quantised"].float(), inputs.bits)


IN_MEMORY = 3.0e4
"""What lanes hold that no load has written."""


@npudiff.implementation(
    "dynamic_quant",
    name="masked_lanes_hold_memory",
    mutant_of="composed_dynamic_quant",
    wrong="TRI-02 https://github.com/triton-lang/triton-ascend/pull/714: lanes that a masked load leaves out are not 0",
)
def masked_lanes_hold_memory(inputs: DynamicQuantInputs, target: Target) -> Outputs:
    """Look for the largest element of a row in a whole tile, whose size is a power of two."""
    on_device = inputs.to(target.device)
    states = smoothed(on_device)
    width = states.shape[1]
    lanes = 2 ** (width - 1).bit_length()
    tile = torch.nn.functional.pad(states, (0, lanes - width), value=IN_MEMORY)
    outputs = quantised(tile, on_device.bits)
    return {**outputs, "quantised": outputs["quantised"][:, :width]}
