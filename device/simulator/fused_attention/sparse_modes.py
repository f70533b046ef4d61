"""Who sees whom: what a call's sparse mode, band and mask show to one sequence.

Source: the golden of CANN's ``aclnnFusedInferAttentionScoreV4`` tests and the tables of DOC. Row ``i`` and
key ``j`` count from 0 inside the sequence, ``S1`` and ``S2`` are its actual lengths::

    mode                before                    after               keys hidden by
    0, no mask          unlimited                 unlimited           nothing
    0, mask             pre_tokens                next_tokens         mask and band
    1                   unlimited                 unlimited           mask
    2  left-up          unlimited                 0                   band
    3  right-down       unlimited                 S2 - S1             band
    4  band             pre_tokens + S1 - S2      next_tokens + S2 - S1   band
    9  tree             unlimited                 unlimited           mask, [S1, S1] of the last S1 keys

with ``j`` hidden from ``i`` when ``j < i - before`` or ``j > i + after``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import UndefinedBehaviour
from npudiff.device.simulator.fused_attention.layouts import spans
from npudiff.device.simulator.fused_attention.visibility import Visibility
from npudiff.device.simulator.tried import values_are_there

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.layouts import Geometry, Span
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile

COMPRESSED_MODES = (2, 3, 4)
"""Modes whose mask is a 2048 x 2048 template of a causal triangle; the band alone decides."""

TREE_MODE = 9
"""The mode whose mask is a tree of drafts, over as many of the last keys as there are queries."""

_ROW_INVALID_CORRECTION = 2


def see(request: FusedAttentionRequest, geometry: Geometry, span: Span, profile: CannProfile) -> Visibility:
    """Say what one sequence of a checked call may look at, before any quirk."""
    queries, keys = span.query_length, span.key_length
    everything = range(queries if keys else 0)
    mask = None
    if request.mask is not None and request.sparse_mode == TREE_MODE and not geometry.decode:
        mask = _tree(request, request.mask, geometry, span)
    elif request.mask is not None and (geometry.decode or request.sparse_mode not in COMPRESSED_MODES):
        mask = sequence_mask(request.mask, span.batch, decode=geometry.decode)
    corrected = bool(request.inner_precise & _ROW_INVALID_CORRECTION) or profile.fully_hidden_row == "zero"
    mode = request.sparse_mode
    if geometry.decode or mode in (1, TREE_MODE) or (mode == 0 and mask is None):
        return Visibility(queries, keys, everything, mask=mask, zeroes_hidden_rows=corrected)
    before, after = _band(request, queries, keys)
    if _ignores_band(request, geometry, queries, profile):
        before = after = None
    return Visibility(
        queries=queries,
        keys=keys,
        live_rows=_live_rows(everything, keys, before, after),
        before=before,
        after=after,
        mask=mask,
        elementwise=mode != 0 or profile.mode_0_band == "elementwise",
        zeroes_hidden_rows=corrected,
    )


def _ignores_band(request: FusedAttentionRequest, geometry: Geometry, queries: int, profile: CannProfile) -> bool:
    if request.packed:
        one_query = request.sparse_mode == 4 and queries == 1
        return one_query and profile.tnd_band_at_query_length_one == "ignored"
    explicit = request.sparse_mode in (0, 4)
    return explicit and geometry.single and profile.band_at_query_length_one == "ignored"


def _tree(request: FusedAttentionRequest, mask: Tensor, geometry: Geometry, span: Span) -> Tensor:
    """Return one sequence's mask as bool [rows, keys]: its tree over the last keys, and nothing hidden before."""
    rows = span.query_length
    if request.packed:
        start = sum(other.query_length**2 for other in spans(request, geometry) if other.batch < span.batch)
        tree = mask[start : start + rows * rows].view(rows, rows)
    else:
        tree = mask[span.batch, :rows, :rows]
    hidden = torch.zeros(rows, max(rows, span.key_length), dtype=torch.bool)
    hidden[:, hidden.shape[1] - rows :] = tree.to(torch.bool)
    return hidden


def _band(request: FusedAttentionRequest, queries: int, keys: int) -> tuple[int | None, int | None]:
    if request.sparse_mode == 2:
        return None, 0
    if request.sparse_mode == 3:
        return None, keys - queries
    if request.sparse_mode == 4:
        return request.pre_tokens + queries - keys, request.next_tokens + keys - queries
    return request.pre_tokens, request.next_tokens


def _live_rows(everything: range, keys: int, before: int | None, after: int | None) -> range:
    """Leave out the rows whose band ends before key 0 or begins after the last key."""
    start = 0 if after is None else max(0, -after)
    stop = len(everything) if before is None else min(len(everything), keys + before)
    return range(start, max(start, stop))


def sequence_mask(mask: Tensor, batch: int, *, decode: bool) -> Tensor:
    """Return one sequence's part of a full mask as bool [rows, keys], or [1, keys] for one query.

    A rank 2 mask is [rows, keys] for several queries and [batch, keys] for one.
    """
    if mask.dim() == 2:
        part = mask[batch % mask.shape[0]].unsqueeze(0) if decode else mask
    else:
        part = mask[batch % mask.shape[0]]
        part = part[0] if mask.dim() == 4 else part
    return part.to(torch.bool)


def check_template(request: FusedAttentionRequest, geometry: Geometry) -> None:
    """Look at the border of a compressed mask's triangle.

    The operator copies tiles of the template wherever the band's edge runs, so another content gives wrong
    values without an error. DOC makes the caller answer for it; one of its own examples has it inverted.

    Raises
    ------
    UndefinedBehaviour
        The diagonal is not all 0 or the one above not all 1.
    """
    if request.mask is None or geometry.decode or request.sparse_mode not in COMPRESSED_MODES:
        return
    if not values_are_there():  # a mask may be made by the graph that is captured
        return
    template = request.mask
    while template.dim() > 2:
        template = template[0]
    if template.diagonal(0).any() or not template.diagonal(1).all():
        raise UndefinedBehaviour(
            f"{request.check.operator}: atten_mask of sparse_mode {request.sparse_mode} must be "
            "torch.triu(torch.ones(2048, 2048), diagonal=1); hardware gives wrong values for another content"
        )
