"""Wrong ways from hidden states to queries and caches."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.mla_preprocess import (
    Outputs,
    caches,
    native_mla_preprocess,
    rms_norm_cache_path,
    write_keys,
)
from npudiff.reference.mla_preprocess import MlaPreprocessInputs


@npudiff.implementation(
    "mla_preprocess",
    name="rope_rows_not_reordered",
    mutant_of="native_mla_preprocess",
    wrong="MLA-01 https://github.com/vllm-project/vllm-ascend/pull/3857: the reorder of the rope rows is left out",
)
def rope_rows_not_reordered(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """Take the halves of a query's rope part for its pairs; keys are right."""
    heads = inputs.q_b_weight.view(len(inputs.q_a_norm), inputs.heads, -1)
    rope = torch.stack(heads[..., inputs.nope_dim :].chunk(2, dim=-1), dim=-1).flatten(-2)
    weight = torch.cat([heads[..., : inputs.nope_dim], rope], dim=-1).flatten(1)
    return native_mla_preprocess(replace(inputs, q_b_weight=weight), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "mla_preprocess",
    name="nd_mode_on_nz_caches",
    supports=[{**box, "layout": ("PA_NZ",)} for box in rms_norm_cache_path.constraints.boxes],
    mutant_of="rms_norm_cache_path",
    wrong="PKV-06 https://github.com/sgl-project/sglang/pull/14423: NZ by the reader's flag, ND by the writer's",
)
def nd_mode_on_nz_caches(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """Write latents and rope keys in ND order into caches that are read as NZ."""
    on_device = inputs.to(target.device)
    queries = rms_norm_cache_path(inputs, target)
    write_keys(on_device, "PA_BNSD")
    return {**queries, **caches(on_device)}


@npudiff.implementation(
    "mla_preprocess",
    name="pages_of_16_whatever_they_are",
    supports={"layout": ("PA_NZ",), "page_size": (16, 32, 48, 128, 256)},
    mutant_of="native_mla_preprocess",
    wrong="MLA-05 https://github.com/vllm-project/vllm-ascend/pull/88: right for pages of 16, wrong for 128",
)
def pages_of_16_whatever_they_are(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """Write into pages of 16 tokens, whatever the caches' pages are."""
    seen = {
        name: getattr(inputs, name).reshape(-1, getattr(inputs, name).shape[1], 16, getattr(inputs, name).shape[3])
        for name in ("latent_cache", "rope_cache")
    }
    outputs = native_mla_preprocess(replace(inputs, **seen, page_size=16), target)
    return {**outputs, **{name: outputs[name].view(getattr(inputs, name).shape) for name in seen}}
