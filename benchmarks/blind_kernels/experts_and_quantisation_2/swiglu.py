"""Wrong kernels of swiglu; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff
from npudiff.reference.swiglu import Activation

WRONG = os.environ.get("TWIN") != "1"


def _parts(inputs):
    """Gates and ups, float64."""
    states = inputs.states.double()
    if inputs.layout == "interleaved":
        return states[:, 0::2], states[:, 1::2]
    width = states.shape[1] // 2
    return states[:, :width], states[:, width:]


def _silu(gate):
    return gate * torch.sigmoid(gate)


def _activated(inputs, gate, up, limit, sigmoid=torch.sigmoid, between=None):
    """The activation; ``between`` is what is done to the gated numbers before they meet the ups."""
    between = (lambda numbers: numbers) if between is None else between
    if inputs.activation is Activation.SWIGLU_OAI:
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return between(gate * sigmoid(inputs.alpha * gate)) * (up + inputs.bias)
    silu = between(gate * sigmoid(gate))
    if limit is not None:
        silu, up = silu.clamp(max=limit), up.clamp(-limit, limit)
    return silu * up


@npudiff.implementation("swiglu", name="d_swiglu_01_gated_in_the_dtype_of_states", on_device=True)
def d01(inputs, target):
    """Where everything is to be float32 up to the end, the gated numbers are rounded before they meet the ups."""
    gate, up = _parts(inputs)
    dtype = inputs.states.dtype
    between = (lambda numbers: numbers.to(dtype).double()) if WRONG else None
    return {"output": _activated(inputs, gate, up, inputs.limit, between=between).to(dtype)}


@npudiff.implementation("swiglu", name="d_swiglu_02_ups_at_a_whole_block", on_device=True)
def d02(inputs, target):
    """Ups of halves are read from behind the gates' last whole block of 32 bytes, and so up to 15 columns too late."""
    gate, up = _parts(inputs)
    width = gate.shape[1]
    if WRONG and inputs.layout == "halves" and len(up):
        block = 32 // inputs.states.element_size()
        flat = inputs.states.double().flatten()
        begin = torch.arange(len(up), device=flat.device).unsqueeze(1) * 2 * width + -(-width // block) * block
        place = begin + torch.arange(width, device=flat.device)
        up = flat[place.clamp(max=len(flat) - 1)]
    return {"output": _activated(inputs, gate, up, inputs.limit).to(inputs.states.dtype)}


@npudiff.implementation("swiglu", name="d_swiglu_03_limit_of_the_routed_for_the_shared", on_device=True)
def d03(inputs, target):
    """A shared expert without a limit of its own takes that of the routed ones (``shared_limit or routed_limit``)."""
    gate, up = _parts(inputs)
    limit = inputs.limit
    if WRONG and inputs.shared:
        limit = inputs.shared_limit or inputs.routed_limit
    return {"output": _activated(inputs, gate, up, limit).to(inputs.states.dtype)}


@npudiff.implementation("swiglu", name="d_swiglu_04_exponential_of_the_gate", on_device=True)
def d04(inputs, target):
    """The sigmoid is ``e / (1 + e)`` with ``e = exp(x)`` in float32, which is infinity over infinity beyond 88."""
    def quotient(argument):
        exponential = torch.exp(argument)
        exponential = exponential.masked_fill(argument > 88.72, torch.inf)
        return exponential / (1 + exponential)

    gate, up = _parts(inputs)
    sigmoid = quotient if WRONG else torch.sigmoid
    return {"output": _activated(inputs, gate, up, inputs.limit, sigmoid).to(inputs.states.dtype)}
