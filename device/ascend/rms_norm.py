"""RMS norms as sglang's Ascend backend calls them: alone, fused with the residual, Gemma by operator or natively."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.rms_norm import RmsNormInputs

Outputs = dict[str, torch.Tensor]

_ALONE = {"residual": (False,)}
_PLAIN = {"kind": ("plain",)}
_GEMMA = {"kind": ("gemma",)}


@implementation("rms_norm", supports={**_PLAIN, **_ALONE}, on_device=True, graph=True)
def npu_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """npu_rms_norm."""
    output, rstd = torch.ops.npu.npu_rms_norm(inputs.hidden, inputs.weight, inputs.epsilon)
    return {"output": output, "rstd": rstd}


@implementation("rms_norm", supports={**_GEMMA, **_ALONE}, on_device=True, graph=True)
def npu_gemma_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """npu_gemma_rms_norm on the stored weight: the operator adds 1."""
    output, rstd = torch.ops.npu.npu_gemma_rms_norm(inputs.hidden, inputs.weight, inputs.epsilon)
    return {"output": output, "rstd": rstd}


@implementation("rms_norm", supports={**_PLAIN, "residual": (True,)}, on_device=True, graph=True)
def npu_add_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """npu_add_rms_norm."""
    return add_rms_norm(inputs, inputs.weight)


@implementation("rms_norm", supports={**_GEMMA, "residual": (True,)}, on_device=True, graph=True)
def gemma_add_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Gemma with a residual: npu_add_rms_norm on 1 + weight, added in float32 and rounded to the states' dtype."""
    return add_rms_norm(inputs, (1.0 + inputs.weight.float()).to(inputs.hidden.dtype))


def add_rms_norm(inputs: RmsNormInputs, weight: torch.Tensor) -> Outputs:
    """Normalise the sum of residual and states with npu_add_rms_norm."""
    output, rstd, total = torch.ops.npu.npu_add_rms_norm(inputs.residual, inputs.hidden, weight, inputs.epsilon)
    return {"output": output, "rstd": rstd, "sum": total}


@implementation("rms_norm", supports={**_PLAIN, "residual": (True,)}, on_device=True, graph=True)
def npu_add_rms_norm_v2(inputs: RmsNormInputs, target: Target) -> Outputs:
    """npu_add_rms_norm_v2: the first input becomes the output, the second the sum; only rstd is returned."""
    hidden, residual = inputs.hidden, inputs.residual
    rstd = torch.ops.npu.npu_add_rms_norm_v2(hidden, residual, inputs.weight, inputs.epsilon)
    return {"output": hidden, "rstd": rstd, "sum": residual}


@implementation("rms_norm", supports={"rounding": ("once",)}, on_device=True, graph=True)
def native_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Composed of elementwise operators in float32, rounded once: the path that SGLANG_NPU_FORWARD_NATIVE_* selects."""
    total = inputs.hidden if inputs.residual is None else inputs.hidden + inputs.residual
    wide = total.float()
    rstd = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + inputs.epsilon)
    weight = inputs.weight.float() + (1.0 if inputs.kind == "gemma" else 0.0)
    return {"output": (wide * rstd * weight).to(total.dtype), "rstd": rstd, "sum": total}
