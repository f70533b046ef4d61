"""Drawing one of several options so that cases shrink well, draws stay cheap, and every run draws the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

from hypothesis import strategies as st

from npudiff.constraints import Allowed, Box, allows

Part = TypeVar("Part")

CHOICES = 2**12
"""Most values of one choice; of longer option lists, it reaches this many places, spread from end to end."""

FIRST_CHOICE = 918_273_645_546_372_819
"""Where choices start. Hypothesis mixes literals of the imported local modules into integers, so cases would depend on
what else is imported, and it draws small integers more often than large ones. Up here it does neither: no program
has such literals, and its distribution is flat."""

_SCATTER = 2_654_435_761  # Knuth's multiplicative hash: 2**32 divided by the golden ratio


SOURCE = st.randoms(use_true_random=False)
"""Strategy of what a ``Chooser`` draws from."""


class Chooser:
    """Draws options of one case.

    Every choice is one integer, also among one option. The sequence of choices therefore keeps its alignment when an
    earlier one changes (another box, another page size), which is what lets Hypothesis shrink through such changes.

    The integers come from Hypothesis's shrinkable ``Random`` and not from a strategy each: Hypothesis then has no equal
    parts of a case to copy over each other, which made most cases variations of a few.

    Parameters
    ----------
    draw : callable
        The ``draw`` function of a Hypothesis composite strategy.
    """

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._random = draw(SOURCE)

    @classmethod
    def of(cls, source: Random) -> Chooser:
        """Return a chooser that draws from a ``SOURCE`` which was drawn already."""
        return cls(lambda _: source)

    def pick(self, options: Sequence[Any]) -> Any:  # noqa: ANN401 - the element type of the options
        """Draw one of the options; shrinks towards the first."""
        count = len(options)
        last = FIRST_CHOICE + max(2, min(count, CHOICES)) - 1
        return options[place(self._random.randint(FIRST_CHOICE, last) - FIRST_CHOICE, count)]

    def value(self, box: Box, axis: str, defaults: Sequence[Any]) -> Any:  # noqa: ANN401 - the axis's own type
        """Draw a value of an axis: a default that the box allows, or else anything that it allows."""
        return self.pick(within(defaults, box.get(axis)))

    def several(self, box: Box, axis: str, sizes: Sequence[int], draw_part: Callable[[], Part]) -> tuple[Part, ...]:
        """Draw as many parts as a size says, or now and then fewer.

        Before each part comes a choice to stop. So each part and the choice before it can be left out by themselves,
        and a failure that needs only the last of three parts shrinks to that part.
        """
        most = self.value(box, axis, sizes)
        parts: list[Part] = []
        while len(parts) < most:
            stops = self.pick((True, *[False] * 31))
            if stops and parts and allows(box.get(axis, (len(parts),)), len(parts)):
                break
            parts.append(draw_part())
        return tuple(parts)


def place(choice: int, options: int) -> int:
    """Return which of ``options`` a choice means; 0 is the first.

    Up to ``CHOICES`` options there is a choice for each. Of more, each choice has a stretch of its own and means one
    place in it; the last choice means the last option.
    """
    if options <= CHOICES:
        return min(choice, options - 1)
    start, stop = choice * options // CHOICES, (choice + 1) * options // CHOICES
    if choice == CHOICES - 1:
        return stop - 1
    return start + choice * _SCATTER % 2**32 * (stop - start) // 2**32


def within(defaults: Sequence[Any], allowed: Allowed | None) -> Sequence[Any]:
    """Return the defaults that are allowed, or everything allowed if none of them is."""
    if allowed is None:
        return defaults
    chosen = [value for value in defaults if allows(allowed, value)]
    if chosen:
        return chosen
    return allowed if isinstance(allowed, range) else list(allowed)
