"""The loop: cases of one job are drawn, judged and counted, and the first that fails is made smaller.

``run_job`` has cases drawn (``npudiff.run.drawing``), ``run_case`` and ``run_cases`` judge given ones. ``CaseRun`` has
each judged and keeps the account; ``TraceRun`` does for a component with a history.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import seed as with_seed
from hypothesis.errors import Flaky, Unsatisfiable
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from npudiff.draw.presets import hypothesis_settings, without_constants_of_code
from npudiff.draw.simpler import simpler_cases
from npudiff.judge.drift import DriftMeter, found, measures_drift
from npudiff.judge.judge import Judge, LocalJudge
from npudiff.model.anything import AnyCase
from npudiff.model.case import dumps, loads
from npudiff.model.component import Comparison, History, ImplementationRaised, NotApplicable
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Failure, Isolation, Job, Outcome, Verdict
from npudiff.run.drawing import Fails, draw_cases, has_cases
from npudiff.run.guidance import Guide, guide_of

SHRINK_SECONDS = 30.0
"""A finding that is not minimal after this time is reported as small as it is."""

MOST_SIMPLER = 100
"""Cases that are tried to make one simpler that Hypothesis cannot. They are counted and not timed, so that a seed gives
the same case again."""

REPEATED = 3
"""Times that the smallest failing case is run again, to tell whether it always fails."""

NO_CASE = "no case could be drawn"
"""The reason of a job that has none."""


class Stop(BaseException):
    """Ends a run at once, one of Hypothesis as well: the budget is used up, or shrinking has taken long enough."""


Progress = Callable[[Outcome], None]


class CaseRun:
    """Runs drawn cases of one job.

    Parameters
    ----------
    outcome : Outcome
        The account, which is kept up to date.
    budget : Budget
        How long to look.
    progress : callable
        Called after each case.
    judge : Judge
        Judges cases.
    """

    def __init__(self, outcome: Outcome, budget: Budget, progress: Progress, judge: Judge) -> None:
        self.outcome, self.budget, self.progress, self.judge = outcome, budget, progress, judge
        self.started = time.perf_counter()
        job = outcome.job
        self._passed: set[Any] = set()
        self._tried = 0
        self.drift = DriftMeter()
        self.gives, self.given_cases = False, 0  # those do not count towards the cases that are drawn
        self._supported = job.subject.implementation.constraints.within(Constraints((job.prop.within,)))

    @property
    def seconds(self) -> float:
        """Time since the run began."""
        return time.perf_counter() - self.started

    @property
    def time_is_up(self) -> bool:
        """Whether no new case may be started."""
        budget = self.budget
        over = budget.seconds is not None and self.seconds > budget.seconds
        return over or (budget.until is not None and time.monotonic() > budget.until)

    def draw(self) -> None:
        """Draw cases and run them."""
        draw_cases(self.outcome.job, self.budget, self.case)

    def with_guide(self, guide: Guide) -> None:
        """Run cases that follow the branches which the implementation takes, and draws between them."""
        drawn: list[AnyCase] = []
        examples = max(1, (self.budget.examples or 0) // 2)
        draw_cases(self.outcome.job, replace(self.budget, examples=examples, shrink=False), drawn.append)
        self.gives = True  # they depend on each other: what they have in common is no drift
        for case in guide.cases(drawn):
            self.case(case)
            self.outcome.guides = list(guide.new)

    def run_explicit_cases(self, texts: Sequence[str]) -> None:
        """Run cases that are there as JSON, as far as they make sense: they may come from elsewhere."""
        component = self.outcome.job.subject.component
        self.gives = True
        for text in texts:
            try:
                case = loads(component.case_type, text)
                component.check_case(case)
            except ValueError:
                continue  # of another version
            self.case(case)
        self.gives, self.given_cases = False, self.outcome.cases

    def case(self, case: AnyCase) -> None:
        """Run one case; raises ``Fails`` if the property does not hold."""
        self._check_time()
        if self._run_generated_case(case) if self.outcome.failure is None else self._still_fails(case):
            raise Fails

    def _run_generated_case(self, case: AnyCase) -> bool:
        """Run a drawn case and count it; whether it fails."""
        outcome, component = self.outcome, self.outcome.job.subject.component
        try:
            failure = self._judge(case)
        except NotApplicable as error:
            outcome.not_applicable[str(error)] += 1
            return False
        outcome.cases += 1
        self._count_regions(case, component.features(case))
        self.progress(outcome)
        if failure is not None:
            self._record(failure)
        return failure is not None

    def _count_regions(self, case: AnyCase, regions: Collection[str]) -> None:
        self.outcome.features.update(regions)
        if self.budget.collects:
            kind = tuple(sorted(regions))
            if kind not in self.outcome.kinds:
                self.outcome.kinds[kind] = dumps(case)

    def _still_fails(self, case: AnyCase) -> bool:
        """Whether a case that may be smaller fails as well.

        Many sequences of choices give the same case, so the last one that failed, and those that did not, are not run
        again. The outcome keeps the last one that failed, and Hypothesis ends with the smallest.
        """
        if self.outcome.failure is not None and case == self.outcome.failure.case:
            return True
        if case in self._passed:
            return False
        try:
            failure = self._judge(case)
        except NotApplicable:
            failure = None
        if failure is None:
            self._passed.add(case)
        else:
            self._record(failure)
        return failure is not None

    def simplify(self) -> None:
        """Make the smallest failing case simpler field by field, as long as that fails in the same way."""
        tries = MOST_SIMPLER
        before = None
        while before is not self.outcome.failure and self.outcome.failure is not None:
            before = self.outcome.failure
            for case in simpler_cases(before.case):
                if tries == 0:
                    return
                if case in self._passed or not self._is_legal(case):
                    continue
                tries -= 1
                if self._fails_alike(case, before):
                    break

    def _is_legal(self, case: AnyCase) -> bool:
        component = self.outcome.job.subject.component
        try:
            component.check_case(case)
        except ValueError:
            return False
        return self.outcome.job.subject.reason_against(case, self._supported) is None

    def _fails_alike(self, case: AnyCase, before: Failure) -> bool:
        """Whether a case fails, by an exception or by a wrong value as the one before does; then it is the smallest."""
        self._check_time()
        self.judge.begin()
        try:
            failure = self._judge(case)
        except NotApplicable:
            failure = None
        if failure is None or (failure.error is None) != (before.error is None):
            self._passed.add(case)
            return False
        self._record(failure)
        return True

    def conclude(self) -> None:
        """Run the smallest failing case again, to tell whether it always fails: each case was run once only.

        Where it is judged in processes of its own that is done there, and asking once is enough.
        """
        failure = self.outcome.failure
        if failure is None:
            return
        runs = 1 if self.budget.isolation is not None else REPEATED
        failed = 0
        for _ in range(runs):
            self.judge.begin()
            failed += self._judge(failure.case, thorough=True) is not None
        self.outcome.repeated = (failed, runs)

    def _judge(self, case: AnyCase, *, thorough: bool = False) -> Failure | None:
        """Judge a case; of a trace, what fails is the part up to the step that failed."""
        self._require(case)
        outcome = self.outcome
        self._tried += outcome.failure is not None
        try:
            comparison = self.judge.check(case, thorough=thorough or outcome.failure is None)
        except ImplementationRaised as error:
            return Failure(self.judge.case, None, error.__cause__ or error)
        if isinstance(comparison, Comparison) and not comparison.holds:
            return Failure(self.judge.case, comparison, None)
        outcome.exact = outcome.exact and comparison.exact
        if outcome.failure is not None:
            return None
        outcome.left_out.update(comparison.left_out)
        if comparison.worst >= outcome.worst_ratio:
            outcome.worst_ratio, outcome.worst_case = comparison.worst, self.judge.case
        if measures_drift(outcome.job) and not self.gives:
            self.drift.add(case, comparison)
        return None

    def _require(self, case: AnyCase) -> None:
        reason = self.outcome.job.subject.reason_against(case, self._supported)
        if reason is not None:
            raise NotApplicable(reason)

    def _record(self, failure: Failure) -> None:
        now = self.seconds
        if self.outcome.first_failure is None:
            self.outcome.first_failure = failure
            self.outcome.seconds_to_failure = now
        self.outcome.failure = failure
        if _size(failure) > _size(self.outcome.worst_failure):
            self.outcome.worst_failure = failure
            self.outcome.failed_ratio = 0.0 if failure.comparison is None else failure.comparison.worst
        self.outcome.shrink_seconds = now - self.outcome.seconds_to_failure

    def _check_time(self) -> None:
        now = self.seconds
        if self.outcome.failure is not None:
            enough = self.budget.smaller is not None and self._tried >= self.budget.smaller
            if enough or now - self.outcome.seconds_to_failure > SHRINK_SECONDS:
                raise Stop
        elif self.time_is_up:
            raise Stop


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

    def draw(self) -> None:
        """Run the state machine until there were enough runs, or one fails."""
        budget = self.budget
        configured = hypothesis_settings(
            RUNS_AT_ONCE,
            deterministic=budget.deterministic,
            seeded=budget.seed_of(self.outcome.job) is not None,
            shrink=False,
            memory=budget.example_database_of(self.outcome.job),
            shared=budget.shared_database_of(self.outcome.job),
            steps=1 + (budget.steps or self._history.steps),  # Hypothesis counts the opening
        )
        for batch in itertools.count():
            before = self.outcome.cases
            try:
                with without_constants_of_code():
                    run_state_machine_as_test(self._factory(batch), settings=configured)
            except Flaky:  # or a run that was stopped, which looks like a machine that draws less than it did
                if not self._over:
                    raise
            if self._over or self.outcome.cases == before:  # or all was drawn that can be drawn
                return

    def case(self, case: AnyCase) -> None:
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

    def begin(self, case: AnyCase) -> None:
        """Begin a trace, unless there were enough."""
        self.judge.begin()
        self._place = self._seen
        self._applies, self._counted = True, False
        if self._over and self.outcome.failure is None:
            raise Stop
        self.take(case)

    def take(self, case: AnyCase) -> None:
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

    def end(self, case: AnyCase) -> None:
        """Count the regions of a trace of which anything was new."""
        features = self.outcome.job.subject.component.features(case)
        if self._counted:
            self._count_regions(case, features)
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
        constraints, seed = self.outcome.job.drawn_within, self.budget.seed_of(self.outcome.job)

        def machine() -> RuleBasedStateMachine:
            return self._history.machine(constraints, self)

        return machine if seed is None else with_seed((seed << 32) + batch)(machine)

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

    def _judge_if_legal(self, case: AnyCase) -> Failure | None:
        try:
            self.outcome.job.subject.component.check_case(case)
        except ValueError:
            return None
        self.judge.begin()
        try:
            return self._judge(case)
        except NotApplicable:
            return None

    def _run_generated_case(self, case: AnyCase) -> bool:
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


def _without_steps(case: AnyCase) -> Iterator[AnyCase]:
    """Traces that lack some steps, first many and then one; the last one is what fails."""
    count = len(case.steps)
    sizes = {count >> halvings for halvings in range(1, count.bit_length())} | set(range(1, min(count, 5)))
    for size in sorted(sizes, reverse=True):
        for start in range(count - 1 - size, -1, -1):
            yield replace(case, steps=case.steps[:start] + case.steps[start + size :])


def run_job(
    job: Job,
    budget: Budget,
    progress: Progress = lambda _: None,
    *,
    judge: Judge | None = None,
    guide: Guide | None = None,
) -> Outcome:
    """Draw cases, run the property on each, and shrink the first failure.

    They are judged as the budget says, or by the judge that is given; a guide that is given watches what that judges.

    Exceptions of the implementation are findings. Exceptions of anything else (strategy, inputs, reference) are
    defects of npudiff or of the component and propagate.
    """
    outcome = Outcome(job)
    if not job.applies:
        outcome.verdict = Verdict.NOT_APPLICABLE
        return outcome
    if budget.until is not None and time.monotonic() > budget.until:
        outcome.verdict = Verdict.NOT_APPLICABLE  # of hundreds of jobs that have no time left
        return outcome
    outcome.remembered = has_cases(budget.example_database_of(job))
    history = job.subject.component.history
    if budget.guided and judge is None and budget.isolation is None and (guide := guide_of(job, budget)) is not None:
        judge = LocalJudge(guide.job)
    with job.subject.target.activate(), _run_of(outcome, budget, progress, judge) as run:
        try:
            run.run_explicit_cases(budget.explicit_cases)
            if guide is not None:
                run.with_guide(guide)
            elif budget.examples != 0:
                run.draw()
        except (Fails, Stop):
            if budget.shrink and history is None:
                with contextlib.suppress(Stop):
                    run.simplify()
            run.conclude()
        except Unsatisfiable:
            outcome.not_applicable[NO_CASE] += 1
    outcome.seconds = run.seconds
    conclude(outcome, run.drift)
    return outcome


def run_case(
    job: Job,
    case: AnyCase,
    isolation: Isolation | None = None,
    *,
    judge: Judge | None = None,
) -> Outcome:
    """Run the property on one given case."""
    return run_cases(job, (case,), isolation, judge=judge)


def run_cases(
    job: Job, cases: Sequence[Any], isolation: Isolation | None = None, *, judge: Judge | None = None
) -> Outcome:
    """Run the property on given cases, one after the other in one process, until one fails."""
    outcome = Outcome(job)
    with (
        job.subject.target.activate(),
        _run_of(outcome, Budget(isolation=isolation), lambda _: None, judge) as run,
        contextlib.suppress(Fails),
    ):
        for case in cases:
            run.case(case)
    outcome.seconds = run.seconds
    conclude(outcome, run.drift)
    return outcome


def conclude(outcome: Outcome, drift: DriftMeter) -> None:
    """Say how a job ended whose cases were judged."""
    if outcome.failure is not None:
        outcome.verdict = Verdict.RAISED if outcome.failure.error is not None else Verdict.WRONG
        return
    if not outcome.cases:
        outcome.verdict = Verdict.NOT_APPLICABLE
        return
    outcome.drifts = drift.measured()
    if found(outcome.drifts):
        outcome.verdict = Verdict.DRIFT


def _size(failure: Failure | None) -> float:
    """Error over bound of a failure that has one."""
    return 0.0 if failure is None or failure.comparison is None else failure.comparison.worst


@contextlib.contextmanager
def _run_of(outcome: Outcome, budget: Budget, progress: Progress, judge: Judge | None = None) -> Iterator[CaseRun]:
    """Give what runs cases of a job, with a judge that is closed at the end."""
    history = outcome.job.subject.component.history
    judge = judge or _judge_of(outcome.job, budget)
    try:
        if history is None:
            yield CaseRun(outcome, budget, progress, judge)
        else:
            yield TraceRun(outcome, budget, progress, judge, history)
    finally:
        judge.close(outcome)


def _judge_of(job: Job, budget: Budget) -> Judge:
    if budget.isolation is None or job.subject.component.ranks is not None:  # ranks are processes of their own
        return LocalJudge(job)
    from npudiff.run.isolation.judge import IsolatedJudge  # noqa: PLC0415 - the parts that are not on every system

    return IsolatedJudge(job, budget.isolation)
