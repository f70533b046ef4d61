"""From layouts to sequences: sizes, spans of rows, and views [heads, rows, dim] of them.

The simulated layouts are BSH, BSND, BNSD and TND; a view of one writes through, so that the same function
finds a sequence's queries, its keys and its place in the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from npudiff.device.simulator.fused_attention.shapes import query_sizes, value_head_dim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest

SIMULATED_LAYOUTS = ("BSH", "BSND", "BNSD", "TND")


@dataclass(frozen=True)
class Geometry:
    """The sizes of a call, whatever its layout."""

    batch: int
    """Sequences."""
    query_rows: int
    """Rows of the query's S axis; for TND the longest sequence's."""
    key_rows: int
    """Keys that a sequence can have at most: the S axis, all tokens of a TND key, or what a table row can hold."""
    head_dim: int
    value_dim: int
    """Of query and key, and of value."""
    decode: bool
    """Whether the call takes the one-query branch (IncreFlashAttention): layout with an S axis of length 1 and one head
    dim. It ignores pre_tokens, next_tokens, sparse_mode and actual query lengths."""


@dataclass(frozen=True)
class Span:
    """One sequence of a call: where its queries and its keys are."""

    batch: int
    """Index of the sequence."""
    query_start: int
    query_length: int
    """Rows in the T axis, or in the sequence's own S axis."""
    key_start: int
    key_length: int
    """The same for keys; a paged sequence's keys start at 0 of its table row."""


def measure(request: FusedAttentionRequest) -> Geometry:
    """Read the sizes of a call whose layout is simulated and whose ranks are right."""
    sizes = query_sizes(request)
    head_dim, value_dim = sizes["D"], value_head_dim(request)
    if request.layout == "TND":
        ends = request.query_lengths or ()
        batch = len(ends)
        query_rows = max((end - start for start, end in zip((0, *ends), ends, strict=False)), default=0)
    else:
        batch, query_rows = sizes["B"], sizes["S"]
    return Geometry(
        batch=batch,
        query_rows=query_rows,
        key_rows=_key_rows(request),
        head_dim=head_dim,
        value_dim=value_dim,
        decode=request.layout != "TND" and query_rows == 1 and head_dim == value_dim,
    )


def _key_rows(request: FusedAttentionRequest) -> int:
    if request.block_table is not None:
        width = request.block_table.shape[1] if request.block_table.dim() == 2 else 0
        return width * request.block_size
    return request.key.shape[{"TND": 0, "BNSD": 2}.get(request.layout, 1)]


def spans(request: FusedAttentionRequest, geometry: Geometry) -> Iterator[Span]:
    """Yield the sequences of a checked call.

    TND query lengths are cumulative; key lengths are cumulative in TND without paging, and per sequence
    elsewhere. A list of one length holds for every sequence of the other layouts.
    """
    keys = expand(request.key_lengths, geometry.batch, geometry.key_rows)
    if request.layout == "TND":
        ends = request.query_lengths or ()
        for batch, end in enumerate(ends):
            start = ends[batch - 1] if batch else 0
            key_start = keys[batch - 1] if batch and request.block_table is None else 0
            yield Span(batch, start, end - start, key_start, keys[batch] - key_start)
        return
    queries = expand(None if geometry.decode else request.query_lengths, geometry.batch, geometry.query_rows)
    for batch in range(geometry.batch):
        yield Span(batch, 0, queries[batch], 0, keys[batch])


def expand(lengths: tuple[int, ...] | None, batch: int, default: int) -> tuple[int, ...]:
    """Give every sequence its length: the default where none is said, the first where one is said for all."""
    if lengths is None:
        return (default,) * batch
    return lengths * batch if len(lengths) == 1 else lengths[:batch]


def rows(tensor: Tensor, layout: str, heads: int, batch: int, window: range) -> Tensor:
    """View some rows of one sequence as [heads, length, dim].

    Parameters
    ----------
    tensor : Tensor
        In the layout named: [B, S, heads * dim], [B, S, heads, dim], [B, heads, S, dim] or [T, heads, dim].
    layout : str
        One of ``SIMULATED_LAYOUTS``.
    heads : int
        How many heads the tensor has.
    batch : int
        Which sequence; for TND the window alone says it.
    window : range
        Which of its rows; for TND they count from the first token of all sequences.

    Returns
    -------
    Tensor
        A view: writing to it writes to ``tensor``.
    """
    if layout == "TND":
        return tensor[window.start : window.stop].transpose(0, 1)
    if layout == "BNSD":
        return tensor[batch, :, window.start : window.stop]
    sequence = tensor[batch, window.start : window.stop]
    if layout == "BSH":
        sequence = sequence.view(len(window), heads, sequence.shape[-1] // heads)
    return sequence.transpose(0, 1)


def lse_rows(lse: Tensor, layout: str, batch: int, window: range) -> Tensor:
    """View the log-sum-exp of some rows, [B, N, S, 1] or [T, N, 1], as [heads, length]."""
    if layout == "TND":
        return lse[window.start : window.stop, :, 0].transpose(0, 1)
    return lse[batch, :, window.start : window.stop, 0]
