"""RMS norms of sglang: ``layers/layernorm.py``."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.layernorm import GemmaRMSNorm, RMSNorm

from npudiff import Target, implementation
from npudiff.device.backends.sglang.world import configured, environment, filled, flags_of
from npudiff.reference.rms_norm import RmsNormInputs

Outputs = dict[str, torch.Tensor]

_PLAIN = {"kind": ("plain",)}
_GEMMA = {"kind": ("gemma",)}
_NATIVE = "SGLANG_NPU_FORWARD_NATIVE_GEMMA_RMS_NORM"


def _module(kind: type[torch.nn.Module], inputs: RmsNormInputs) -> Any:  # noqa: ANN401 - sglang's
    """Build a norm as a model does, in the dtype of the model, and load its weight."""
    configured()
    made: Any = kind(inputs.hidden.shape[1], inputs.epsilon).to(inputs.hidden.device, inputs.hidden.dtype)
    filled(made.weight, inputs.weight)
    return made


def _outputs(answer: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> Outputs:
    if isinstance(answer, tuple):
        return {"output": answer[0], "sum": answer[1]}
    return {"output": answer}


@implementation("rms_norm", name="RMSNorm.forward_npu", supports=_PLAIN, on_device=True)
def rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """RMSNorm.forward_npu, with and without a residual."""
    return _outputs(_module(RMSNorm, inputs).forward_npu(inputs.hidden, inputs.residual))


@implementation("rms_norm", name="RMSNorm.forward_native", supports=_PLAIN, on_device=True, native=True)
def rms_norm_native(inputs: RmsNormInputs, target: Target) -> Outputs:
    """RMSNorm.forward_native."""
    return _outputs(_module(RMSNorm, inputs).forward_native(inputs.hidden, inputs.residual))


@implementation(
    "rms_norm", name="GemmaRMSNorm.forward_npu", supports=_GEMMA, options={_NATIVE: ("0", "1")}, on_device=True
)
def gemma_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """GemmaRMSNorm.forward_npu, by operators or in plain torch."""
    with environment(flags_of(inputs)):
        return _outputs(_module(GemmaRMSNorm, inputs).forward_npu(inputs.hidden, inputs.residual))
