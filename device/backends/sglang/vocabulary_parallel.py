"""sglang's vocabulary over ranks: the embedding, and what its logits processor does with the product of each rank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding

from npudiff import Target, implementation
from npudiff.device.ascend.vocabulary_parallel import (
    Outputs,
    local_logits,
    padded_rows,
    with_most_likely,
    without_padding,
)
from npudiff.device.backends.sglang.rank_world import all_ranks
from npudiff.reference.vocabulary_parallel import VocabularyPart

KNOWN_IDS = {"added": (0,)}
"""What logits processors cut columns to."""


def _all_to_all_is_here() -> str:
    return "" if hasattr(LogitsProcessor, "_tp_lm_head_all_to_all") else "this version has no all-to-all of logits"


@implementation(
    "vocabulary_parallel",
    name="VocabParallelEmbedding",
    supports={"given": ("whole",), "returned": ("whole",)},
    on_device=True,
)
def embedded(inputs: VocabularyPart, target: Target) -> Outputs:
    """VocabParallelEmbedding with the shard of its rank, and the all-reduce of its group."""
    with all_ranks():
        layer = VocabParallelEmbedding(
            inputs.vocabulary + inputs.added, inputs.weight.shape[1], params_dtype=inputs.weight.dtype,
            org_num_embeddings=inputs.vocabulary, padding_size=inputs.multiple,
        )  # fmt: skip
        layer.weight.data = inputs.weight
        with torch.no_grad():
            return {"embedded": layer(inputs.ids).detach()}


@implementation(
    "vocabulary_parallel",
    name="_gather_attn_tp_logits",
    supports={**KNOWN_IDS, "given": ("whole",), "returned": ("whole",), "ranks": (2, 3, 4, 8)},
    on_device=True,
)
def gathered(inputs: VocabularyPart, target: Target) -> Outputs:
    """LogitsProcessor._gather_attn_tp_logits, as with ``--enable-dp-lm-head``."""
    with all_ranks() as group:
        processor: Any = SimpleNamespace(vocab_size=inputs.vocabulary, attn_tp_size=group.world_size)
        logits = LogitsProcessor._gather_attn_tp_logits(processor, local_logits(inputs))
    return with_most_likely(logits[:, : inputs.vocabulary].contiguous())


@implementation(
    "vocabulary_parallel",
    name="_tp_lm_head_all_to_all",
    supports={**KNOWN_IDS, "returned": ("chunks",), "ranks": (2, 3, 4, 8)},
    on_device=True,
    requires=_all_to_all_is_here,
)
def exchanged(inputs: VocabularyPart, target: Target) -> Outputs:
    """LogitsProcessor._tp_lm_head_all_to_all of as many tokens of each rank, cut as the processor does it."""
    with all_ranks():
        logits = LogitsProcessor._tp_lm_head_all_to_all(SimpleNamespace(), local_logits(inputs))
    own = logits[: inputs.counts[inputs.rank], : inputs.vocabulary]
    return with_most_likely(own.contiguous())


@implementation(
    "vocabulary_parallel", name="LogitsProcessor", supports={**KNOWN_IDS, "returned": ("whole",)}, on_device=True
)
def processed(inputs: VocabularyPart, target: Target) -> Outputs:
    """LogitsProcessor._get_logits of all tokens: product, gather, cut."""
    with all_ranks():
        config = SimpleNamespace(vocab_size=inputs.vocabulary)
        processor = LogitsProcessor(config)
        head = SimpleNamespace(weight=inputs.weight)
        metadata = SimpleNamespace(next_token_logits_buffer=None)
        states = padded_rows(inputs, inputs.states)
        logits = processor._get_logits(states, head, metadata)
    return with_most_likely(without_padding(inputs, logits).to(inputs.weight.dtype))
