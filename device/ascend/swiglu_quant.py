"""The activation of quantised experts as Ascend backends call it: fused with what stands around it, or composed.

Source: vllm-ascend, ``ops/fused_moe/moe_mlp.py`` (grouped product to int32, then npu_dequant_swiglu_quant with counts);
sglang 0.5.23, ``hardware_backend/npu/moe/activation.py`` and the runner's choice in ``moe_runner/ascend.py`` 117-205,
which quantises experts with a limit without applying it. Composed, the limit is applied.
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.dynamic_quant import Outputs, quantised
from npudiff.device.ascend.swiglu import oai, parted, step
from npudiff.model.constraints import Box
from npudiff.reference.swiglu import Activation
from npudiff.reference.swiglu_quant import SwigluQuantInputs

DYNAMIC = 1
"""What quant_mode says: a scale for each row."""

PLAIN, EVEN_GATES_LIMITED, HALVES_LIMITED = 0, 1, 2
"""What swiglu_mode says: silu of a half, or swiglu_oai in one of two layouts."""

ENDS, COUNTS = 0, 1
"""What group_list_type says: the row behind the last one of each group, or rows of each."""

HALVES = ("left", "right")
ONCE: Box = {"rounding": ("once",)}
UNGROUPED: Box = {"groups": (None,)}
GROUPED: Box = {"groups": range(1, 1025), "width": range(64, 10_497, 64)}
SILU: Box = {"activation": ("silu",), "gates": HALVES}
OAI: Box = {"activation": ("swiglu_oai",)}


@implementation(
    "swiglu_quant",
    supports=[{**ONCE, **activation, **groups} for activation in (SILU, OAI) for groups in (UNGROUPED, GROUPED)],
    on_device=True,
    graph=True,
)
def npu_dequant_swiglu_quant(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """npu_dequant_swiglu_quant, of sums and of numbers; groups have counts."""
    return dequantised_and_quantised(inputs, inputs.counts)


def dequantised_and_quantised(inputs: SwigluQuantInputs, counts: torch.Tensor | None, **changes: float) -> Outputs:
    """Call npu_dequant_swiglu_quant with what the configuration says, but for changes."""
    limited = {}
    if inputs.activation is Activation.SWIGLU_OAI:
        limited = {
            "swiglu_mode": EVEN_GATES_LIMITED if inputs.gates == "even" else HALVES_LIMITED,
            "clamp_limit": inputs.limit,
            "glu_alpha": inputs.alpha,
            "glu_bias": inputs.glu_bias,
        }
    tokens = inputs.token_scale
    rows, scale = torch.ops.npu.npu_dequant_swiglu_quant(
        inputs.states.contiguous(),
        weight_scale=inputs.weight_scale,
        activation_scale=None if tokens is None else tokens.unsqueeze(1),
        bias=inputs.bias,
        quant_scale=inputs.smooth,
        quant_offset=None,
        group_index=counts,
        quant_mode=DYNAMIC,
        **{"activate_left": inputs.gates == "left", **limited, **changes},
    )
    return {"quantised": rows, "scale": scale}


_NUMBERS: Box = {**ONCE, **SILU, "sums": ("none",), "width": range(1, 4097)}


@implementation(
    "swiglu_quant",
    supports=[{**_NUMBERS, **UNGROUPED}, {**_NUMBERS, "groups": range(1, 1025), "smooth": (True,)}],
    on_device=True,
    graph=True,
)
def npu_swiglu_quant(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """npu_swiglu_quant with counts. Its scale is the reciprocal of the others'."""
    return turned_round(quantised_by_groups(inputs, inputs.counts, COUNTS))


@implementation(
    "swiglu_quant", supports={**_NUMBERS, "groups": range(1, 1025), "smooth": (True,)}, on_device=True, graph=True
)
def npu_swiglu_quant_of_ends(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """npu_swiglu_quant with the ends of groups, which are its default."""
    return turned_round(quantised_by_groups(inputs, ends_of(inputs), ENDS))


def ends_of(inputs: SwigluQuantInputs) -> torch.Tensor | None:
    """The row behind the last one of each group."""
    return None if inputs.counts is None else inputs.counts.cumsum(0)


def quantised_by_groups(inputs: SwigluQuantInputs, groups: torch.Tensor | None, kind: int) -> Outputs:
    """Call npu_swiglu_quant; the scale is as it returns it."""
    rows, scale = torch.ops.npu.npu_swiglu_quant(
        inputs.states.contiguous(),
        smooth_scales=inputs.smooth,
        group_index=None if groups is None else groups.to(torch.int32),
        activate_left=inputs.gates == "left",
        quant_mode=DYNAMIC,
        group_list_type=kind,
    )
    return {"quantised": rows, "scale": scale}


def turned_round(outputs: Outputs) -> Outputs:
    """Outputs with what an integer is worth, in the place of integers in 1."""
    return {**outputs, "scale": 1 / outputs["scale"]}


_AS_SHIPPED: Box = {"smooth": (False,)}


@implementation(
    "swiglu_quant", supports={**_AS_SHIPPED, "activation": ("silu",), "gates": ("left",)}, on_device=True, graph=True
)
def npu_swiglu_then_dynamic_quant(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """npu_swiglu of dequantised rows in the dtype of the model, then npu_dynamic_quant."""
    return then_dynamic_quant(torch.ops.npu.npu_swiglu(dequantised(inputs).to(inputs.dtype)))


@implementation("swiglu_quant", supports=_AS_SHIPPED, on_device=True, graph=True)
def composed_then_dynamic_quant(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """The activation composed in the dtype of the model, with its limit, then npu_dynamic_quant."""
    return then_dynamic_quant(activated(inputs, dequantised(inputs).to(inputs.dtype)))


def then_dynamic_quant(rows: torch.Tensor) -> Outputs:
    """Call npu_dynamic_quant."""
    integers, scale = torch.ops.npu.npu_dynamic_quant(rows)
    return {"quantised": integers, "scale": scale}


@implementation("swiglu_quant", supports=ONCE, on_device=True, graph=True)
def swiglu_quant_in_float32(inputs: SwigluQuantInputs, target: Target) -> Outputs:
    """Composed of elementwise operators in float32."""
    return composed(inputs)


def composed(inputs: SwigluQuantInputs) -> Outputs:
    """Everything in float32."""
    return quantised(smoothed(inputs, activated(inputs, dequantised(inputs))), 8)


def groups_of(inputs: SwigluQuantInputs) -> torch.Tensor:
    """The group of each row; those of none get the last."""
    token = torch.arange(len(inputs.states), device=inputs.states.device)
    ends = ends_of(inputs)
    if ends is None:
        return torch.zeros_like(token)
    return torch.bucketize(token, ends, right=True).clamp(max=len(ends) - 1)


def dequantised(inputs: SwigluQuantInputs) -> torch.Tensor:
    """What the rows are worth, float32 ``[tokens, 2 * width]``."""
    if inputs.weight_scale is None or inputs.token_scale is None:
        return inputs.states.float()
    sums = inputs.states if inputs.bias is None else inputs.states + inputs.bias
    return sums.float() * inputs.weight_scale[groups_of(inputs)] * inputs.token_scale.unsqueeze(1)


def activated(inputs: SwigluQuantInputs, numbers: torch.Tensor) -> torch.Tensor:
    """The activation, with the limit that the configuration says, ``[tokens, width]``."""
    first, second = parted(numbers, "interleaved" if inputs.gates == "even" else "halves")
    gate, up = (second, first) if inputs.gates == "right" else (first, second)
    if inputs.activation is Activation.SWIGLU_OAI:
        return oai(gate, up, inputs.limit, inputs.alpha, inputs.glu_bias)
    return step(gate, up, inputs.limit)


def smoothed(inputs: SwigluQuantInputs, rows: torch.Tensor) -> torch.Tensor:
    """Rows times the factors of their group."""
    return rows if inputs.smooth is None else rows * inputs.smooth[groups_of(inputs)]
