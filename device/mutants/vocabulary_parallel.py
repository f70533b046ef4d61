"""Wrong ways of splitting a vocabulary over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist

from npudiff import Target, mutant
from npudiff.device.ascend.vocabulary_parallel import (
    Outputs,
    Part,
    embedding_of_static_buffers,
    exchanged_logits,
    gathered_logits,
    largest_of_ranks,
    local_embedding,
    local_logits,
    masked_embedding,
    masked_ids,
    of_all_columns,
    own_maximum,
    own_rows,
    padded_rows,
    part_of,
    reduced,
    reduced_arg_max,
    side_by_side,
    with_most_likely,
    without_padding,
)
from npudiff.reference.vocabulary_parallel import VocabularyPart

_SEVERAL = {"ranks": (2, 3, 4, 8)}
_ADDED = {"added": range(1, 2**12)}


def embedded_by(inputs: VocabularyPart, part: Part) -> Outputs:
    """Look up ids as if the rank had another part."""
    ids = padded_rows(inputs, inputs.ids)
    return {"embedded": reduced(inputs, local_embedding(inputs, ids, part))}


@mutant(
    masked_embedding,
    "vllm-project/vllm/pull/20843: padding is not counted where added rows begin",
    supports=_ADDED,
)
def added_rows_behind_own_ids(inputs: VocabularyPart, target: Target) -> Outputs:
    """Take the row behind the last id of the rank's part for the first added one."""
    part = part_of(inputs)
    return embedded_by(inputs, replace(part, padded=part.end - part.start))


@mutant(
    masked_embedding,
    "sglang srt/layers/vocab_parallel_embedding.py 138: the end of a part is no id of it",
    supports=_SEVERAL,
)
def end_of_a_part_included(inputs: VocabularyPart, target: Target) -> Outputs:
    """Look up the first id of the next rank as well."""
    part = part_of(inputs)
    return embedded_by(inputs, replace(part, end=part.end + 1))


@mutant(
    masked_embedding,
    "sglang srt/layers/vocab_parallel_embedding.py 555: rows of ids of other ranks are zeroed",
    supports=_SEVERAL,
)
def ids_of_others_read_the_first_row(inputs: VocabularyPart, target: Target) -> Outputs:
    """Leave the row in that stands in for ids of others."""
    places, _ = masked_ids(padded_rows(inputs, inputs.ids), part_of(inputs))
    return {"embedded": reduced(inputs, torch.nn.functional.embedding(places.long(), inputs.weight))}


@mutant(
    masked_embedding,
    "sgl-project/sglang/pull/10860: the table is split over one group, and rows are added up over another one",
    supports={**_SEVERAL, "returned": ("whole",)},
)
def rows_of_one_rank_alone(inputs: VocabularyPart, target: Target) -> Outputs:
    """Add up over a group of one rank."""
    ids = padded_rows(inputs, inputs.ids)
    return {"embedded": without_padding(inputs, local_embedding(inputs, ids, part_of(inputs)))}


@mutant(
    masked_embedding,
    "vllm-project/vllm-ascend/pull/9488: what is added up over ranks is added up again",
    supports={**_SEVERAL, "returned": ("whole",)},
)
def added_up_twice(inputs: VocabularyPart, target: Target) -> Outputs:
    """All-reduce the rows twice."""
    outputs = dict(masked_embedding(inputs, target))
    dist.all_reduce(outputs["embedded"])
    return outputs


@mutant(
    masked_embedding,
    "vllm-project/vllm/pull/43737: what is gathered of ranks is padded for each of them, and not behind all of them",
    supports={**_SEVERAL, "given": ("chunks",), "returned": ("whole",), "tokens": range(2, 2**17 + 1)},
)
def padding_behind_all_tokens(inputs: VocabularyPart, target: Target) -> Outputs:
    """Cut the padding of all ranks behind the last one."""
    rows = local_embedding(inputs, padded_rows(inputs, inputs.ids), part_of(inputs))
    dist.all_reduce(rows)
    return {"embedded": rows[: sum(inputs.counts)].contiguous()}


@mutant(
    embedding_of_static_buffers,
    "vllm-project/vllm-ascend/pull/16934: batches of data-parallel ranks are not padded to one length",
    supports={**_SEVERAL, "division": ("uneven", "one has all")},
    stateful=True,
)
def buffers_of_own_tokens() -> Callable[[VocabularyPart, Target], Outputs]:
    """Have buffers as long as the rank's own batch is."""

    def looked_up(inputs: VocabularyPart, target: Target) -> Outputs:
        own = replace(inputs, counts=(len(inputs.ids),) * len(inputs.counts))
        return embedded_by(own, part_of(inputs))

    return looked_up


@mutant(
    gathered_logits,
    "mirage-project/mirage/issues/751: rows of padding are zeros, and so are their logits, which may be the largest",
    supports={"added": (0,), "recipe": ("negative",)},
)
def padding_may_be_most_likely(inputs: VocabularyPart, target: Target) -> Outputs:
    """Look for the largest logit before padding is cut."""
    every = side_by_side(local_logits(inputs))
    logits = without_padding(inputs, of_all_columns(inputs, every))
    return {"logits": logits, "tokens": without_padding(inputs, every).argmax(dim=-1)}


@mutant(
    gathered_logits,
    "vllm-project/vllm/pull/20843: columns of added ids are between those of ranks, and not behind all of them",
    supports={**_SEVERAL, **_ADDED},
)
def columns_as_they_are_gathered(inputs: VocabularyPart, target: Target) -> Outputs:
    """Cut what is behind as many columns as there are ids."""
    every = side_by_side(local_logits(inputs))[:, : inputs.vocabulary + inputs.added]
    return with_most_likely(without_padding(inputs, every))


@mutant(
    exchanged_logits,
    "vllm-project/vllm-ascend/pull/12923: what is exchanged has ranks first, and columns of a token apart",
    supports=_SEVERAL,
)
def exchanged_without_transposition(inputs: VocabularyPart, target: Target) -> Outputs:
    """Take what was received for logits of tokens one after the other."""
    logits = local_logits(inputs)
    ranks, own = dist.get_world_size(), logits.shape[1]
    received = torch.empty_like(logits)
    dist.all_to_all_single(received, logits)
    every = of_all_columns(inputs, received.view(-1, ranks * own))
    return with_most_likely(every[: inputs.counts[inputs.rank]])


@mutant(
    exchanged_logits,
    "vllm-project/vllm-ascend/pull/1956: the last axis of an operator is at most 65,535 long",
    supports={"vocabulary": range(65536, 2**18 + 1), "hidden": range(1, 17)},
)
def columns_up_to_a_limit(inputs: VocabularyPart, target: Target) -> Outputs:
    """Leave columns beyond the limit as memory has them."""
    outputs = exchanged_logits(inputs, target)
    logits = outputs["logits"].clone()
    logits[:, 65535:] = 0.0
    return with_most_likely(logits)


@mutant(
    reduced_arg_max,
    "vllm_ascend/sample/sampler.py 100: ids of a rank begin at its number times its own columns, of which the last "
    "ranks have fewer",
    supports={**_SEVERAL, "added": (0,)},
)
def own_columns_times_rank(inputs: VocabularyPart, target: Target) -> Outputs:
    """Count on every rank having as many ids as this one."""
    part = part_of(inputs)
    value, ids = own_maximum(inputs, local_logits(inputs))
    return chosen(inputs, value, ids - part.start + inputs.rank * (part.end - part.start))


def chosen(inputs: VocabularyPart, value: torch.Tensor, ids: torch.Tensor) -> Outputs:
    """Choose among ranks."""
    tokens = largest_of_ranks(side_by_side(value.unsqueeze(1)), side_by_side(ids.unsqueeze(1)))
    return {"tokens": own_rows(inputs, tokens)}


@mutant(
    reduced_arg_max,
    "vllm-project/vllm-ascend/issues/16396: places among candidates are taken for ids of the vocabulary",
    supports=_SEVERAL,
)
def places_on_a_rank(inputs: VocabularyPart, target: Target) -> Outputs:
    """Gather places among the rank's own columns."""
    value, ids = own_maximum(inputs, local_logits(inputs))
    return chosen(inputs, value, ids - part_of(inputs).start)


@mutant(
    reduced_arg_max,
    "sgl-project/sglang/pull/37106: of equal logits of several ranks the lowest id is meant",
    supports={**_SEVERAL, "recipe": ("ties",)},
)
def last_rank_of_equal_ones(inputs: VocabularyPart, target: Target) -> Outputs:
    """Choose the last rank that has the largest logit."""
    value, ids = own_maximum(inputs, local_logits(inputs))
    values, candidates = side_by_side(value.unsqueeze(1)), side_by_side(ids.unsqueeze(1))
    rank = values.shape[1] - 1 - values.flip(1).argmax(dim=1, keepdim=True)
    return {"tokens": own_rows(inputs, candidates.gather(1, rank).squeeze(1))}


@mutant(
    reduced_arg_max,
    "sgl-project/sglang/pull/37106: an id that travels beside its logit needs the digits that it has",
    supports={**_SEVERAL, "dtype": ("bfloat16",), "vocabulary": range(513, 2**18 + 1)},
)
def ids_in_the_dtype_of_logits(inputs: VocabularyPart, target: Target) -> Outputs:
    """Pack logit and id into one tensor of the logits' dtype."""
    value, ids = own_maximum(inputs, local_logits(inputs))
    packed = torch.stack([value, ids.to(value.dtype)], dim=1)
    pairs = side_by_side(packed).view(len(packed), -1, 2)
    return {"tokens": own_rows(inputs, largest_of_ranks(pairs[..., 0], pairs[..., 1].long()))}
