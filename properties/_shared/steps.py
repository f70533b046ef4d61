"""Steps of a trace in words."""

from __future__ import annotations

from collections.abc import Sequence

MOST_STEPS, MOST_LETTERS = 12, 200
"""What is shown of a trace: a line that is longer nobody reads."""


def steps_text(steps: Sequence[str]) -> str:
    """Return steps in one line; of many, or of long ones, the last."""
    shown: list[str] = []
    for text in reversed(steps[-MOST_STEPS:]):
        if shown and sum(map(len, shown)) + len(text) > MOST_LETTERS:
            break
        shown.insert(0, text)
    before = len(steps) - len(shown)
    return " · ".join([*([f"{before} steps before"] if before > 0 else []), *shown])
