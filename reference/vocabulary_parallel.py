"""A vocabulary that is split over ranks: its embedding, its logits, and the most likely token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected
from npudiff.reference.linear import Product, product
from npudiff.reference.views import moved_inputs

PLACES = ("whole", "chunks")
"""whole: each rank has all tokens. chunks: each has some of them, in the order of ranks."""

_EXACT = 2.0**24
"""Integers up to which float32 adds without rounding."""


@dataclass(frozen=True)
class VocabularyParallelInputs:
    """One table of embeddings, split over ranks, that is the head of the model as well, and tokens."""

    shards: torch.Tensor
    """``[ranks, rows, hidden]``, bfloat16, float16 or float32. The rows of a rank are those of its part of the
    vocabulary, then its part of what the vocabulary is padded by, then its part of the added vocabulary, then its part
    of what pads that. Rows of padding hold anything."""
    ids: torch.Tensor
    """int32 or int64 ``[tokens]``, for the embedding. Those that are no id have a row of zeros, where there are several
    ranks."""
    states: torch.Tensor
    """``[tokens, hidden]`` of the same dtype, for the logits."""
    vocabulary: int
    """Ids that the model has, from 0 on."""
    added: int
    """Ids behind them, which were added later, as by adapters."""
    multiple: int
    """Vocabulary and added vocabulary are each padded to a multiple of it; a multiple of the number of ranks."""
    counts: tuple[int, ...]
    """Tokens of each rank, where it has some of them."""
    given: str = "whole"
    """Which tokens a rank is given, one of ``PLACES``."""
    returned: str = "whole"
    """Which tokens it returns results of."""

    @property
    def ranks(self) -> int:
        """Ranks that the vocabulary is split over."""
        return len(self.shards)


@dataclass(frozen=True)
class VocabularyPart:
    """What one rank has of it."""

    weight: torch.Tensor
    """``[rows, hidden]``, see ``VocabularyParallelInputs.shards``."""
    ids: torch.Tensor
    """``[tokens]``: all tokens, or those of this rank."""
    states: torch.Tensor
    """``[tokens, hidden]``: likewise."""
    rank: int
    vocabulary: int
    added: int
    multiple: int
    counts: tuple[int, ...]
    given: str
    returned: str
    """As of ``VocabularyParallelInputs``."""

    def to(self, device: str | torch.device) -> VocabularyPart:
        """Return the same on ``device``."""
        return moved_inputs(self, device, copies=())


def rank_part(inputs: VocabularyParallelInputs, rank: int) -> VocabularyPart:
    """Return the inputs of one rank."""
    rows = slice(None)
    if inputs.given == "chunks":
        first = sum(inputs.counts[:rank])
        rows = slice(first, first + inputs.counts[rank])
    return VocabularyPart(
        weight=inputs.shards[rank], ids=inputs.ids[rows], states=inputs.states[rows], rank=rank,
        vocabulary=inputs.vocabulary, added=inputs.added, multiple=inputs.multiple, counts=inputs.counts,
        given=inputs.given, returned=inputs.returned,
    )  # fmt: skip


def rows_of_ranks(inputs: VocabularyParallelInputs, output: str) -> list[int]:
    """Return how many rows of an output each rank returns."""
    del output  # all have as many
    if inputs.returned == "chunks":
        return list(inputs.counts)
    return [len(inputs.ids)] * inputs.ranks


def padded(count: int, multiple: int) -> int:
    """Return a count, padded to a multiple."""
    return -(-count // multiple) * multiple


def places_of_ids(vocabulary: int, added: int, multiple: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rank and row of every id, int64 ``[vocabulary + added]`` each."""
    own, of_added = padded(vocabulary, multiple) // ranks, padded(added, multiple) // ranks
    known, late = torch.arange(vocabulary), torch.arange(added)
    rank = torch.cat([known // own, late // max(of_added, 1)])
    return rank, torch.cat([known % own, own + late % max(of_added, 1)])


def sharded(
    table: torch.Tensor, vocabulary: int, multiple: int, ranks: int, filler: float | torch.Tensor
) -> torch.Tensor:
    """Return ``[vocabulary + added, hidden]`` as the rows of ranks, ``[ranks, rows, hidden]``, padded by a filler."""
    added = len(table) - vocabulary
    rows = (padded(vocabulary, multiple) + padded(added, multiple)) // ranks
    shards = table.new_empty(ranks, rows, table.shape[1])
    shards[:] = filler
    shards[places_of_ids(vocabulary, added, multiple, ranks)] = table
    return shards


def dense_table(inputs: VocabularyParallelInputs) -> torch.Tensor:
    """Return the table in the order of ids, ``[vocabulary + added, hidden]``."""
    return inputs.shards[places_of_ids(inputs.vocabulary, inputs.added, inputs.multiple, inputs.ranks)]


def vocabulary_parallel(inputs: VocabularyParallelInputs) -> dict[str, Expected]:
    """Return what one rank with the whole vocabulary returns, for each rank.

    The embedding of an id is its row; ranks that do not have it add zeros (Shoeybi et al., "Megatron-LM: training
    multi-billion parameter language models using model parallelism", 2019, section 3). Logits are products with all
    rows, in the order of ids, without padding. The most likely token has the largest logit, and the lowest id of those
    that have it.

    Returns
    -------
    dict
        ``embedded``: ``[rows, hidden]``, and ``logits``: ``[rows, vocabulary + added]``, of the dtype of the table;
        ``tokens``: int64 ``[rows]``. Rows are those of all ranks, one after the other.

    Raises
    ------
    ValueError
        If shapes contradict each other, the multiple does not divide by ranks, or counts do not add up.

    Notes
    -----
    One row and zeros add up to that row, in any order and any dtype: the embedding is exact, but for the sign of a
    zero. Logits are accumulated in float32 and rounded to the dtype once: no rank adds anything to another's. Where all
    numbers are integers that float32 adds exactly, and the dtype holds the result, they are exact as well.

    A token may be any whose logit may be the largest one of a correct device; nothing lies outside of the first and the
    last of them. Where there is one, or all of them are exact and equal, it is that, or the first.
    """
    _validate(inputs)
    table, dtype = dense_table(inputs), inputs.shards.dtype
    inside = (inputs.ids >= 0) & (inputs.ids < len(table))
    embedded = torch.zeros(len(inputs.ids), table.shape[1], dtype=torch.float64)
    embedded[inside] = table[inputs.ids[inside].to(torch.int64)].to(torch.float64)
    logits = _logits(inputs.states, table, dtype)
    first, last = _most_likely(logits)
    tokens = (first + last).to(torch.float64) / 2
    once = {
        "embedded": Expected(embedded, torch.zeros_like(embedded), dtype),
        "logits": Expected(logits.value, logits.independent, dtype),
        "tokens": Expected(tokens, (last - first).to(torch.float64) / 2, torch.int64),
    }
    if inputs.returned == "chunks":
        return once
    return {name: _repeated(output, inputs.ranks) for name, output in once.items()}


def _repeated(output: Expected, ranks: int) -> Expected:
    along = (ranks, *[1] * (output.value.dim() - 1))
    return Expected(output.value.repeat(along), output.bound.repeat(along), output.dtype)


def _logits(states: torch.Tensor, table: torch.Tensor, dtype: torch.dtype) -> Product:
    rows, matrix = states.to(torch.float64), table.to(torch.float64).T
    result = product(rows, matrix, dtype)
    if bool((rows == rows.round()).all()) and bool((matrix == matrix.round()).all()):
        exact = (rows.abs() @ matrix.abs() <= _EXACT) & (result.value.to(dtype).to(torch.float64) == result.value)
        return Product(result.value, result.independent.masked_fill(exact, 0.0))
    return result


def ids_that_may_be_most_likely(inputs: VocabularyParallelInputs) -> torch.Tensor:
    """Return which ids a correct device may have for the most likely one of each token, bool ``[tokens, ids]``."""
    logits = _logits(inputs.states, dense_table(inputs), inputs.shards.dtype)
    first, last = _most_likely(logits)
    alone = torch.nn.functional.one_hot(first, logits.value.shape[1]).to(torch.bool)
    return torch.where((first == last).unsqueeze(1), alone, _may_be_largest(logits))


def _may_be_largest(logits: Product) -> torch.Tensor:
    least = (logits.value - logits.independent).amax(dim=1, keepdim=True)
    return logits.value + logits.independent >= least


def _most_likely(logits: Product) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and the last id that may have the largest logit, int64 ``[rows]`` each."""
    may_be = _may_be_largest(logits)
    exact = ((logits.independent == 0) | ~may_be).all(dim=1)
    first = may_be.to(torch.int8).argmax(dim=1)
    last = logits.value.shape[1] - 1 - may_be.flip(1).to(torch.int8).argmax(dim=1)
    return first, torch.where(exact, first, last)


def _validate(inputs: VocabularyParallelInputs) -> None:
    ranks, rows, hidden = inputs.shards.shape
    if inputs.multiple % ranks:
        raise ValueError(f"a multiple of {inputs.multiple} cannot be split over {ranks} ranks")
    wanted = (padded(inputs.vocabulary, inputs.multiple) + padded(inputs.added, inputs.multiple)) // ranks
    if rows != wanted:
        raise ValueError(f"a rank must have {wanted} rows, got {rows}")
    if tuple(inputs.states.shape) != (len(inputs.ids), hidden):
        raise ValueError(f"states must be {[len(inputs.ids), hidden]}, got {list(inputs.states.shape)}")
    for name, place in (("given", inputs.given), ("returned", inputs.returned)):
        if place not in PLACES:
            raise ValueError(f"{name} must be one of {PLACES}, got {place!r}")
    if len(inputs.counts) != ranks or sum(inputs.counts) != len(inputs.ids) or min(inputs.counts) < 0:
        raise ValueError(f"counts {inputs.counts} are not of {len(inputs.ids)} tokens on {ranks} ranks")


def even_counts(tokens: int, ranks: int) -> tuple[int, ...]:
    """Return tokens of ranks of which each but the last ones has as many, as a padded batch is cut."""
    chunk = -(-tokens // ranks)
    return tuple(min(max(tokens - rank * chunk, 0), chunk) for rank in range(ranks))


def starts_of(counts: Sequence[int]) -> list[int]:
    """Return where the tokens of each rank begin."""
    return [sum(counts[:rank]) for rank in range(len(counts))]
