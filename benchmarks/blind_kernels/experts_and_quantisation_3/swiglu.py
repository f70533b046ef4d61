"""Wrong kernels of swiglu; TWIN=1 runs the same code without the mistakes."""
import os

import torch
from e_base import activated, halves

import npudiff
from npudiff.reference.swiglu import Activation

WRONG = os.environ.get("TWIN") != "1"


def parts(inputs):
    return halves(inputs.states.double(), inputs.layout)


def plain(inputs, gate, up, limit):
    return activated(gate, up, inputs.activation, limit, inputs.alpha, inputs.bias)


@npudiff.implementation("swiglu", name="e_swiglu_01_gate_limited_below", on_device=True)
def e01(inputs, target):
    """The limit of GPT-OSS is applied to gates on both sides, as it is to ups."""
    gate, up = parts(inputs)
    if WRONG and inputs.activation is Activation.SWIGLU_OAI and inputs.limit is not None:
        gate = gate.clamp(min=-inputs.limit)
    return {"output": plain(inputs, gate, up, inputs.limit).to(inputs.states.dtype)}


@npudiff.implementation("swiglu", name="e_swiglu_02_shared_falls_back", on_device=True)
def e02(inputs, target):
    """A shared expert without a limit of its own gets that of routed ones, by an `or`."""
    limit = (inputs.shared_limit or inputs.routed_limit) if WRONG and inputs.shared else inputs.limit
    return {"output": plain(inputs, *parts(inputs), limit).to(inputs.states.dtype)}


@npudiff.implementation("swiglu", name="e_swiglu_03_exponential_overflows", on_device=True)
def e03(inputs, target):
    """The sigmoid is exp(x) / (1 + exp(x)) in float32: NaN from 89 on."""
    gate, up = parts(inputs)
    result = plain(inputs, gate, up, inputs.limit)
    if WRONG:
        argument = gate
        if inputs.activation is Activation.SWIGLU_OAI:
            argument = (gate if inputs.limit is None else gate.clamp(max=inputs.limit)) * inputs.alpha
        exponential = argument.float().exp()
        result = torch.where((exponential / (1 + exponential)).isnan(), torch.nan, result)
    return {"output": result.to(inputs.states.dtype)}


@npudiff.implementation("swiglu", name="e_swiglu_04_overlap_in_place", on_device=True)
def e04(inputs, target):
    """Blocks of 16 columns in place; the last is moved back to be whole, and meets columns that are activated already."""
    gate, up = parts(inputs)
    dtype = inputs.states.dtype
    output = plain(inputs, gate, up, inputs.limit).to(dtype)
    width = output.shape[-1]
    if WRONG and width > 16 and width % 16:
        again = slice(width - 16, width // 16 * 16)
        output[..., again] = plain(inputs, output[..., again].double(), up[..., again], inputs.limit).to(dtype)
    return {"output": output}
