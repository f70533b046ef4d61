"""Attention of encoders over packed sequences: every row sees all keys of its own sequence, and no others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.reference.attended_requests import ROW_TILE, SCALE
from npudiff.reference.attention_tile import AttentionTile
from npudiff.reference.bounds import Expected
from npudiff.reference.cache_reader import CacheReader, Stretch
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.views import moved


@dataclass(frozen=True)
class EncoderAttentionInputs:
    """One attention call of one layer of a vision tower, an embedding model or a cross attention."""

    query: torch.Tensor
    """``[rows, heads, head_dim]``, bfloat16 or float16: one sequence after the other. Rows beyond
    ``sum(query_lengths)`` are padding, of which nothing is said."""
    key: torch.Tensor
    """``[keys, kv_heads, head_dim]``; query head ``h`` reads KV head ``h // (heads / kv_heads)``. Keys beyond
    ``sum(kv_lengths)`` are padding, which nobody sees."""
    value: torch.Tensor
    """Of the shape and dtype of ``key``."""
    query_lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    """Rows and keys of each sequence. They are the same but for cross attention; either may be 0."""
    scale: float
    """Factor of the scores: of a head that a backend pads, that of the elements which it had before."""

    def to(self, device: str | torch.device) -> EncoderAttentionInputs:
        """Return the same inputs on ``device``; lengths stay on the host."""
        query, key, value = (moved(one, device) for one in (self.query, self.key, self.value))
        return replace(self, query=query, key=key, value=value)


def encoder_attention(inputs: EncoderAttentionInputs) -> dict[str, Expected]:
    """Return attention outputs and log-sum-exp, with bounds.

    Softmax attention of Vaswani et al., "Attention is all you need" (2017), eq. 1, without a mask and within each
    sequence. A row whose sequence has no key has output 0 and an LSE of minus infinity: the sum over no keys.

    Returns
    -------
    dict
        ``output``: ``[rows, heads, head_dim]`` in the query's dtype; ``lse``: float32 ``[rows, heads]``, natural
        logarithm of the sum of exponentials of the scaled scores.

    Raises
    ------
    ValueError
        If shapes contradict each other or lengths are negative, or of more rows or keys than there are.
    """
    _validate(inputs)
    rows, heads, head_dim = inputs.query.shape
    value, bound, by_scale = (torch.zeros(rows, heads, head_dim, dtype=torch.float64) for _ in range(3))
    lse, lse_bound = (torch.zeros(rows, heads, dtype=torch.float64) for _ in range(2))
    bound[sum(inputs.query_lengths) :] = math.inf
    lse_bound[sum(inputs.query_lengths) :] = math.inf
    for own, seen in zip(spans(inputs.query_lengths), spans(inputs.kv_lengths), strict=True):
        reader = SequenceReader(inputs.key[seen], inputs.value[seen])
        for first in range(own.start, own.stop, ROW_TILE):
            tile = slice(first, min(first + ROW_TILE, own.stop))
            parts = _attended(reader, inputs.query[tile], seen.stop - seen.start, inputs.scale)
            value[tile], bound[tile], lse[tile], lse_bound[tile], by_scale[tile] = parts
    return {
        "output": Expected(value, bound, inputs.query.dtype, directions={SCALE: by_scale}),
        "lse": Expected(lse, lse_bound, torch.float32),
    }


class SequenceReader(CacheReader):
    """Reads keys and values of one sequence, ``[keys, kv_heads, dim]`` each, where they lie."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        super().__init__(PagedKV(key[None], value[None], torch.zeros(1, 1, dtype=torch.int32)), 0, len(key))

    def stored(self, first: int, last: int) -> Stretch:
        """See ``CacheReader``."""
        return Stretch(self._kv.key[0, first:last], self._kv.value[0, first:last])


def spans(lengths: Sequence[int]) -> list[slice]:
    """Return where each of packed sequences lies."""
    return [slice(*ends) for ends in itertools.pairwise((0, *itertools.accumulate(lengths)))]


def _attended(reader: SequenceReader, query: torch.Tensor, keys: int, scale: float) -> list[torch.Tensor]:
    """Rows that see the same keys are so many heads of one row, which stands at the last of them."""
    rows, heads, _ = query.shape
    alike = query.transpose(0, 1).flatten(0, 1)[None]
    tile = AttentionTile(reader, alike, keys - 1, scale, None, None)
    return [part.view(heads, rows, *part.shape[2:]).transpose(0, 1) for part in tile.attend()]


def _validate(inputs: EncoderAttentionInputs) -> None:
    query, key = inputs.query, inputs.key
    if query.dim() != 3 or key.dim() != 3 or key.shape != inputs.value.shape:
        shapes = ", ".join(str(list(one.shape)) for one in (query, key, inputs.value))
        raise ValueError(f"query, key and value have three axes, key and value the same, got {shapes}")
    if query.shape[2] != key.shape[2] or not key.shape[1] or query.shape[1] % key.shape[1]:
        raise ValueError(f"query {list(query.shape)} does not fit keys {list(key.shape)}")
    if len(inputs.query_lengths) != len(inputs.kv_lengths):
        raise ValueError(f"{len(inputs.query_lengths)} query lengths, {len(inputs.kv_lengths)} KV lengths")
    for name, lengths, tensor in (("query", inputs.query_lengths, query), ("KV", inputs.kv_lengths, key)):
        if min(lengths, default=0) < 0 or sum(lengths) > len(tensor):
            raise ValueError(f"{name} lengths {lengths} are not of {len(tensor)} rows")
