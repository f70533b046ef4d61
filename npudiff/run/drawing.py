"""Drawing the cases of a job: remembered ones, then others, and smaller ones in place of the first that fails.

A chooser's cases are drawn without Hypothesis, which costs more than most of what is judged (``npudiff.draw.chosen``).
Hypothesis shrinks them, remembers what failed, and draws those of a component with a strategy of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import seed as with_seed
from hypothesis.database import ExampleDatabase
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy

from npudiff.draw.chooser import usual_sizes
from npudiff.draw.chosen import Draw, OneExample, draw_of, drawn
from npudiff.draw.presets import UNBOUNDED_EXAMPLES, hypothesis_settings, without_constants_of_code
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.anything import AnyCase
from npudiff.model.job import Budget, Job

MOST_LEFT = 256
"""Cases that Hypothesis draws where most draws were in vain. None may be new, and then nobody looks at a clock."""


class Fails(Exception):
    """A case fails."""


def draw_cases(job: Job, budget: Budget, each: Callable[[AnyCase], None]) -> None:
    """Draw the cases of a job, and have Hypothesis shrink the first for which ``each`` raises.

    What is remembered comes first. Hypothesis draws as well where a component has a strategy of its own, and what is
    left where nearly all that can be drawn was drawn.

    Raises
    ------
    Unsatisfiable
        If no case can be drawn.
    """
    strategy = job.subject.component.strategy(job.drawn_within)
    draw = draw_of(strategy)
    with without_constants_of_code(), contextlib.nullcontext() if job.prop is EQUIVALENCE else usual_sizes():
        if draw is None:
            _with_hypothesis(job, budget, strategy, each)
        else:
            _with_chooser(job, budget, strategy, draw, each)


def _with_chooser(
    job: Job, budget: Budget, strategy: SearchStrategy[Any], draw: Draw[Any], each: Callable[[AnyCase], None]
) -> None:
    """Draw cases that a chooser draws, without Hypothesis until one fails."""
    once = _Once(each, budget.examples or UNBOUNDED_EXAMPLES)
    if _remembers(job, budget):
        with contextlib.suppress(Unsatisfiable):  # of another version
            _with_hypothesis(job, budget, strategy, once, generate=False)
    cases = drawn(draw, budget.seed_of(job))
    while once.left:
        one = next(cases, None)
        if one is None:
            with contextlib.suppress(Unsatisfiable) if once.given else contextlib.nullcontext():
                _with_hypothesis(job, replace(budget, examples=min(once.left, MOST_LEFT)), strategy, once)
            return
        try:
            once(one.case)
        except Fails:
            if budget.shrink or budget.example_database_of(job) is not None:
                _with_hypothesis(job, budget, strategy, once, begin=OneExample(one.choices), generate=False)
            raise


class _Once:
    """Gives each case once, and so many of them, until one fails; then whatever Hypothesis tries in place of it."""

    def __init__(self, each: Callable[[AnyCase], None], most: int) -> None:
        self._each, self.left = each, most
        self.given: set[int] = set()
        self._failed = False

    def __call__(self, case: AnyCase) -> None:
        """Give a case, if it has not been given."""
        if not self._failed:
            if hash(case) in self.given or not self.left:
                return
            self.given.add(hash(case))
            self.left -= 1
        try:
            self._each(case)
        except Fails:
            self._failed = True
            raise


def _remembers(job: Job, budget: Budget) -> bool:
    """Whether a failing case of the job is remembered somewhere."""
    return has_cases(budget.example_database_of(job)) or has_cases(budget.shared_database_of(job))


def has_cases(memory: Path | None) -> bool:
    """Whether anything is in a folder in which failing cases are remembered, if there is one."""
    return memory is not None and memory.is_dir() and any(memory.iterdir())


def _with_hypothesis(
    job: Job,
    budget: Budget,
    strategy: SearchStrategy[Any],
    each: Callable[[AnyCase], None],
    *,
    begin: ExampleDatabase | None = None,
    generate: bool = True,
) -> None:
    """Have Hypothesis draw, and shrink."""
    seed = budget.seed_of(job)

    def test(case: Any) -> None:  # noqa: ANN401 - a case of any component
        each(case)

    configured = hypothesis_settings(
        budget.examples or UNBOUNDED_EXAMPLES,
        deterministic=budget.deterministic,
        seeded=seed is not None,
        shrink=budget.shrink,
        memory=budget.example_database_of(job),
        shared=budget.shared_database_of(job),
        begin=begin,
        generate=generate,
    )
    wrapped = given(case=strategy)(test)
    run = configured(
        wrapped if seed is None else with_seed(seed)(wrapped)
    )  # a seed that came later would take the memory
    run()
