"""RMS norms of vllm-ascend: ``ops/layernorm.py``."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm_ascend.ops import layernorm
from vllm_ascend.ops.layernorm import AscendGemmaRMSNorm, AscendRMSNorm

from npudiff import Target, implementation
from npudiff.device.backends.vllm_ascend.world import CUSTOM_OP, custom_op, without_prefetch
from npudiff.reference.rms_norm import RmsNormInputs

Outputs = dict[str, torch.Tensor]


def norm_module(kind: type[torch.nn.Module], weight: torch.Tensor, epsilon: float) -> Any:  # noqa: ANN401 - vllm's
    """Build a norm without its constructor, which wants the configuration of an engine."""
    made: Any = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    made.weight = torch.nn.Parameter(weight, requires_grad=False)
    made.variance_epsilon = epsilon
    made.bias, made.bias_loaded = None, False
    made.variance_size_override, made.pass_weight, made.pass_weight_add = None, True, True
    return made


def _module(kind: type[torch.nn.Module], inputs: RmsNormInputs) -> Any:  # noqa: ANN401 - vllm-ascend's
    return norm_module(kind, inputs.weight, inputs.epsilon)


def _outputs(answer: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> Outputs:
    if isinstance(answer, tuple):
        return {"output": answer[0], "sum": answer[1]}
    return {"output": answer}


@implementation(
    "rms_norm", name="AscendRMSNorm.forward_oot", supports={"kind": ("plain",)}, options=CUSTOM_OP, on_device=True
)
def rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """AscendRMSNorm.forward_oot, with and without a residual."""
    with custom_op(inputs), without_prefetch(layernorm):
        return _outputs(_module(AscendRMSNorm, inputs).forward_oot(inputs.hidden, inputs.residual))


@implementation("rms_norm", name="RMSNorm.forward_native", supports={"kind": ("plain",)}, on_device=True, native=True)
def rms_norm_of_vllm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """RMSNorm.forward_native, which vllm-ascend replaces."""
    return _outputs(_module(RMSNorm, inputs).forward_native(inputs.hidden, inputs.residual))


@implementation(
    "rms_norm", name="GemmaRMSNorm.forward_native", supports={"kind": ("gemma",)}, on_device=True, native=True
)
def gemma_rms_norm_of_vllm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """GemmaRMSNorm.forward_native, which vllm-ascend replaces."""
    return _outputs(_module(GemmaRMSNorm, inputs).forward_native(inputs.hidden, inputs.residual))


@implementation(
    "rms_norm", name="AscendGemmaRMSNorm.forward_oot", supports={"kind": ("gemma",)}, options=CUSTOM_OP, on_device=True
)
def gemma_rms_norm(inputs: RmsNormInputs, target: Target) -> Outputs:
    """AscendGemmaRMSNorm.forward_oot, with and without a residual."""
    with custom_op(inputs):
        return _outputs(_module(AscendGemmaRMSNorm, inputs).forward_oot(inputs.hidden, inputs.residual))
