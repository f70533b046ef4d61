"""Both layers composed of plain torch operators: no flag, no fused operator, and latents absorbed in prefill too."""

from __future__ import annotations

import torch

from npudiff import Target
from npudiff.device.ascend import (
    mla_preprocess,
    moe_experts,
    moe_gating,
    paged_cache,
    rms_norm,
    rotary,
    sliding_attention,
)
from npudiff.device.ascend.layer_experts import AscendExperts
from npudiff.device.ascend.layer_grouped_query import GroupedQueryLayer
from npudiff.device.ascend.layer_latent import LatentLayer
from npudiff.device.ascend.layer_steps import AscendLayer, Outputs
from npudiff.reference.decoder_layer import DecoderLayerInputs, LayerStep
from npudiff.reference.mla_preprocess import MlaPreprocessInputs
from npudiff.reference.moe_experts import MoeExpertsInputs
from npudiff.reference.moe_gating import MoeGatingInputs
from npudiff.reference.paged_cache import PagedCacheInputs
from npudiff.reference.rms_norm import RmsNormInputs
from npudiff.reference.rotary import RotaryInputs


class ComposedExperts(AscendExperts):
    """Experts one after the other."""

    def choice(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores, groups and the best of them."""
        own = self.weights
        given = MoeGatingInputs(states.float() @ own.router, own.bias, own.top_k, "sigmoid", own.groups,
                                own.kept_groups, renormalise=True, scaling=own.scaling)  # fmt: skip
        scores = moe_gating.scored(given)
        index = moe_gating.best(given, scores)
        return moe_gating.weighted(given, scores.gather(1, index)), index.to(torch.int32)

    def adapter(self, inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
        """A loop over experts."""
        return moe_experts.expert_by_expert_composed(inputs, target)


class Composed(AscendLayer):
    """What both kinds have in common."""

    def check(self, inputs: DecoderLayerInputs) -> None:
        """No flag chooses anything."""

    def mixture(self) -> AscendExperts:
        """Experts one after the other."""
        return ComposedExperts(self.inputs.experts, self.target, scaled_by_operator=True)

    def norm_adapter(self, inputs: RmsNormInputs, target: Target) -> Outputs:
        """In float32, rounded once."""
        return rms_norm.native_rms_norm(inputs, target)


class ComposedGroupedQueryLayer(Composed, GroupedQueryLayer):
    """Step-3.5's."""

    def rotated(self, inputs: RotaryInputs) -> Outputs:
        """Rounded after every operation."""
        return rotary.native_rotary(inputs, self.target)

    def write(self, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """By index."""
        pools = (self.key_cache, self.value_cache)
        given = PagedCacheInputs(key, value, *pools, slots, self.inputs.page_size, "PA_BSND")
        caches = paged_cache.index_put(given, self.target)
        self.key_cache, self.value_cache = caches["key_cache"], caches["value_cache"]

    def attend(self, step: LayerStep, query: torch.Tensor) -> torch.Tensor:
        """Gathered keys, and a mask."""
        return sliding_attention.torch_native(self.attention_inputs(step, query), self.target)


class ComposedLatentLayer(Composed, LatentLayer):
    """DeepSeek's."""

    @property
    def written_in_nz(self) -> bool:
        """ND, whatever the flags are."""
        return False

    @property
    def read_in_nz(self) -> bool:
        """ND, whatever the flags are."""
        return False

    def prefill(self, step: LayerStep, given: MlaPreprocessInputs) -> torch.Tensor:
        """As a decode of several rows."""
        return self.decode(step, given)

    def preprocessed(self, given: MlaPreprocessInputs) -> Outputs:
        """Products, norms and rotation one after the other."""
        return mla_preprocess.native_mla_preprocess(given, self.target)
