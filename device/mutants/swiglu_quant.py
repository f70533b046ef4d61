"""Wrong activations of quantised experts."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.dynamic_quant import Outputs, quantised
from npudiff.device.ascend.swiglu import oai, parted, step
from npudiff.device.ascend.swiglu_quant import (
    COUNTS,
    ENDS,
    GROUPED,
    OAI,
    ONCE,
    PLAIN,
    SILU,
    UNGROUPED,
    activated,
    composed,
    dequantised,
    dequantised_and_quantised,
    ends_of,
    quantised_by_groups,
    smoothed,
    turned_round,
)
from npudiff.device.mutants.swiglu import limited
from npudiff.model.constraints import Box
from npudiff.reference.swiglu_quant import SwigluQuantInputs

_STEP: Box = {**ONCE, "activation": ("swiglustep",), "gates": ("left",)}
_SMOOTH: Box = {**ONCE, "smooth": (True,)}
_BY_OPERATOR: Box = {**ONCE, **SILU, "sums": ("none",), "smooth": (True,), "width": range(1, 4097)}


@npudiff.implementation(
    "swiglu_quant",
    name="half_by_default",
    supports=[{**ONCE, **SILU, **groups, "gates": ("left",)} for groups in (UNGROUPED, GROUPED)],
    mutant_of="npu_dequant_swiglu_quant",
    wrong="https://github.com/vllm-project/vllm-ascend/pull/13301: activate_left, whose default is the "
    "right half, is left out",
)
def half_by_default(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Leave it to the operator which half is gated."""
    on_device = inputs.to(target.device)
    return dequantised_and_quantised(on_device, on_device.counts, activate_left=False)


@npudiff.implementation(
    "swiglu_quant",
    name="limit_lost_when_quantised",
    supports={**ONCE, "activation": ("swiglustep",)},
    mutant_of="swiglu_quant_in_float32",
    wrong="ACT-09 https://github.com/vllm-project/vllm-ascend/pull/10491: experts lose their limit where they are "
    "quantised",
)
def limit_lost_when_quantised(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Leave the limit out."""
    return composed(replace(inputs.to(target.device), limit=None))


@npudiff.implementation(
    "swiglu_quant",
    name="plain_when_quantised",
    supports=[{**ONCE, **OAI, **groups, "gates": ("left", "right")} for groups in (UNGROUPED, GROUPED)],
    mutant_of="npu_dequant_swiglu_quant",
    wrong="https://github.com/vllm-project/vllm-ascend/pull/11609: plain SwiGLU in all quantised experts, "
    "whatever is configured",
)
def plain_when_quantised(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Leave the mode of the operator at its default."""
    on_device = inputs.to(target.device)
    return dequantised_and_quantised(on_device, on_device.counts, swiglu_mode=PLAIN)


@npudiff.implementation(
    "swiglu_quant",
    name="silu_of_the_limited_gate",
    supports=_STEP,
    mutant_of="swiglu_quant_in_float32",
    wrong="ACT-02 https://github.com/vllm-project/vllm-ascend/pull/10491: the limit comes before the gate",
)
def silu_of_the_limited_gate(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Limit the gate, then apply silu."""
    on_device = inputs.to(target.device)
    gate, up = parted(dequantised(on_device), "halves")
    rows = step(gate.clamp(max=inputs.limit), limited(up, inputs.limit), None)
    return quantised(smoothed(on_device, rows), 8)


@npudiff.implementation(
    "swiglu_quant",
    name="gate_limited_from_below",
    supports={**ONCE, **OAI, "gates": ("left",)},
    mutant_of="swiglu_quant_in_float32",
    wrong="ACT-02 https://github.com/sgl-project/sglang/pull/39920: the gate has a lower limit too",
)
def gate_limited_from_below(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Limit the gate on both sides."""
    on_device = inputs.to(target.device)
    gate, up = parted(dequantised(on_device), "halves")
    rows = oai(limited(gate, inputs.limit), up, inputs.limit, inputs.alpha, inputs.glu_bias)
    return quantised(smoothed(on_device, rows), 8)


@npudiff.implementation(
    "swiglu_quant",
    name="limit_of_the_operator",
    supports=[{**ONCE, **OAI, **groups} for groups in (UNGROUPED, GROUPED)],
    mutant_of="npu_dequant_swiglu_quant",
    wrong="ACT-06 https://github.com/vllm-project/vllm/pull/42855: the limit does not arrive; clamp_limit is 7",
)
def limit_of_the_operator(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Leave the limit at its default."""
    on_device = inputs.to(target.device)
    return dequantised_and_quantised(on_device, on_device.counts, clamp_limit=7.0)


@npudiff.implementation(
    "swiglu_quant",
    name="ends_for_group_counts",
    supports={**ONCE, **SILU, **GROUPED, "groups": range(3, 1025)},
    mutant_of="npu_dequant_swiglu_quant",
    wrong="MOE-02 https://github.com/vllm-project/vllm-ascend/pull/4822: npu_dequant_swiglu_quant is given the ends of "
    "groups",
)
def ends_for_group_counts(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Call with cumulative counts; the last group gets what is left of the rows."""
    on_device = inputs.to(target.device)
    ends = ends_of(on_device)
    if ends is None:
        return dequantised_and_quantised(on_device, None)
    taken = ends.cumsum(0).clamp(max=len(inputs.states))
    return dequantised_and_quantised(on_device, torch.diff(taken, prepend=taken.new_zeros(1)))


@npudiff.implementation(
    "swiglu_quant",
    name="counts_for_group_ends",
    supports={**_BY_OPERATOR, "groups": range(2, 1025)},
    mutant_of="npu_swiglu_quant_of_ends",
    wrong="MOE-02 https://github.com/vllm-project/vllm-ascend/pull/4822: counts of rows where ends of groups belong",
)
def counts_for_group_ends(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Leave group_list_type at its default, which means ends."""
    on_device = inputs.to(target.device)
    return turned_round(quantised_by_groups(on_device, on_device.counts, ENDS))


@npudiff.implementation(
    "swiglu_quant",
    name="reciprocal_scale",
    supports={**_BY_OPERATOR, **UNGROUPED},
    mutant_of="npu_swiglu_quant",
    wrong="op-plugin test_npu_swiglu_quant.py 42: npu_swiglu_quant returns 127 over the largest element, and not the "
    "other way round",
)
def reciprocal_scale(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Return the scale as it comes."""
    on_device = inputs.to(target.device)
    return quantised_by_groups(on_device, on_device.counts, COUNTS)


@npudiff.implementation(
    "swiglu_quant",
    name="smooth_in_the_scale_only",
    supports=_SMOOTH,
    mutant_of="swiglu_quant_in_float32",
    wrong="https://github.com/bytedance/xpu-perf/pull/200: what is quantised is not what was smoothed",
)
def smooth_in_the_scale_only(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Take the scale from smoothed rows, and quantise those that are not."""
    on_device = inputs.to(target.device)
    rows = activated(on_device, dequantised(on_device))
    scale = quantised(smoothed(on_device, rows), 8)["scale"]
    integers = (rows / scale.unsqueeze(1)).round().clamp(-127, 127)
    return {"quantised": integers.to(torch.int8), "scale": scale}


@npudiff.implementation(
    "swiglu_quant",
    name="smooth_left_out",
    supports=_SMOOTH,
    mutant_of="swiglu_quant_in_float32",
    wrong="https://github.com/vllm-project/llm-compressor/pull/1455: experts are not told of the "
    "factors by which others divide",
)
def smooth_left_out(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Ignore the factors."""
    return composed(replace(inputs.to(target.device), smooth=None))


@npudiff.implementation(
    "swiglu_quant",
    name="scales_of_the_first_group",
    supports={**ONCE, "sums": ("small", "beyond 2**24"), "groups": range(2, 1025)},
    mutant_of="swiglu_quant_in_float32",
    wrong="https://github.com/vllm-project/vllm-ascend/pull/16806: scales of the first expert for all of them",
)
def scales_of_the_first_group(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Use one row of scales for all groups."""
    on_device = inputs.to(target.device)
    if on_device.weight_scale is None:
        return composed(on_device)
    return composed(replace(on_device, weight_scale=on_device.weight_scale[:1].expand_as(on_device.weight_scale)))


@npudiff.implementation(
    "swiglu_quant",
    name="bias_after_dequantisation",
    supports={**ONCE, "sums": ("small", "beyond 2**24"), "bias": (True,)},
    mutant_of="swiglu_quant_in_float32",
    wrong="QNT-13 https://github.com/vllm-project/vllm/pull/31676: a bias is added on the wrong side of dequantisation",
)
def bias_after_dequantisation(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Add the bias of the sums to what they are worth."""
    on_device = inputs.to(target.device)
    if on_device.bias is None:
        return composed(on_device)
    numbers = dequantised(replace(on_device, bias=None)) + on_device.bias
    return quantised(smoothed(on_device, activated(on_device, numbers)), 8)


@npudiff.implementation(
    "swiglu_quant",
    name="largest_element_in_bfloat16",
    supports={**ONCE, "dtype": ("bfloat16",)},
    mutant_of="swiglu_quant_in_float32",
    wrong="https://github.com/sgl-project/sgl-kernel-npu/pull/538: the largest element is rounded "
    "before it becomes a scale",
)
def largest_element_in_bfloat16(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Take the scale from rows that are rounded, and quantise them as they were."""
    on_device = inputs.to(target.device)
    rows = smoothed(on_device, activated(on_device, dequantised(on_device)))
    scale = quantised(rows.bfloat16().float(), 8)["scale"]
    return {"quantised": (rows / scale.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), "scale": scale}
