"""Components with history: the right answer depends on all steps that were taken, and a case is a trace of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from npudiff.compare import Comparison
    from npudiff.component import Subject
    from npudiff.constraints import Constraints
    from npudiff.machine import Judge, Machine


class Session(Protocol):
    """A live object of an implementation beside what the reference remembers."""

    def take(self, step: Any) -> Comparison:  # noqa: ANN401 - a step of any component
        """Take a step on both, and compare what can be seen of them."""


@dataclass(frozen=True)
class History:
    """What a component with history has besides: cases with a field ``steps``, of which every beginning is a case.

    Attributes
    ----------
    machine : callable
        Constraints and judge to a Hypothesis state machine that draws steps.
    open : callable
        Subject and case to a session in which no step has been taken.
    simpler : tuple of callable
        Ways to make a trace simpler: each turns a case into cases that say the same in simpler words, the simplest
        first. They need not be legal. The first way is tried before steps are left out, the others after that, and all
        of them again until none helps.
    runs : float
        Runs of the machine per example: a run has many steps, and costs as much as many cases.
    steps : int
        Steps of each run.
    """

    machine: Callable[[Constraints, Judge], Machine]
    open: Callable[[Subject, Any], Session]
    simpler: tuple[Callable[[Any], Iterable[Any]], ...] = ()
    runs: float = 0.35
    steps: int = 20
