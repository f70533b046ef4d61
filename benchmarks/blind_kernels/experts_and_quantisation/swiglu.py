"""Wrong swiglu kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff
from npudiff.reference.swiglu import Activation

WRONG = os.environ.get("TWIN") != "1"


def halves(states, layout):
    if layout == "interleaved":
        return states[:, 0::2], states[:, 1::2]
    width = states.shape[1] // 2
    return states[:, :width], states[:, width:]


def silu(x):
    return x / (1 + torch.exp(-x))


def gated(inputs, gate, up, limit, bias=None, alpha=None, silu=silu):
    bias = inputs.bias if bias is None else bias
    alpha = inputs.alpha if alpha is None else alpha
    if inputs.activation is Activation.SWIGLU_OAI:
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(gate * alpha) * (up + bias)
    result = silu(gate)
    if limit is not None:
        result, up = result.clamp(max=limit), up.clamp(-limit, limit)
    return result * up


def base(inputs, states=None, limit="given", **changes):
    states = inputs.states if states is None else states
    gate, up = halves(states.float(), inputs.layout)
    return gated(inputs, gate, up, inputs.limit if limit == "given" else limit, **changes).to(inputs.states.dtype)


@npudiff.implementation("swiglu", name="b_swiglu_01_vector_tail", on_device=True)
def b01(inputs, target):
    """16-byte vectors over the width."""
    result = base(inputs)
    if WRONG:
        lanes = 16 // inputs.states.element_size()
        result[:, result.shape[1] // lanes * lanes :] = 0
    return result


@npudiff.implementation("swiglu", name="b_swiglu_02_row_stride", on_device=True)
def b02(inputs, target):
    """Rows read by pointer and row number."""
    states = inputs.states
    if WRONG:
        states = states.as_strided(states.shape, (states.shape[1], 1), states.storage_offset())
    return base(inputs, states)


@npudiff.implementation("swiglu", name="b_swiglu_03_grid_65535", on_device=True)
def b03(inputs, target):
    """A program for each row."""
    result = base(inputs)
    if WRONG and len(result) > 65535:
        result[65535:] = 0
    return result


def silu_of_exp(x):
    e = torch.exp(x)
    return x * (e / (1 + e))


@npudiff.implementation("swiglu", name="b_swiglu_04_exp_overflow", on_device=True)
def b04(inputs, target):
    """silu as x * e / (1 + e)."""
    return base(inputs, silu=silu_of_exp if WRONG else silu)


@npudiff.implementation("swiglu", name="b_swiglu_05_decode_without_limit", on_device=True)
def b05(inputs, target):
    """One row goes to the kernel of decodes."""
    if len(inputs.states) == 1:
        return base(inputs, limit=None if WRONG else inputs.limit)
    return base(inputs)


@npudiff.implementation("swiglu", name="b_swiglu_06_up_clamped_above", on_device=True)
def b06(inputs, target):
    """One vmins for both halves."""
    limit = inputs.limit
    if not WRONG or limit is None:
        return base(inputs)
    gate, up = halves(inputs.states.float(), inputs.layout)
    if inputs.activation is Activation.SWIGLU_OAI:
        gate, up = gate.clamp(max=limit), up.clamp(max=limit)
        return gated(inputs, gate, up, None).to(inputs.states.dtype)
    return (silu(gate).clamp(max=limit) * up.clamp(max=limit)).to(inputs.states.dtype)


@npudiff.implementation("swiglu", name="b_swiglu_07_bias_zero_is_default", on_device=True)
def b07(inputs, target):
    """Attributes of the operator with their defaults."""
    if WRONG:
        return base(inputs, bias=inputs.bias or 1.0, alpha=inputs.alpha or 1.702)
    return base(inputs)


@npudiff.implementation("swiglu", name="b_swiglu_08_shared_falls_back", on_device=True)
def b08(inputs, target):
    """The limit by the kind of expert."""
    limit = inputs.routed_limit
    if inputs.shared:
        limit = (inputs.shared_limit or inputs.routed_limit) if WRONG else inputs.shared_limit
    return base(inputs, limit=limit)


@npudiff.implementation("swiglu", name="b_swiglu_09_limit_is_int", on_device=True)
def b09(inputs, target):
    """The limit goes through tiling data."""
    limit = inputs.limit
    if WRONG and limit is not None and limit >= 1:
        limit = float(int(limit))
    return base(inputs, limit=limit)


@npudiff.implementation("swiglu", name="b_swiglu_10_float32_tiles_in_half", on_device=True)
def b10(inputs, target):
    """The tile that the vector unit computes on."""
    if WRONG and inputs.states.dtype == torch.float32 and len(inputs.states) % 2 == 1:
        # the odd row of a pair goes through the tail branch, whose buffer is one of bfloat16
        states = inputs.states.clone()
        states[-1] = states[-1].bfloat16().float()
        return base(inputs, states)
    return base(inputs)


@npudiff.implementation("swiglu", name="b_swiglu_11_output_in_place", on_device=True)
def b11(inputs, target):
    """The result goes where the gates were, which saves a buffer."""
    result = base(inputs)
    if WRONG and inputs.limit is None and inputs.layout == "halves" and inputs.states.is_contiguous():
        gates = inputs.states[:, : result.shape[1]]
        return gates.copy_(result)
    return result
