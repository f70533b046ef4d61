"""Wrong activations of quantised experts."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.dynamic_quant import Outputs, quantised
from npudiff.device.ascend.swiglu import oai, parted, step
from npudiff.device.ascend.swiglu_quant import (
    COUNTS,
    ENDS,
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
    npu_dequant_swiglu_quant,
    npu_swiglu_quant,
    npu_swiglu_quant_of_ends,
    quantised_by_groups,
    smoothed,
    swiglu_quant_in_float32,
    turned_round,
)
from npudiff.device.mutants.swiglu import limited
from npudiff.model.constraints import Box
from npudiff.reference.swiglu_quant import SwigluQuantInputs

_STEP: Box = {**ONCE, "activation": ("swiglustep",), "gates": ("left",)}
_SMOOTH: Box = {**ONCE, "smooth": (True,)}
_BY_OPERATOR: Box = {**ONCE, **SILU, "sums": ("none",), "smooth": (True,), "width": range(1, 4097)}


@mutant(
    npu_dequant_swiglu_quant,
    "vllm-project/vllm-ascend/pull/13301: activate_left, whose default is the right half, is left out",
    supports={**ONCE, **SILU, "gates": ("left",)},
)
def half_by_default(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Leave it to the operator which half is gated."""
    return dequantised_and_quantised(inputs, inputs.counts, activate_left=False)


@perturbed(
    swiglu_quant_in_float32,
    "ACT-09 vllm-project/vllm-ascend/pull/10491: experts lose their limit where they are quantised",
    supports={"activation": ("swiglustep",)},
)
def limit_lost_when_quantised(inputs: SwigluQuantInputs) -> SwigluQuantInputs:
    """Leave the limit out."""
    return replace(inputs, limit=None)


@mutant(
    npu_dequant_swiglu_quant,
    "vllm-project/vllm-ascend/pull/11609: plain SwiGLU in all quantised experts, whatever is configured",
    supports={**ONCE, **OAI, "gates": ("left", "right")},
)
def plain_when_quantised(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Leave the mode of the operator at its default."""
    return dequantised_and_quantised(inputs, inputs.counts, swiglu_mode=PLAIN)


@mutant(
    swiglu_quant_in_float32,
    "ACT-02 vllm-project/vllm-ascend/pull/10491: the limit comes before the gate",
    supports=_STEP,
)
def silu_of_the_limited_gate(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Limit the gate, then apply silu."""
    gate, up = parted(dequantised(inputs), "halves")
    rows = step(gate.clamp(max=inputs.limit), limited(up, inputs.limit), None)
    return quantised(smoothed(inputs, rows), 8)


@mutant(
    swiglu_quant_in_float32,
    "ACT-02 sgl-project/sglang/pull/39920: the gate has a lower limit too",
    supports={**OAI, "gates": ("left",)},
)
def gate_limited_from_below(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Limit the gate on both sides."""
    gate, up = parted(dequantised(inputs), "halves")
    rows = oai(limited(gate, inputs.limit), up, inputs.limit, inputs.alpha, inputs.glu_bias)
    return quantised(smoothed(inputs, rows), 8)


@mutant(
    npu_dequant_swiglu_quant,
    "ACT-06 vllm-project/vllm/pull/42855: the limit does not arrive; clamp_limit is 7",
    supports={**ONCE, **OAI},
)
def limit_of_the_operator(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Leave the limit at its default."""
    return dequantised_and_quantised(inputs, inputs.counts, clamp_limit=7.0)


@mutant(
    npu_dequant_swiglu_quant,
    "MOE-02 vllm-project/vllm-ascend/pull/4822: npu_dequant_swiglu_quant is given the ends of groups",
    supports={**SILU, "groups": range(3, 1025)},
)
def ends_for_group_counts(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Call with cumulative counts; the last group gets what is left of the rows."""
    ends = ends_of(inputs)
    if ends is None:
        return dequantised_and_quantised(inputs, None)
    taken = ends.cumsum(0).clamp(max=len(inputs.states))
    return dequantised_and_quantised(inputs, torch.diff(taken, prepend=taken.new_zeros(1)))


@mutant(
    npu_swiglu_quant_of_ends,
    "MOE-02 vllm-project/vllm-ascend/pull/4822: counts of rows where ends of groups belong",
    supports={"groups": range(2, 1025)},
)
def counts_for_group_ends(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Leave group_list_type at its default, which means ends."""
    return turned_round(quantised_by_groups(inputs, inputs.counts, ENDS))


@mutant(
    npu_swiglu_quant,
    "op-plugin test_npu_swiglu_quant.py 42: npu_swiglu_quant returns 127 over the largest element, and not the other "
    "way round",
    supports={**_BY_OPERATOR, **UNGROUPED},
)
def reciprocal_scale(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Return the scale as it comes."""
    return quantised_by_groups(inputs, inputs.counts, COUNTS)


@mutant(
    swiglu_quant_in_float32, "bytedance/xpu-perf/pull/200: what is quantised is not what was smoothed", supports=_SMOOTH
)
def smooth_in_the_scale_only(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Take the scale from smoothed rows, and quantise those that are not."""
    rows = activated(inputs, dequantised(inputs))
    scale = quantised(smoothed(inputs, rows), 8)["scale"]
    integers = (rows / scale.unsqueeze(1)).round().clamp(-127, 127)
    return {"quantised": integers.to(torch.int8), "scale": scale}


@perturbed(
    swiglu_quant_in_float32,
    "vllm-project/llm-compressor/pull/1455: experts are not told of the factors by which others divide",
    supports=_SMOOTH,
)
def smooth_left_out(inputs: SwigluQuantInputs) -> SwigluQuantInputs:
    """Ignore the factors."""
    return replace(inputs, smooth=None)


@mutant(
    swiglu_quant_in_float32,
    "vllm-project/vllm-ascend/pull/16806: scales of the first expert for all of them",
    supports={"sums": ("small", "beyond 2**24"), "groups": range(2, 1025)},
)
def scales_of_the_first_group(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Use one row of scales for all groups."""
    if inputs.weight_scale is None:
        return composed(inputs)
    return composed(replace(inputs, weight_scale=inputs.weight_scale[:1].expand_as(inputs.weight_scale)))


@mutant(
    swiglu_quant_in_float32,
    "QNT-13 vllm-project/vllm/pull/31676: a bias is added on the wrong side of dequantisation",
    supports={"sums": ("small", "beyond 2**24"), "bias": (True,)},
)
def bias_after_dequantisation(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Add the bias of the sums to what they are worth."""
    if inputs.bias is None:
        return composed(inputs)
    numbers = dequantised(replace(inputs, bias=None)) + inputs.bias
    return quantised(smoothed(inputs, activated(inputs, numbers)), 8)


@mutant(
    swiglu_quant_in_float32,
    "sgl-project/sgl-kernel-npu/pull/538: the largest element is rounded before it becomes a scale",
    supports={"dtype": ("bfloat16",)},
)
def largest_element_in_bfloat16(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Take the scale from rows that are rounded, and quantise them as they were."""
    rows = smoothed(inputs, activated(inputs, dequantised(inputs)))
    scale = quantised(rows.bfloat16().float(), 8)["scale"]
    return {"quantised": (rows / scale.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), "scale": scale}
