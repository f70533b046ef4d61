"""What the queries of one sequence may look at: a band, a mask, and rows that are not computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


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
