"""Laws over many draws: by day a third of them, by night all, as ``NPUDIFF_ALL_DRAWS`` says."""

from __future__ import annotations

import os

LEAST = 20


def by_night(count):
    """So many examples by night, and a third by day."""
    return count if os.environ.get("NPUDIFF_ALL_DRAWS") else max(LEAST, count // 3)
