"""Experts of vllm-ascend: weights as its quantisation methods leave them, dispatcher, products and combination."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm_ascend.ascend_forward_context import MoECommType
from vllm_ascend.ops.fused_moe import token_dispatcher
from vllm_ascend.ops.fused_moe.moe_comm_method import AllGatherCommImpl
from vllm_ascend.ops.fused_moe.routed_experts import AscendUnquantizedFusedMoEMethod
from vllm_ascend.quantization.methods import w4a8, w8a8_dynamic

from npudiff import Target, implementation
from npudiff.device.ascend.moe_experts import numbered_here
from npudiff.device.ascend.packed_weights import assist_matrix
from npudiff.device.backends.vllm_ascend.world import (
    CUSTOM_OP,
    ascend_configuration,
    custom_op,
    engine,
    engine_config,
    options_of,
    parameter,
)
from npudiff.model.constraints import Box
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.moe_experts import MoeExpertsInputs
from npudiff.reference.swiglu import Activation

NZ = {"weight_nz_mode": ("1", "0", "2")}
"""Which weights lie in FRACTAL_NZ: none, quantised ones, all."""
FUSED = {"fusion_ops_gmmswigluquant": ("1", "0"), "dynamic_eplb": ("0", "1")}
"""Whether the first product, the activation and its quantisation are one operator; whether each expert's matrix is a
tensor of its own, so that they can be moved."""

_MODELS: tuple[Box, ...] = (
    {"activation": ("silu",), "limit": (None,)},
    {"activation": ("swiglustep",), "limit": (7.0,)},
    {"activation": ("swiglu_oai",), "limit": (7.0,), "layout": ("interleaved",)},
    {"activation": ("swiglu_oai",), "limit": (1.5, 7.0, 16.0), "layout": ("halves",)},
)
"""Activations as models have them: the limit of Step-3.5, which vllm asserts, is 7, as that of GPT-OSS, which vllm
takes for granted; MiniMax-M3 says its own."""
_PLACES: tuple[Box, ...] = (
    {"here": ("all", "chosen")},
    {"here": ("local",), "experts": (2, 4, 8, 16)},
)
"""All experts, or the second of two ranks of expert parallelism."""


_TILES: Box = {"width": range(32, 10497, 32)}
"""What ``npu_dequant_swiglu_quant`` takes where rows are in groups: others are refused."""


def _in_tiles(box: Box) -> Box:
    """A box of the path behind MC2, which activates ``swiglu_oai`` in halves by that operator."""
    halves = box.get("activation") == ("swiglu_oai",) and box.get("layout") == ("halves",)
    return {**box, **_TILES} if halves else box


def _boxes(*parts: Box) -> list[Box]:
    common: Box = {key: value for part in parts for key, value in part.items()}
    return [{"shared_width": (0,), **model, **place, **common} for model in _MODELS for place in _PLACES]


_ACTIVATIONS = {
    (Activation.SILU, "halves"): MoEActivation.SILU,
    (Activation.SWIGLUSTEP, "halves"): MoEActivation.SWIGLUSTEP,
    (Activation.SWIGLU_OAI, "interleaved"): MoEActivation.SWIGLUOAI,
    (Activation.SWIGLU_OAI, "halves"): MoEActivation.SWIGLUOAI_UNINTERLEAVE,
}


class _BehindMc2(token_dispatcher.TokenDispatcherWithAllGather):  # type: ignore[misc]
    """A dispatcher that says how many rows experts have as MC2's operator does, which needs HCCL: by where they end."""

    def token_dispatch(self, token_dispatch_input: Any) -> Any:  # noqa: ANN401 - vllm-ascend's
        sent = super().token_dispatch(token_dispatch_input)
        return replace(sent, group_list=sent.group_list.cumsum(0), group_list_type=0)


def _layer(inputs: MoeExpertsInputs) -> Any:  # noqa: ANN401 - vllm's
    """Return a layer with weights as a loader leaves them: ``[experts, columns, inner]``, one scale for each column."""
    made: Any = torch.nn.Module()
    gate = inputs.routed.gate
    for prefix, weights in (("w13", inputs.routed.up), ("w2", inputs.routed.down)):
        values = weights.values.transpose(1, 2)
        setattr(made, f"{prefix}_weight", parameter(_packed(values) if weights.bits == 4 else values))
        setattr(made, f"{prefix}_bias", None if weights.bias is None else parameter(weights.bias))
        if weights.scale is not None:
            scale = weights.scale.transpose(1, 2)
            setattr(made, f"{prefix}_weight_scale", parameter(scale))
            setattr(made, f"{prefix}_weight_offset", parameter(torch.zeros_like(scale)))
        if weights.bits == 4:
            setattr(made, f"{prefix}_scale_bias", parameter(_scale_bias(weights, 1 if prefix == "w13" else 16)))
    made.activation = _ACTIVATIONS[gate.activation, gate.layout]
    made.global_redundant_expert_num, made.apply_router_weight_on_input = 0, False
    made.ascend_mc2_mask = made.ascend_pertoken_scale = made.ascend_expert_map = None
    return made


def _packed(values: torch.Tensor) -> torch.Tensor:
    """Return bytes of msModelSlim: two int4 of neighbouring columns, the even one in the lower half."""
    return (values[:, 1::2] << 4) | (values[:, 0::2] & 15)


def _scale_bias(weights: ExpertWeights, parts: int) -> torch.Tensor:
    """Return what a checkpoint has for the 8 that is in each byte: as many parts as there are ranks, of which one."""
    whole = assist_matrix(weights).unsqueeze(-1)
    return torch.nn.functional.pad(whole, (0, parts - 1))


def _method(inputs: MoeExpertsInputs) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return the method of the layer's quantisation, inside ``engine``."""
    if inputs.routed.up.bits == 16:
        method: Any = AscendUnquantizedFusedMoEMethod.__new__(AscendUnquantizedFusedMoEMethod)
        torch.nn.Module.__init__(method)
        method.dynamic_eplb, method.tid2eid, method.lora_context = False, None, None
        method.moe = SimpleNamespace(has_bias=inputs.routed.up.bias is not None)
        return method
    if inputs.routed.up.bits == 4:
        return w4a8.AscendW4A8DynamicFusedMoEMethod()
    return w8a8_dynamic.AscendW8A8DynamicFusedMoEMethod()


def _experts(inputs: MoeExpertsInputs, *, mc2: bool = False) -> torch.Tensor:
    """Let a method process weights, and run the layer with the communication of a single rank."""
    gate, options = inputs.routed.gate, options_of(inputs)
    number, rank = len(inputs.here), SimpleNamespace(rank_in_group=0, world_size=1)
    layer, chosen = _layer(inputs), numbered_here(inputs)
    if bool((chosen == number).any()):
        rank = SimpleNamespace(rank_in_group=1, world_size=2)
        before = torch.searchsorted(inputs.here, inputs.topk_ids.long())
        chosen = torch.where(chosen == number, inputs.topk_ids - before, number + chosen).int()
        layer.ascend_expert_map = torch.cat([torch.full((number,), -1), torch.arange(number)]).to(chosen.device)
    config = engine_config(inputs.states.dtype)
    config.quant_config = SimpleNamespace(quant_description={"ascend_quant_method": "ascend"})
    ascend = ascend_configuration(
        weight_nz_mode=int(options.get("weight_nz_mode", "1")),
        eplb_config=SimpleNamespace(dynamic_eplb=options.get("dynamic_eplb") == "1"),
        ascend_fusion_config=SimpleNamespace(
            fusion_ops_gmmswigluquant=options.get("fusion_ops_gmmswigluquant", "1") == "1"
        ),
    )
    communication: Any = AllGatherCommImpl.__new__(AllGatherCommImpl)
    communication.moe_config = SimpleNamespace(
        experts_per_token=inputs.topk_ids.shape[1], num_experts=number, num_local_experts=number,
        activation=layer.activation, swiglu_limit=gate.limit, swiglu_alpha=gate.alpha, swiglu_beta=gate.bias,
    )  # fmt: skip
    kind = MoECommType.MC2 if mc2 else MoECommType.ALLGATHER
    without_group = mock.Mock(side_effect=AttributeError)
    with (
        engine(config, ascend, moe_comm_method=communication, moe_comm_type=kind),
        custom_op(inputs),
        mock.patch.object(token_dispatcher, "get_ep_group", return_value=rank),
        mock.patch.object(w8a8_dynamic, "get_mc2_group", without_group),
        mock.patch.object(w4a8, "get_mc2_group", without_group),
    ):
        communication.token_dispatcher = communication._get_token_dispatcher()
        if mc2:
            communication.token_dispatcher.__class__ = _BehindMc2
        method = _method(inputs)
        method.process_weights_after_loading(layer)
        result = method.apply(layer, inputs.states, inputs.weights, chosen, None, None)
    answer: torch.Tensor = result.routed_out
    return answer


@implementation(
    "moe_experts",
    name="AscendUnquantizedFusedMoEMethod",
    supports=_boxes({"form": ("float",)}),
    options={**CUSTOM_OP, **NZ},
    on_device=True,
)
def of_floats(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """AscendUnquantizedFusedMoEMethod, AllGatherCommImpl and its dispatcher."""
    return _experts(inputs)


@implementation(
    "moe_experts",
    name="AscendW8A8DynamicFusedMoEMethod",
    supports=_boxes({"form": ("w8a8",), "dtype": ("bfloat16",)}),
    options={**CUSTOM_OP, **FUSED},
    on_device=True,
)
def of_int8(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """AscendW8A8DynamicFusedMoEMethod, AllGatherCommImpl and its dispatcher."""
    return _experts(inputs)


@implementation(
    "moe_experts",
    name="AscendW8A8DynamicFusedMoEMethod_mc2",
    supports=[_in_tiles(box) for box in _boxes({"form": ("w8a8",), "dtype": ("bfloat16",)})],
    options={**CUSTOM_OP, **FUSED},
    on_device=True,
)
def of_int8_behind_mc2(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """AscendW8A8DynamicFusedMoEMethod with the products that follow MC2's dispatch, which is all-gather's here."""
    return _experts(inputs, mc2=True)


@implementation(
    "moe_experts",
    name="AscendW4A8DynamicFusedMoEMethod",
    supports=_boxes({"form": ("w4a8",), "dtype": ("bfloat16",), "groups": (1,)}),
    options={**CUSTOM_OP, "weight_nz_mode": ("1", "0"), "dynamic_eplb": ("0", "1")},
    on_device=True,
)
def of_int4(inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
    """AscendW4A8DynamicFusedMoEMethod, AllGatherCommImpl and its dispatcher, with weights of msModelSlim."""
    return _experts(inputs)
