"""From layouts to sequences: sizes, spans of rows, and views [heads, rows, dim] of them.

A layout is a string of axes; a view of one writes through, so that the same function finds a sequence's queries, its
keys and its place in the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from npudiff.device.simulator.fused_attention.axes import row_axis
from npudiff.device.simulator.fused_attention.shapes import query_sizes, value_head_dim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest


@dataclass(frozen=True)
class Geometry:
    """The sizes of a call, whatever its layout."""

    batch: int
    """Sequences."""
    query_rows: int
    """Rows of the query's S axis; where sequences are packed, the longest sequence's."""
    key_rows: int
    """Keys that a sequence can have at most: the S axis, all tokens of a packed key, or what a table row can hold."""
    head_dim: int
    value_dim: int
    """Of query and key without their rotated parts, and of value."""
    single: bool
    """Whether the layout has an S axis and it has length 1: actual query lengths have no effect."""
    decode: bool
    """Whether the call takes the one-query branch (IncreFlashAttention): ``single``, one head dim, no rotated part. It
    ignores pre_tokens, next_tokens and sparse_mode."""


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
    if request.packed:
        ends = request.query_lengths or ()
        batch = len(ends)
        query_rows = max((end - start for start, end in zip((0, *ends), ends, strict=False)), default=0)
    else:
        batch, query_rows = sizes["B"], sizes["S"]
    single = not request.packed and query_rows == 1 and request.names.queries != "several"
    return Geometry(
        batch=batch,
        query_rows=query_rows,
        key_rows=_key_rows(request),
        head_dim=head_dim,
        value_dim=value_dim,
        single=single,
        decode=single and head_dim == value_dim and request.query_rope is None,
    )


def _key_rows(request: FusedAttentionRequest) -> int:
    if request.block_table is not None:
        width = request.block_table.shape[1] if request.block_table.dim() == 2 else 0
        return width * request.block_size
    return request.key.shape[row_axis(request.axes)]


def spans(request: FusedAttentionRequest, geometry: Geometry) -> Iterator[Span]:
    """Yield the sequences of a checked call.

    Query lengths of packed sequences are cumulative; so are their key lengths without paging. All others are per
    sequence, and a list of one length holds for every sequence.
    """
    keys = expand(request.key_lengths, geometry.batch, geometry.key_rows)
    if request.packed:
        ends = request.query_lengths or ()
        for batch, end in enumerate(ends):
            start = ends[batch - 1] if batch else 0
            key_start = keys[batch - 1] if batch and request.block_table is None else 0
            yield Span(batch, start, end - start, key_start, keys[batch] - key_start)
        return
    queries = expand(None if geometry.single else request.query_lengths, geometry.batch, geometry.query_rows)
    for batch in range(geometry.batch):
        yield Span(batch, 0, queries[batch], 0, keys[batch])


def expand(lengths: tuple[int, ...] | None, batch: int, default: int) -> tuple[int, ...]:
    """Give every sequence its length: the default where none is said, the first where one is said for all."""
    if lengths is None:
        return (default,) * batch
    return lengths * batch if len(lengths) == 1 else lengths[:batch]


def rows(tensor: Tensor, axes: str, heads: int, batch: int, window: range) -> Tensor:
    """View some rows of one sequence as [heads, length, dim].

    Parameters
    ----------
    tensor : Tensor
        With the axes named.
    axes : str
        Of B, S or T, N, D, in any order; or with H, heads and dim in one, at the end.
    heads : int
        How many heads the tensor has.
    batch : int
        Which sequence; with a T axis the window alone says it.
    window : range
        Which of its rows; on a T axis they count from the first token of all sequences.

    Returns
    -------
    Tensor
        A view: writing to it writes to ``tensor``.
    """
    if "B" in axes:
        tensor, axes = tensor.select(axes.index("B"), batch), axes.replace("B", "")
    tensor = tensor.narrow(row_axis(axes), window.start, len(window))
    if "H" in axes:
        tensor, axes = tensor.view(len(window), heads, tensor.shape[-1] // heads), "SND"
    return tensor.movedim(axes.index("N"), 0)


def lse_rows(lse: Tensor, batch: int, window: range) -> Tensor:
    """View the log-sum-exp of some rows, [B, N, S, 1] or [T, N, 1], as [heads, length]."""
    return rows(lse, "BNSD" if lse.dim() == 4 else "TND", 0, batch, window)[..., 0]
