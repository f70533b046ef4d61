"""Who sees whom: sparse modes, bands and masks of one sequence.

Source: the golden of CANN's ``aclnnFusedInferAttentionScoreV4`` tests and the tables of DOC. Row ``i`` and
key ``j`` count from 0 inside the sequence, ``S1`` and ``S2`` are its actual lengths::

    mode                before                    after               keys hidden by
    0, no mask          unlimited                 unlimited           nothing
    0, mask             pre_tokens                next_tokens         mask and band
    1                   unlimited                 unlimited           mask
    2  left-up          unlimited                 0                   band
    3  right-down       unlimited                 S2 - S1             band
    4  band             pre_tokens + S1 - S2      next_tokens + S2 - S1   band

with ``j`` hidden from ``i`` when ``j < i - before`` or ``j > i + after``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import UndefinedBehaviour

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.layouts import Geometry, Span
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile

COMPRESSED_MODES = (2, 3, 4)
"""Modes whose mask is a 2048 x 2048 template of a causal triangle; the band alone decides."""

_ROW_INVALID_CORRECTION = 2


@dataclass(frozen=True)
class Visibility:
    """What the queries of one sequence may look at."""

    queries: int
    keys: int
    """Actual lengths."""
    live_rows: range
    """Rows that are computed. All others are forced to output 0 and log-sum-exp +inf."""
    before: int | None = None
    after: int | None = None
    """The band, anchored at row 0 and key 0; None is unlimited."""
    mask: Tensor | None = None
    """bool, [``queries`` or more, ``keys`` or more]; True hides."""
    elementwise: bool = True
    """Whether the band hides single keys; if not, only whole tiles of keys outside it are left out."""
    zeroes_hidden_rows: bool = False
    """Whether a row that sees no key gives 0 and +inf, instead of the mean of the values."""

    def key_range(self, rows: range) -> tuple[int, int]:
        """Return the first key, and the key after the last, that the band shows to any of some rows."""
        start = 0 if self.before is None else rows[0] - self.before
        stop = self.keys if self.after is None else rows[-1] + self.after + 1
        return max(0, start), min(self.keys, stop)

    def hidden(self, rows: range, start: int, stop: int) -> Tensor | None:
        """Return bool [rows, stop - start], True where a key is hidden, or None where all are seen."""
        mask = None if self.mask is None else self.mask[rows.start : rows.stop, start:stop]
        band = self._outside_band(rows, start, stop) if self.elementwise else None
        if mask is None or band is None:
            return band if mask is None else mask
        return mask | band

    def _outside_band(self, rows: range, start: int, stop: int) -> Tensor | None:
        cuts_front = self.before is not None and start < rows[-1] - self.before
        cuts_back = self.after is not None and stop - 1 > rows[0] + self.after
        if not (cuts_front or cuts_back):
            return None
        offset = torch.arange(start, stop) - torch.arange(rows.start, rows.stop).unsqueeze(1)
        outside = torch.zeros_like(offset, dtype=torch.bool)
        if self.before is not None:
            outside |= offset < -self.before
        if self.after is not None:
            outside |= offset > self.after
        return outside


def see(request: FusedAttentionRequest, geometry: Geometry, span: Span, profile: CannProfile) -> Visibility:
    """Say what one sequence of a checked call may look at, before any quirk."""
    queries, keys = span.query_length, span.key_length
    everything = range(queries if keys else 0)
    mask = None
    if request.mask is not None and (geometry.decode or request.sparse_mode not in COMPRESSED_MODES):
        mask = sequence_mask(request.mask, span.batch, decode=geometry.decode)
    corrected = bool(request.inner_precise & _ROW_INVALID_CORRECTION) or profile.fully_hidden_row == "zero"
    mode = request.sparse_mode
    if geometry.decode or mode == 1 or (mode == 0 and mask is None):
        return Visibility(queries, keys, everything, mask=mask, zeroes_hidden_rows=corrected)
    before, after = _band(request, queries, keys)
    if mode == 4 and request.layout == "TND" and queries == 1 and profile.tnd_band_at_query_length_one == "ignored":
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
    template = request.mask
    while template.dim() > 2:
        template = template[0]
    if template.diagonal(0).any() or not template.diagonal(1).all():
        raise UndefinedBehaviour(
            f"{request.operator}: atten_mask of sparse_mode {request.sparse_mode} must be "
            "torch.triu(torch.ones(2048, 2048), diagonal=1); hardware gives wrong values for another content"
        )
