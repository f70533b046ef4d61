"""RMS norms as sglang's Ascend backend calls them: alone, fused with the residual, Gemma by operator or natively."""

from __future__ import annotations

import torch

import npudiff
from npudiff import Target
from npudiff.reference.rms_norm import RmsNormInputs

Outputs = dict[str, torch.Tensor]

_ALONE = {"residual": (False,)}
_PLAIN = {"kind": ("plain",)}
_GEMMA = {"kind": ("gemma",)}


@npudiff.implementation("rms_norm", name="npu_rms_norm", supports={**_PLAIN, **_ALONE})
def npu_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """npu_rms_norm."""
    on_device = inputs.to(target.device)
    output, rstd = torch.ops.npu.npu_rms_norm(on_device.hidden, on_device.weight, on_device.epsilon)
    return {"output": output, "rstd": rstd}


@npudiff.implementation("rms_norm", name="npu_gemma_rms_norm", supports={**_GEMMA, **_ALONE})
def npu_gemma_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """npu_gemma_rms_norm on the stored weight: the operator adds 1."""
    on_device = inputs.to(target.device)
    output, rstd = torch.ops.npu.npu_gemma_rms_norm(on_device.hidden, on_device.weight, on_device.epsilon)
    return {"output": output, "rstd": rstd}


@npudiff.implementation("rms_norm", name="npu_add_rms_norm", supports={**_PLAIN, "residual": (True,)})
def npu_add_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """npu_add_rms_norm."""
    on_device = inputs.to(target.device)
    return add_rms_norm(on_device, on_device.weight)


@npudiff.implementation("rms_norm", name="gemma_add_rms_norm", supports={**_GEMMA, "residual": (True,)})
def gemma_add_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Gemma with a residual: npu_add_rms_norm on 1 + weight, added in float32 and rounded to the states' dtype."""
    on_device = inputs.to(target.device)
    return add_rms_norm(on_device, (1.0 + on_device.weight.float()).to(on_device.hidden.dtype))


def add_rms_norm(inputs: RmsNormInputs, weight: torch.Tensor) -> Outputs:
    """Normalise the sum of residual and states with npu_add_rms_norm."""
    output, rstd, total = torch.ops.npu.npu_add_rms_norm(inputs.residual, inputs.hidden, weight, inputs.epsilon)
    return {"output": output, "rstd": rstd, "sum": total}


@npudiff.implementation("rms_norm", name="npu_add_rms_norm_v2", supports={**_PLAIN, "residual": (True,)})
def npu_add_rms_norm_v2(inputs: RmsNormInputs, target: Target) -> Outputs:
    """npu_add_rms_norm_v2: the first input becomes the output, the second the sum; only rstd is returned."""
    on_device = inputs.to(target.device)
    hidden, residual = on_device.hidden, on_device.residual
    rstd = torch.ops.npu.npu_add_rms_norm_v2(hidden, residual, on_device.weight, on_device.epsilon)
    return {"output": hidden, "rstd": rstd, "sum": residual}


@npudiff.implementation("rms_norm", name="native_rms_norm", supports={"rounding": ("once",)})
def native_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """Composed of elementwise operators in float32, rounded once: the path that SGLANG_NPU_FORWARD_NATIVE_* selects."""
    on_device = inputs.to(target.device)
    total = on_device.hidden if on_device.residual is None else on_device.hidden + on_device.residual
    wide = total.float()
    rstd = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + on_device.epsilon)
    weight = on_device.weight.float() + (1.0 if on_device.kind == "gemma" else 0.0)
    return {"output": (wide * rstd * weight).to(total.dtype), "rstd": rstd, "sum": total}
