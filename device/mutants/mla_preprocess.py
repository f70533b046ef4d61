"""Wrong ways from hidden states to queries and caches."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.mla_preprocess import (
    Outputs,
    caches,
    native_mla_preprocess,
    rms_norm_cache_path,
    write_keys,
)
from npudiff.reference.mla_preprocess import MlaPreprocessInputs


@perturbed(native_mla_preprocess, "MLA-01 vllm-project/vllm-ascend/pull/3857: the reorder of the rope rows is left out")
def rope_rows_not_reordered(inputs: MlaPreprocessInputs) -> MlaPreprocessInputs:
    """Take the halves of a query's rope part for its pairs; keys are right."""
    heads = inputs.q_b_weight.view(len(inputs.q_a_norm), inputs.heads, -1)
    rope = torch.stack(heads[..., inputs.nope_dim :].chunk(2, dim=-1), dim=-1).flatten(-2)
    weight = torch.cat([heads[..., : inputs.nope_dim], rope], dim=-1).flatten(1)
    return replace(inputs, q_b_weight=weight)


@mutant(
    rms_norm_cache_path,
    "PKV-06 sgl-project/sglang/pull/14423: NZ by the reader's flag, ND by the writer's",
    supports={"layout": ("PA_NZ",)},
)
def nd_mode_on_nz_caches(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """Write latents and rope keys in ND order into caches that are read as NZ."""
    queries = rms_norm_cache_path(inputs, target)
    write_keys(inputs, "PA_BNSD")
    return {**queries, **caches(inputs)}


@mutant(
    native_mla_preprocess,
    "MLA-05 vllm-project/vllm-ascend/pull/88: right for pages of 16, wrong for 128",
    supports={"layout": ("PA_NZ",), "page_size": (16, 32, 48, 128, 256)},
)
def pages_of_16_whatever_they_are(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """Write into pages of 16 tokens, whatever the caches' pages are."""
    seen = {
        name: getattr(inputs, name).reshape(-1, getattr(inputs, name).shape[1], 16, getattr(inputs, name).shape[3])
        for name in ("latent_cache", "rope_cache")
    }
    outputs = native_mla_preprocess(replace(inputs, **seen, page_size=16), target)
    return {**outputs, **{name: outputs[name].view(getattr(inputs, name).shape) for name in seen}}
