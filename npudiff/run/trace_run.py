"""The traces of one job of a component with history: a state machine draws them, and each step is judged at once."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from hypothesis import seed as with_seed
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from npudiff.draw.presets import hypothesis_settings
from npudiff.judge.judge import Judge
from npudiff.model.component import History, NotApplicable
from npudiff.model.job import Budget
from npudiff.model.outcome import Failure, Outcome
from npudiff.run.case_run import CaseRun, Fails, Progress, Stop

RUNS_AT_ONCE = 9
"""Runs of a machine for which Hypothesis is called once. From the tenth on it copies steps of a run over each other, so
that most runs are variations of a few; the first nine, but for the simplest of all, are drawn afresh."""


class TraceRun(CaseRun):
    """Runs drawn traces of one job; it is the judge of the machine that draws them.

    A trace that fails is shrunk here and not by Hypothesis: steps are left out, and what is left is made simpler as the
    component knows how. It takes a fraction of the time and ends with fewer steps, since most changes to Hypothesis's
    choices give another trace and not a simpler one.

    Parameters
    ----------
    outcome, budget, progress, judge
        As of ``CaseRun``.
    history : History
        What the component says of its machine.
    """

    def __init__(self, outcome: Outcome, budget: Budget, progress: Progress, judge: Judge, history: History) -> None:
        super().__init__(outcome, budget, progress, judge)
        self._history = history
        self._seen: dict[Any, Any] = {}
        self._place = self._seen
        self._applies, self._counted = True, False

    def with_hypothesis(self) -> None:
        """Run the state machine until there were enough runs, or one fails."""
        budget = self.budget
        configured = hypothesis_settings(
            RUNS_AT_ONCE,
            deterministic=budget.deterministic,
            seeded=budget.deterministic or budget.drawn_with is not None,
            shrink=False,
            memory=budget.example_database_of(self.outcome.job),
            shared=budget.shared_database_of(self.outcome.job),
            steps=1 + (budget.steps or self._history.steps),  # Hypothesis counts the opening
        )
        for batch in itertools.count():
            before = self.outcome.cases
            try:
                run_state_machine_as_test(self._factory(batch), settings=configured)
            except Flaky:  # or a run that was stopped, which looks like a machine that draws less than it did
                if not self._over:
                    raise
            if self._over or self.outcome.cases == before:  # or all was drawn that can be drawn
                return

    def case(self, case: Any) -> None:  # noqa: ANN401 - a case of any component with history
        """Run a trace that is there as a whole."""
        try:
            self._require(case)
        except NotApplicable as error:
            self.outcome.not_applicable[str(error)] += 1
            return
        self.begin(replace(case, steps=()))
        try:
            for count in range(1, len(case.steps) + 1):
                self.take(replace(case, steps=case.steps[:count]))
        finally:
            self.end(case)

    def begin(self, case: Any) -> None:  # noqa: ANN401 - a case of any component with history
        """Begin a trace, unless there were enough."""
        self.judge.begin()
        self._place = self._seen
        self._applies, self._counted = True, False
        if self._over and self.outcome.failure is None:
            raise Stop
        self.take(case)

    def take(self, case: Any) -> None:  # noqa: ANN401 - a case of any component with history
        """Judge a trace that has one more step; raises ``Fails`` if the property does not hold."""
        if self.outcome.failure is not None:
            if case == self.outcome.failure.case:
                raise Fails
        elif self._applies:
            self._check_time()
            newest = case.steps[-1] if case.steps else case
            if newest not in self._place and self._run_generated_case(case):
                raise Fails
            self._place = self._place.setdefault(newest, {})  # a tree of all traces that hold

    def end(self, case: Any) -> None:  # noqa: ANN401 - a case of any component with history
        """Count the regions of a trace of which anything was new."""
        features = self.outcome.job.subject.component.features(case)
        if self._counted:
            self.outcome.features.update(features)
            self.progress(self.outcome)

    def conclude(self) -> None:
        """Shrink a trace that failed, and walk the smallest one once more from its beginning."""
        if self.outcome.failure is not None and self.budget.shrink:
            with contextlib.suppress(Stop):
                self._shrink()
        super().conclude()

    @property
    def _over(self) -> bool:
        """Whether there were enough runs, or the time is up."""
        enough = self.outcome.cases - self.given_cases == self.budget.examples
        return (enough and not self.gives) or self.time_is_up

    def _factory(self, batch: int) -> Any:  # noqa: ANN401 - Hypothesis takes a function for a class
        constraints, seed = self.outcome.job.drawn_within, self.budget.drawn_with

        def machine() -> RuleBasedStateMachine:
            return self._history.machine(constraints, self)

        if seed is None and not self.budget.deterministic:
            return machine
        return with_seed(((seed or 0) << 32) + batch)(machine)

    def _shrink(self) -> None:
        """Make the failing trace simpler in every way until none helps any more."""
        ways = (*self._history.simpler[:1], _without_steps, *self._history.simpler[1:])
        before = None
        while before is not self.outcome.failure:
            before = self.outcome.failure
            for way in ways:
                while self._shrinks(way):
                    pass

    def _shrinks(self, way: Callable[[Any], Iterable[Any]]) -> bool:
        """Look for a simpler trace that fails as well; the outcome has it if there is one."""
        failure = self.outcome.failure
        for case in () if failure is None else way(failure.case):
            self._check_time()
            if case in self._passed:
                continue
            self._passed.add(case)
            found = self._judge_if_legal(case)
            if found is not None:
                self._record(found)
                return True
        return False

    def _judge_if_legal(self, case: Any) -> Failure | None:  # noqa: ANN401 - a case of any component with history
        try:
            self.outcome.job.subject.component.check_case(case)
        except ValueError:
            return None
        self.judge.begin()
        try:
            return self._judge(case)
        except NotApplicable:
            return None

    def _run_generated_case(self, case: Any) -> bool:  # noqa: ANN401 - a case of any component with history
        """Judge the newest step of a trace and count it; whether it fails."""
        outcome = self.outcome
        try:
            failure = self._judge(case)
        except NotApplicable as error:
            self._applies = False
            outcome.not_applicable[str(error)] += 1
            return False
        outcome.cases += not self._counted
        outcome.steps += len(case.steps) > 0
        self._counted = True
        if failure is not None:
            self._record(failure)
        return failure is not None


def _without_steps(case: Any) -> Iterator[Any]:  # noqa: ANN401 - a case of any component with history
    """Traces that lack some steps, first many and then one; the last one is what fails."""
    count = len(case.steps)
    sizes = {count >> halvings for halvings in range(1, count.bit_length())} | set(range(1, min(count, 5)))
    for size in sorted(sizes, reverse=True):
        for start in range(count - 1 - size, -1, -1):
            yield replace(case, steps=case.steps[:start] + case.steps[start + size :])
