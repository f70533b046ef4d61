"""What no source settles of the quantisation and activation operators.

KERNEL is CANN's operator source for A2 and A3, GOLDEN a test's own arithmetic beside it, DOC the documentation of the
operator in torch_npu 2.13.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ties = Literal["half_to_even", "half_away_from_zero"]
"""What becomes of a number in the middle of two integers."""


@dataclass(frozen=True, kw_only=True)
class QuantisationChoices:
    """Attributes of a CANN profile; the comment above each says what is disputed and by whom."""

    # What a NaN becomes as an integer. It arises as 0 * inf in rows of zeros; that the vector unit makes 0 of it is
    # inferred, no source says.
    nan_as_integer: int = 0
