"""Experts of sglang: dispatcher, weights as its loader leaves them, and ``AscendRunnerCore``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.quantization.moe_methods import NPUUnquantMoEMethod
from sglang.srt.layers.moe.moe_runner.ascend import AscendQuantInfo, AscendRunnerCore, AscendRunnerInput
from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig
from sglang.srt.layers.moe.token_dispatcher.ascend_tp import AscendTPCombineInput, AscendTPDispatcher
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.layers.quantization.modelslim.schemes.modelslim_w4a8_int8_moe import ModelSlimW4A8Int8MoE
from sglang.srt.layers.quantization.modelslim.schemes.modelslim_w8a8_int8_moe import ModelSlimW8A8Int8MoE

from npudiff import Target, implementation
from npudiff.device.ascend.moe_experts import numbered_here
from npudiff.device.ascend.packed_weights import assist_matrix
from npudiff.device.backends.sglang.world import configured, filled, kernels_are_here
from npudiff.model.constraints import Box, Numbers
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.moe_experts import MoeExpertsInputs
from npudiff.reference.swiglu import Activation

_ROUTED: Box = {
    "here": ("all", "chosen"),
    "shared_width": (0,),
    "activation": ("silu", "swiglustep"),
    "layout": ("halves",),
    "biased": (False,),
}
_OAI: Box = {
    **_ROUTED,
    "activation": ("swiglu_oai",),
    "layout": ("interleaved",),
    "biased": (False, True),
    "limit": Numbers(1e-3, 1e4),
}
"""GPT-OSS alone has this activation: gates and ups alternate, experts have biases, and there is a limit."""

_SCHEMES = {8: ModelSlimW8A8Int8MoE, 4: ModelSlimW4A8Int8MoE}
_PREFIXES = ("w13", "w2")


def _parameter(values: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(values.contiguous(), requires_grad=False)


def _floats(layer: torch.nn.Module, prefix: str, weights: ExpertWeights) -> NPUUnquantMoEMethod:
    """Load a checkpoint of floats, ``[experts, columns, inner]``."""
    setattr(layer, f"{prefix}_weight", _parameter(weights.values.transpose(1, 2)))
    if weights.bias is not None:
        setattr(layer, f"{prefix}_weight_bias", _parameter(weights.bias))
    kernel = NPUUnquantMoEMethod()
    kernel.process_weights_after_loading(layer, prefix)
    return kernel


def _integers(layer: torch.nn.Module, prefix: str, weights: ExpertWeights, sizes: Sequence[int]) -> Any:  # noqa: ANN401
    """Have the scheme of a checkpoint of ModelSlim make its parameters, load them, and process them."""
    scale = weights.scale
    if scale is None:
        raise ValueError("whole numbers have scales")
    more = {"group_size": weights.values.shape[1] // scale.shape[1]} if scale.shape[1] > 1 else {}
    scheme = _SCHEMES[weights.bits]({}, prefix, **more)
    with torch.device(scale.device):
        scheme.create_weights(layer, weights.experts, *sizes)
    for name, values in _checkpoint(prefix, weights, scale).items():
        filled(getattr(layer, name), values)
    scheme.process_weights_after_loading(layer)
    return scheme.kernel


def _checkpoint(prefix: str, weights: ExpertWeights, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a checkpoint of ModelSlim has of one matrix: a row per column, two int4 of neighbours in a byte."""
    values, scales = weights.values.transpose(1, 2), scale.transpose(1, 2)
    said = {f"{prefix}_weight": values, f"{prefix}_weight_scale": scales}
    if scales.shape[2] > 1:  # a second scale for each group
        said |= {f"{prefix}_weight_scale": torch.ones_like(scales[..., :1]), f"{prefix}_weight_scale_second": scales}
    if weights.bits == 4:
        said[f"{prefix}_weight"] = ((values[:, 1::2] & 15) << 4 | values[:, 0::2] & 15).to(torch.uint8).view(torch.int8)
        parts = scale.new_zeros(*scales.shape[:2], 16 if prefix == "w2" else 1)  # of which only the sum is used
        parts[..., 0] = assist_matrix(weights)
        said[f"{prefix}_scale_bias"] = parts
    return said


def _layer(inputs: MoeExpertsInputs) -> tuple[torch.nn.Module, MoeRunnerConfig]:
    """Build a layer as sglang's fused experts are built, and let its methods process what was loaded."""
    gate, routed = inputs.routed.gate, inputs.routed
    layer = torch.nn.Module()
    oai = gate.activation == Activation.SWIGLU_OAI
    config = MoeRunnerConfig(
        num_experts=len(inputs.here), top_k=inputs.topk_ids.shape[1], gemm1_alpha=gate.alpha,
        activation="npu_swiglu_oai" if oai else "silu", gemm1_clamp_limit=gate.limit, layer=layer,
    )  # fmt: skip
    held: Any = layer
    held.dispatcher = AscendTPDispatcher(config)
    sizes = routed.up.values.shape[1], routed.down.values.shape[1]
    for prefix, weights in zip(_PREFIXES, (routed.up, routed.down), strict=True):
        integers = weights.bits < 16
        kernel = _integers(layer, prefix, weights, sizes) if integers else _floats(layer, prefix, weights)
        setattr(layer, f"{prefix}_kernel", kernel)
    return layer, config


def _run(inputs: MoeExpertsInputs) -> torch.Tensor:
    """Dispatch, run the core on what a layer has, and combine."""
    configured()
    layer, config = _layer(inputs)
    held: Any = layer
    names = ("weight", "weight_scale", "weight_bias", "scale_bias")
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
    name="AscendRunnerCore_oai",
    supports={**_OAI, "form": ("float",), "tokens": range(1, 18)},
    on_device=True,
    requires=kernels_are_here,
)
def of_oai(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """AscendRunnerCore with the activation of GPT-OSS, a Triton kernel, whose interpreter wants few rows."""
    return _run(inputs)


@implementation(
    "moe_experts", name="AscendRunnerCore_w8a8", supports={**_ROUTED, "form": ("w8a8",), "groups": (1,)}, on_device=True
)
def of_int8(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """AscendTPDispatcher, AscendRunnerCore and ModelSlimW8A8Int8MoE."""
    return _run(inputs)


@implementation(
    "moe_experts",
    name="AscendRunnerCore_w4a8",
    supports={**_ROUTED, "form": ("w4a8",)},
    on_device=True,
)
def of_int4(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """AscendTPDispatcher, AscendRunnerCore and ModelSlimW4A8Int8MoE, with a scale per column or several."""
    return _run(inputs)
