"""Layers whose parts are right and do not fit together: DeepSeek."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from npudiff import Target, mutant
from npudiff.device.ascend.decoder_layer import LATENT, layer_by_flags
from npudiff.device.ascend.layer_experts import rounded
from npudiff.device.ascend.layer_latent import LatentLayer
from npudiff.device.ascend.layer_steps import Outputs
from npudiff.device.mutants.class_mutant import class_mutant
from npudiff.device.mutants.decoder_layer import DECODES, within
from npudiff.reference.decoder_layer import DecoderLayerInputs, LayerStep
from npudiff.reference.mla_preprocess import MlaPreprocessInputs


@class_mutant(
    layer_by_flags,
    "PKV-06 sgl-project/sglang/pull/14423: NZ by the writer's flag, ND by the reader's",
    supports={"fia_nz": (True,)},
)
class NzByTheWriterOnly(LatentLayer):
    """Read NZ pages as ND ones."""

    @property
    def read_in_nz(self) -> bool:
        """Take the pages for ND."""
        return False


@class_mutant(
    layer_by_flags,
    "MLA-01 vllm-project/vllm-ascend/pull/3857: rope rows of one side are not reordered",
    supports=within(LATENT, decode_steps=DECODES),
)
class QueryTurnedUnlikeItsKeys(LatentLayer):
    """Rotate queries natively and keys by the operator."""

    def preprocessed(self, given: MlaPreprocessInputs) -> Outputs:
        """Bring rotated queries back to the order that the native path leaves them in."""
        outputs = super().preprocessed(given)
        first, second = outputs["query_rope"].chunk(2, dim=-1)
        return {**outputs, "query_rope": torch.stack([first, second], dim=-1).flatten(-2)}


@class_mutant(
    layer_by_flags,
    "ROP-09 huggingface/transformers/pull/47435: the correction by mscale ** 2 is missing",
    supports=LATENT,
)
class ScaleWithoutMscale(LatentLayer):
    """Take one over the root of the head dim."""

    @property
    def scale(self) -> float:
        """Leave mscale out."""
        return 1 / math.sqrt(self.weights.nope_dim + self.inputs.cos_sin_cache.shape[1])


@class_mutant(
    layer_by_flags,
    "CPX-01 sgl-project/sglang/pull/22020: extend attends to the current chunk only",
    supports=within(LATENT, prefix=range(1, 2**14 + 1)),
)
class PrefixNotGathered(LatentLayer):
    """Leave the pages of the prefix out of a prefill."""

    def gathered(self, step: LayerStep) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Latents and rope keys of the step alone, but in a decode."""
        whole = super().gathered(step)
        if set(step.query_lengths) == {1}:
            return whole
        return [(one[-new:], other[-new:]) for (one, other), new in zip(whole, step.query_lengths, strict=True)]

    def fused(self, step: LayerStep, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As many keys as queries."""
        return super().fused(replace(step, kv_lengths=step.query_lengths), query, key, value)

    def composed(self, step: LayerStep, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As many keys as queries."""
        return super().composed(replace(step, kv_lengths=step.query_lengths), query, key, value)


@mutant(
    layer_by_flags,
    "MOE-08 vllm-project/vllm-ascend/pull/4050: groups of experts are taken for one",
    supports=within(LATENT, groups=(2, 4)),
)
def one_group_of_experts(inputs: DecoderLayerInputs, target: Target) -> Outputs:
    """Choose experts from all groups."""
    layer = LatentLayer(inputs, target)
    layer.experts.weights = replace(layer.experts.weights, groups=1, kept_groups=1)
    return layer.run()


@mutant(
    layer_by_flags, "MOE-07 vllm-project/vllm-ascend/pull/9692: the scaling factor is 1 on one path", supports=LATENT
)
def scaled_by_nobody(inputs: DecoderLayerInputs, target: Target) -> Outputs:
    """Leave the scaling factor to a model that leaves it to the operator."""
    layer = LatentLayer(inputs, target)
    layer.experts.weights = replace(layer.experts.weights, scaling=1.0)
    return layer.run()


@class_mutant(
    layer_by_flags, "CPX-05 vllm-project/vllm-ascend/pull/8647: nobody asks whether others prefill", supports=LATENT
)
class DecodePathInMixedBatches(LatentLayer):
    """Prepare and attend chunks of prompts as if they were decodes, where they share a step with one."""

    def attention(self, step: LayerStep, rows: slice, states: torch.Tensor) -> torch.Tensor:
        """Look for one decode, not for decodes only."""
        given = self.preprocess_inputs(rows, states)
        attended = self.decode(step, given) if 1 in step.query_lengths else self.prefill(step, given)
        return rounded(attended.flatten(1), self.weights.output)

    def absorbed(self, step: LayerStep, query: torch.Tensor) -> torch.Tensor:
        """Every row is the newest token of its request, and sees all the others, as a decode's does."""
        counts = torch.tensor(step.query_lengths)
        return super().absorbed(
            replace(
                step,
                requests=tuple(torch.tensor(step.requests).repeat_interleave(counts).tolist()),
                query_lengths=(1,) * step.tokens,
                kv_lengths=tuple(torch.tensor(step.kv_lengths).repeat_interleave(counts).tolist()),
            ),
            query,
        )
