"""vllm-ascend's vocabulary over ranks: both forms of its embedding, the exchange of logits, and the greedy sampler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from vllm_ascend.ops import vocab_parallel_embedding as embedding
from vllm_ascend.sample import sampler

from npudiff import Target, implementation
from npudiff.device.ascend.vocabulary_parallel import (
    Outputs,
    local_logits,
    own_rows,
    part_of,
    with_most_likely,
)
from npudiff.device.backends.rank_group import RankGroup
from npudiff.device.backends.vllm_ascend.rank_world import groups_of
from npudiff.device.backends.vllm_ascend.world import ascend_configuration, parameter
from npudiff.reference.vocabulary_parallel import VocabularyPart

KNOWN_IDS = {"added": (0,)}
"""What logits are cut to."""

CAPACITY = 64
"""Tokens of a rank that buffers have room for, where a case does not have more."""


def _capacity(inputs: VocabularyPart) -> int:
    return -(-max(*inputs.counts, 1) // CAPACITY) * CAPACITY


@contextlib.contextmanager
def _groups(inputs: VocabularyPart, *, over_data_ranks: bool) -> Iterator[RankGroup]:
    group = RankGroup()
    names = ("get_tp_group", "get_embed_tp_group", "get_lmhead_tp_group")
    with groups_of(
        embedding, dict.fromkeys(names, group), embedding_tp_enable=lambda: over_data_ranks,
        lmhead_tp_enable=lambda: False, get_potential_max_tokens=lambda: _capacity(inputs),
    ):  # fmt: skip
        yield group


def _embedded(inputs: VocabularyPart, *, over_data_ranks: bool) -> Outputs:
    with _groups(inputs, over_data_ranks=over_data_ranks):
        layer = embedding.AscendVocabParallelEmbedding(
            inputs.vocabulary + inputs.added, inputs.weight.shape[1], inputs.weight.dtype, inputs.vocabulary,
            inputs.multiple, prefix="model.embed_tokens",
        )  # fmt: skip
        layer.weight = parameter(inputs.weight)
        with torch.no_grad():
            return {"embedded": layer.forward(inputs.ids).detach().clone()}


@implementation(
    "vocabulary_parallel",
    name="AscendVocabParallelEmbedding",
    supports={"given": ("whole",), "returned": ("whole",)},
    on_device=True,
)
def embedded(inputs: VocabularyPart, target: Target) -> Outputs:
    """AscendVocabParallelEmbedding with the all-reduce of tensor-parallel ranks."""
    return _embedded(inputs, over_data_ranks=False)


@implementation(
    "vocabulary_parallel",
    name="AscendVocabParallelEmbedding_embed_tp",
    supports={"given": ("chunks",), "returned": ("chunks",)},
    on_device=True,
    requires=lambda: (
        "" if hasattr(embedding, "get_potential_max_tokens") else "this version has no buffers of a fixed capacity"
    ),
)
def embedded_over_data_ranks(inputs: VocabularyPart, target: Target) -> Outputs:
    """The same over data-parallel ranks, through buffers of a fixed capacity."""
    return _embedded(inputs, over_data_ranks=True)


@implementation(
    "vocabulary_parallel",
    name="lmhead_all_to_all",
    supports={**KNOWN_IDS, "returned": ("chunks",)},
    on_device=True,
    requires=lambda: "" if hasattr(embedding, "lmhead_all_to_all") else "this version has no lmhead_all_to_all",
)
def exchanged(inputs: VocabularyPart, target: Target) -> Outputs:
    """lmhead_all_to_all, cut as _get_logits_lmheadtp does it."""
    logits = embedding.lmhead_all_to_all(local_logits(inputs), RankGroup())
    return with_most_likely(logits[: inputs.counts[inputs.rank], : inputs.vocabulary].contiguous())


@implementation(
    "vocabulary_parallel",
    name="greedy_sample_reduced",
    supports=KNOWN_IDS,
    on_device=True,
    requires=lambda: "" if hasattr(sampler, "get_tp_group") else "this version does not sample over ranks",
)
def sampled(inputs: VocabularyPart, target: Target) -> Outputs:
    """AscendSampler.greedy_sample with ``enable_reduce_sample``, of the rank's own columns as _get_logits cuts them."""
    part = part_of(inputs)
    logits = local_logits(inputs)[..., : part.end - part.start]
    config = ascend_configuration(enable_reduce_sample=True)
    with groups_of(sampler, {"get_tp_group": RankGroup()}, get_ascend_config=lambda: config):
        tokens = sampler.AscendSampler.greedy_sample(logits)
    return {"tokens": own_rows(inputs, tokens)}
