"""Cases that a chooser draws: given to Hypothesis as a strategy, or drawn without it.

Hypothesis spends two milliseconds on a case: it keeps a tree of all that was drawn, watches each choice, and seeds
whatever random numbers there are. All of that serves to make a failing case smaller. Until one fails, a plain
``Random`` draws from the same functions; then Hypothesis is handed the choices, and shrinks them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase, choices_to_bytes
from hypothesis.errors import HypothesisDeprecationWarning, UnsatisfiedAssumption

from npudiff.draw.chooser import SOURCE, Chooser, Source

CaseT = TypeVar("CaseT")

Draw = Callable[[Chooser], CaseT]
"""A function that draws a case with a chooser."""

_DRAWS: WeakKeyDictionary[st.SearchStrategy[Any], Draw[Any]] = WeakKeyDictionary()

MOST_IN_VAIN = 64
"""Draws in a row that are refused, or were drawn before, after which little is left that can be drawn: Hypothesis,
which knows what it has tried, looks for the rest."""


def chosen(draw: Draw[CaseT]) -> st.SearchStrategy[CaseT]:
    """Return a strategy of what a function draws with a chooser, and with nothing else."""
    strategy = SOURCE.map(lambda source: draw(Chooser(source)))
    _DRAWS[strategy] = draw
    return strategy


def draw_of(strategy: st.SearchStrategy[CaseT]) -> Draw[CaseT] | None:
    """Return the function that draws all of a strategy with a chooser; None of one that was made in another way."""
    return _DRAWS.get(strategy)


@dataclass(frozen=True)
class Drawn(Generic[CaseT]):
    """A case, and the choices that it was made of."""

    case: CaseT
    choices: tuple[int, ...]


def drawn(draw: Draw[CaseT], seed: int | None) -> Iterator[Drawn[CaseT]]:
    """Yield different cases, the simplest first, until most draws are in vain.

    Parameters
    ----------
    draw : callable
        Draws a case.
    seed : int or None
        The same one gives the same cases; None gives others every time.
    """
    source = _Recorded(lambda: 0.0)
    numbers = Random(seed)  # noqa: S311 - no secrets
    seen: set[int] = set()  # hashes, since the cases of a run of days would take gigabytes
    vain = 0
    while vain < MOST_IN_VAIN:
        vain += 1
        case = _once(draw, source)
        if case is not None and hash(case) not in seen:
            vain = 0
            seen.add(hash(case))
            yield Drawn(case, tuple(source.choices))
        source = _Recorded(numbers.random)


def _once(draw: Draw[CaseT], source: Source) -> CaseT | None:
    """Draw a case; return None if it is refused."""
    try:
        with warnings.catch_warnings():  # a user's function may call Hypothesis's assume, which is for its own tests
            warnings.simplefilter("ignore", HypothesisDeprecationWarning)
            return draw(Chooser(source))
    except UnsatisfiedAssumption:
        return None


class _Recorded:
    """A source of choices that keeps them, as Hypothesis would."""

    def __init__(self, fraction: Callable[[], float]) -> None:
        self._fraction = fraction
        self.choices: list[int] = []

    def randint(self, a: int, b: int, /) -> int:
        """Return an integer from ``a`` to ``b``."""
        choice = a + int(self._fraction() * (b - a + 1))
        self.choices.append(choice)
        return choice


class OneExample(ExampleDatabase):
    """What gives Hypothesis the choices of one case that failed and may become smaller; it keeps nothing."""

    def __init__(self, choices: Sequence[int]) -> None:
        super().__init__()
        self._example = choices_to_bytes(choices)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """Yield the choices where cases are asked for that are not the smallest yet."""
        if key.endswith(b".secondary"):
            yield self._example

    def save(self, key: bytes, value: bytes) -> None:
        """Keep nothing."""

    def delete(self, key: bytes, value: bytes) -> None:
        """Forget nothing."""
