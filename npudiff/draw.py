"""Drawing one of several options so that cases shrink well and draws stay cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from npudiff.constraints import Allowed, Box, allows

_INDEX = st.integers(0, 2**12 - 1)


class Chooser:
    """Draws options of one case.

    Every choice is one integer of the same range, whatever the options are. The sequence of draws therefore keeps its
    alignment when an earlier choice changes (another box, another page size), which is what lets Hypothesis shrink
    through such changes; a strategy per option list would draw nothing for a single option, and cost more to build.

    Parameters
    ----------
    draw : callable
        The ``draw`` function of a Hypothesis composite strategy.
    """

    def __init__(self, draw: Callable[[st.SearchStrategy[int]], int]) -> None:
        self._draw = draw

    def pick(self, options: Sequence[Any]) -> Any:  # noqa: ANN401 - the element type of the options
        """Draw one of the options; shrinks towards the first."""
        return options[self._draw(_INDEX) % len(options)]

    def value(self, box: Box, axis: str, defaults: Sequence[Any]) -> Any:  # noqa: ANN401 - the axis's own type
        """Draw a value of an axis: a default that the box allows, or else anything that it allows."""
        return self.pick(within(defaults, box.get(axis)))


def within(defaults: Sequence[Any], allowed: Allowed | None) -> Sequence[Any]:
    """Return the defaults that are allowed, or everything allowed if none of them is."""
    if allowed is None:
        return defaults
    chosen = [value for value in defaults if allows(allowed, value)]
    if chosen:
        return chosen
    return allowed if isinstance(allowed, range) else list(allowed)
