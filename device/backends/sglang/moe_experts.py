"""Experts of sglang: dispatcher, weights as its loader leaves them, and ``AscendRunnerCore``."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.hardware_backend.npu.quantization.moe_methods import NPUUnquantMoEMethod, NPUW8A8Int8MoEMethod
from sglang.srt.layers.moe.moe_runner.ascend import AscendQuantInfo, AscendRunnerCore, AscendRunnerInput
from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig
from sglang.srt.layers.moe.token_dispatcher.ascend_tp import AscendTPCombineInput, AscendTPDispatcher
from sglang.srt.layers.moe.topk import StandardTopKOutput

from npudiff import Target, implementation
from npudiff.device.ascend.moe_experts import numbered_here
from npudiff.device.backends.sglang.world import configured
from npudiff.model.constraints import Box
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.moe_experts import MoeExpertsInputs

_ROUTED: Box = {
    "here": ("all", "chosen"),
    "shared_width": (0,),
    "biased": (False,),
    "layout": ("halves",),
    "activation": ("silu", "swiglustep"),
}
_METHODS = {16: NPUUnquantMoEMethod, 8: NPUW8A8Int8MoEMethod}
_PREFIXES = ("w13", "w2")


def _parameter(values: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(values.contiguous(), requires_grad=False)


def _load(layer: torch.nn.Module, prefix: str, weights: ExpertWeights) -> None:
    """Give a layer the weights of a checkpoint: ``[experts, columns, inner]``, and a scale for each column."""
    setattr(layer, f"{prefix}_weight", _parameter(weights.values.transpose(1, 2)))
    if weights.scale is not None:
        setattr(layer, f"{prefix}_weight_scale", _parameter(weights.scale.transpose(1, 2)))


def _layer(inputs: MoeExpertsInputs) -> tuple[torch.nn.Module, MoeRunnerConfig]:
    """Build a layer as sglang's fused experts are built, and let its methods process what was loaded."""
    gate = inputs.routed.gate
    layer = torch.nn.Module()
    config = MoeRunnerConfig(
        num_experts=len(inputs.here), top_k=inputs.topk_ids.shape[1], activation="silu", gemm1_alpha=gate.alpha,
        gemm1_clamp_limit=gate.limit, layer=layer,
    )  # fmt: skip
    held: Any = layer
    held.dispatcher = AscendTPDispatcher(config)
    for prefix, weights in zip(_PREFIXES, (inputs.routed.up, inputs.routed.down), strict=True):
        kernel = _METHODS[weights.bits]()
        setattr(layer, f"{prefix}_kernel", kernel)
        _load(layer, prefix, weights)
        kernel.process_weights_after_loading(layer, prefix)
    return layer, config


def _run(inputs: MoeExpertsInputs) -> torch.Tensor:
    """Dispatch, run the core on what a layer has, and combine."""
    configured()
    layer, config = _layer(inputs)
    held: Any = layer
    names = ("weight", "weight_scale")
    values = {f"{prefix}_{name}": getattr(layer, f"{prefix}_{name}", None) for prefix in _PREFIXES for name in names}
    sent = held.dispatcher.dispatch(inputs.states, StandardTopKOutput(inputs.weights, numbered_here(inputs), None))
    given = AscendRunnerInput(sent.hidden_states, sent.hidden_states_scale, sent.expert_tokens, sent.group_list_type)
    said = AscendRunnerCore(config).run(given, AscendQuantInfo(**values), {})
    answer: torch.Tensor = held.dispatcher.combine(AscendTPCombineInput(said.hidden_states))
    return answer


@implementation("moe_experts", name="AscendRunnerCore", supports={**_ROUTED, "form": ("float",)}, on_device=True)
def of_floats(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """AscendTPDispatcher, AscendRunnerCore and NPUUnquantMoEMethod."""
    return _run(inputs)


@implementation(
    "moe_experts",
    name="AscendRunnerCore_w8a8",
    supports={**_ROUTED, "form": ("w8a8",), "dtype": ("bfloat16",), "groups": (1,)},
    on_device=True,
)
def of_int8(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """AscendTPDispatcher, AscendRunnerCore and NPUW8A8Int8MoEMethod."""
    return _run(inputs)
