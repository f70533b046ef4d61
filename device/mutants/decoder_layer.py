"""Layers whose parts are right and do not fit together: Step-3.5."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from npudiff import Target, mutant
from npudiff.device.ascend import sliding_attention
from npudiff.device.ascend.decoder_layer import GROUPED_QUERY, layer_by_flags
from npudiff.device.ascend.fused_attention import decode_call
from npudiff.device.ascend.layer_experts import AscendExperts
from npudiff.device.ascend.layer_grouped_query import GroupedQueryLayer
from npudiff.device.ascend.layer_steps import Outputs
from npudiff.device.mutants.class_mutant import class_mutant
from npudiff.model.constraints import Box, Constraints
from npudiff.reference.decoder_layer import DecoderLayerInputs, LayerStep
from npudiff.reference.moe_experts import MoeExpertsInputs
from npudiff.reference.sliding_attention import SlidingAttentionInputs


def within(boxes: list[Box], **axes: Collection[object]) -> list[Box]:
    """Boxes of the layer from which mutants are made, narrowed."""
    result = Constraints.of(boxes).within(Constraints.of(axes))
    return list(result.boxes)


WINDOWS = range(1, 2**31)
DECODES = range(1, 65)


@class_mutant(
    layer_by_flags,
    "NRM-07 sgl-project/sglang/pull/40131: an addition to the residual is dropped on one path",
    supports=GROUPED_QUERY,
)
class ResidualBeforeTheSum(GroupedQueryLayer):
    """Leave attention out of the residual; the norm has it."""

    def norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the old residual beside the norm of the sum."""
        states, total = super().norm(hidden, residual, weight)
        return states, total if weight is self.inputs.input_norm else residual


@class_mutant(
    layer_by_flags,
    "layernorm.py 1236: weights with 1 added, for npu_add_rms_norm, go to npu_gemma_rms_norm, which adds it",
    supports=GROUPED_QUERY,
)
class OneAddedTwice(GroupedQueryLayer):
    """Give the Gemma norm of heads the weight of the fused one."""

    def head_norm(self, heads: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Add 1 before the norm, which adds it again."""
        return super().head_norm(heads, (weight.float() + 1).to(weight.dtype))


@class_mutant(
    layer_by_flags,
    "SWA-15 vllm-project/vllm/pull/47332: positions within a chunk are taken for absolute",
    supports=GROUPED_QUERY,
)
class PositionsOfTheStep(GroupedQueryLayer):
    """Rotate the tokens of every step from position 0 on."""

    def positions(self, step: LayerStep, rows: slice) -> torch.Tensor:
        """Positions without what came before."""
        del rows
        parts = [torch.arange(new, device=self.target.device) for new in step.query_lengths]
        return torch.cat(parts)


@class_mutant(
    layer_by_flags,
    "ascend_backend.py 1700: keys of a decode are written after its attention, which reads the pool, not before",
    supports=within(GROUPED_QUERY, decode_steps=DECODES),
)
class WrittenAfterAttention(GroupedQueryLayer):
    """Write the decoded token after attention has looked for it."""

    def attention(self, step: LayerStep, rows: slice, states: torch.Tensor) -> torch.Tensor:
        """Attend over the pool of before, and write then."""
        if set(step.query_lengths) != {1}:
            return super().attention(step, rows, states)
        before = (self.key_cache, self.value_cache)
        super().attention(step, rows, states)  # writes
        after, (self.key_cache, self.value_cache) = (self.key_cache, self.value_cache), before
        write, self.write = self.write, lambda key, value, slots: None  # type: ignore[method-assign]  # noqa: ARG005
        result = super().attention(step, rows, states)
        self.write = write  # type: ignore[method-assign]
        self.key_cache, self.value_cache = after
        return result


@class_mutant(
    layer_by_flags,
    "SWA-01 sgl-project/sglang/pull/24582: query length 1 ignores the band of Step-3.5",
    supports={"window": WINDOWS},
)
class WindowInPrefillOnly(GroupedQueryLayer):
    """Leave the window of decodes to the band."""

    def attend(self, step: LayerStep, query: torch.Tensor) -> torch.Tensor:
        """Decode without the mask."""
        inputs = self.attention_inputs(step, query)
        if set(step.query_lengths) != {1} or not self.inputs.use_fia:
            return super().attend(step, query)
        return sliding_attention.run_decode(inputs, decode_call(inputs).having(atten_mask=None, sparse_mode=0))[
            "output"
        ]


@class_mutant(
    layer_by_flags,
    "swa_memory_pool.py 253: a sliding layer writes at the slots of the full pool, not at swa_loc",
    supports={"window": WINDOWS},
)
class SlotsOfTheFullPool(GroupedQueryLayer):
    """Write a sliding layer's keys at the slots of the full pool."""

    def slots(self, rows: slice) -> torch.Tensor:
        """Slots that were not translated."""
        return self.inputs.slots[rows]


@class_mutant(
    layer_by_flags,
    "GRF-02 InfiniTensor/InfiniLM/pull/526: KV lengths are those of the captured step",
    supports=within(GROUPED_QUERY, decode_steps=range(2, 65)),
)
class LengthsOfTheFirstDecode(GroupedQueryLayer):
    """Show later decodes as many keys as the first one."""

    def attention_inputs(self, step: LayerStep, query: torch.Tensor) -> SlidingAttentionInputs:
        """Lengths that do not grow."""
        result = super().attention_inputs(step, query)
        decodes = [one for one in self.inputs.steps if one.requests == step.requests and set(one.query_lengths) == {1}]
        return replace(result, kv_lengths=decodes[0].kv_lengths) if step in decodes[1:] else result


class _RawStates(AscendExperts):
    """The router sees the residual, which was not normalised."""

    residual = torch.empty(0)

    def choice(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose by the residual."""
        del states
        return super().choice(self.residual)


@class_mutant(
    layer_by_flags,
    "step3p5.py 218: the gate takes states that were not normalised, unlike the experts",
    supports=GROUPED_QUERY,
)
class RouterOnTheResidual(GroupedQueryLayer):
    """Choose experts by states that were not normalised."""

    def mixture(self) -> AscendExperts:
        """Experts whose router can be given other states."""
        return _RawStates(self.inputs.experts, self.target, scaled_by_operator=False)

    def norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Show the router what was not normalised yet."""
        states, total = super().norm(hidden, residual, weight)
        vars(self.experts)["residual"] = total
        return states, total


def with_experts(kind: type[AscendExperts], inputs: DecoderLayerInputs, target: Target) -> Outputs:
    """Run the layer with wrong experts."""
    layer = GroupedQueryLayer(inputs, target)
    layer.experts = kind(layer.inputs.experts, target, scaled_by_operator=False)
    return layer.run()


class _ScaledTwice(AscendExperts):
    """Weights are scaled by the model, and by the operator."""

    def choice(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Multiply again."""
        weights, index = super().choice(states)
        return weights * self.weights.scaling, index


@mutant(
    layer_by_flags,
    "MOE-07 vllm-project/vllm-ascend/pull/9692: the scaling factor is applied twice",
    supports=GROUPED_QUERY,
)
def scaled_by_both(inputs: DecoderLayerInputs, target: Target) -> Outputs:
    """Scale the router's weights in the operator and in the model."""
    return with_experts(_ScaledTwice, inputs, target)


class _Unlimited(AscendExperts):
    """Routed experts have no limit where weights are integers."""

    def adapter(self, inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
        """Choose the activation by the form of the weights."""
        routed = replace(inputs.routed, gate=replace(inputs.routed.gate, limit=None))
        return super().adapter(replace(inputs, routed=routed) if routed.quantised else inputs, target)


@mutant(
    layer_by_flags,
    "ACT-06 sgl-project/sglang/pull/39920: the path of int8 rows does not know the limit",
    supports=within(GROUPED_QUERY, limit=(7.0, 1.5, 0.5), form=("w8a8", "w4a8")),
)
def limit_dropped_when_quantised(inputs: DecoderLayerInputs, target: Target) -> Outputs:
    """Run npu_dequant_swiglu_quant, which has no limit, in layers that have one."""
    return with_experts(_Unlimited, inputs, target)


@mutant(
    layer_by_flags,
    "ACT-05 vllm-project/vllm-ascend/pull/11184: the shared expert has the routed ones' limit",
    supports=GROUPED_QUERY,
)
def shared_limit_of_routed_experts(inputs: DecoderLayerInputs, target: Target) -> Outputs:
    """Hand one limit to all experts."""
    experts = replace(inputs.experts, shared=replace(inputs.experts.shared, gate=inputs.experts.routed.gate))
    return GroupedQueryLayer(replace(inputs, experts=experts), target).run()
