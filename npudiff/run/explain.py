"""What a failure depends on: which values of options and axes it needs, and what other ways of its backend do.

Values are changed one at a time, in the smallest failing case. A value without which it holds is part of the region in
which it fails; what is outside of that region is searched on its own, so that one defect does not hide another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from npudiff.judge.judge import EQUIVALENCE, Judge, LocalJudge
from npudiff.judge.others import WAYS_AGREE, others_of
from npudiff.model.anything import AnyCase
from npudiff.model.component import Comparison, ImplementationRaised, NotApplicable, OutputComparison
from npudiff.model.constraints import Axis, Constraints
from npudiff.model.job import Beside, Failure, Job, Outcome

MOST_VALUES = 6
"""Values of an axis that is varied: one with more of them is a size, and no kind."""

MOST_TRIED = 3
"""Other values of an axis that are tried."""

SEED, MORE_DATA = "seed", 4
"""Field of a case that its data come from, and how many other data a value is tried with under which the case holds."""

SECONDS = 20.0
"""Time after which nothing else is tried."""

JudgeOf = Callable[[Job], "contextlib.AbstractContextManager[Judge]"]
"""Makes a judge for the cases of a job, in whichever process, which ends with the context."""


@contextlib.contextmanager
def judges_here(job: Job) -> Iterator[Judge]:
    """Give a judge of a job that runs its cases in this process."""
    with job.subject.target.activate():
        yield LocalJudge(job)


def explain(outcome: Outcome, judge_of: JudgeOf) -> None:
    """Add to an outcome with a failure what it depends on, and what other ways of the backend make of its case.

    Parameters
    ----------
    outcome : Outcome
        Its failure is the smallest.
    judge_of : callable
        Makes judges: what is tried may end its process.
    """
    failure, job = outcome.failure, outcome.job
    if failure is None or job.subject.component.history is not None:
        return
    until = time.monotonic() + SECONDS
    if job.prop in (EQUIVALENCE, WAYS_AGREE):
        outcome.others = dict(_others(job, failure, judge_of, until))
    if job.prop is not EQUIVALENCE:  # a relation fails for what equivalence fails on, too
        return
    with judge_of(job) as judge:
        outcome.region = _Toggles(job, failure.case, judge, until).region()


def _others(job: Job, failure: Failure, judge_of: JudgeOf, until: float) -> Iterator[tuple[str, str]]:
    """Yield the name of each other way, and what it makes of the case."""
    for subject, its in others_of(job.subject, failure.case):
        if time.monotonic() > until:
            return
        there = Job(subject, EQUIVALENCE, subject.implementation.constraints)
        with judge_of(there) as judge:
            try:
                seen = judge.check(its, thorough=False)
            except NotApplicable:
                continue
            except ImplementationRaised as error:
                alike = failure.error is not None and str(error.__cause__ or error) == str(failure.error)
                yield subject.implementation.name, (Beside.SAME if alike else Beside.RAISES).value
                continue
        if seen.holds:
            yield subject.implementation.name, Beside.HOLDS.value
        else:
            alike = isinstance(seen, Comparison) and _alike(failure.comparison, seen)
            yield subject.implementation.name, (Beside.SAME if alike else Beside.FAILS).value


def _alike(one: Comparison | None, other: Comparison) -> bool:
    """Whether two that are wrong have the same wrong numbers, as far as correct ones may be apart."""
    if one is None or one.context:
        return False
    shared = {output.name: output for output in other.outputs}
    pairs = [(output, shared[output.name]) for output in one.outputs if output.worst > 1 and output.name in shared]
    return bool(pairs) and all(_alike_output(*pair) for pair in pairs)


def _alike_output(one: OutputComparison, other: OutputComparison) -> bool:
    if one.problem is not None or one.actual is None or other.actual is None or one.bound is None:
        return one.problem is not None and one.problem == other.problem
    first, second = one.actual.double(), other.actual.double()
    # Where both are far off, what they are off by is rounded by their own size, which the bound does not know.
    room = 2 * one.bound + 2.0**-6 * torch.maximum(first.abs(), second.abs())
    same = (first == second) | (first.isnan() & second.isnan()) | ((first - second).abs() <= room)
    return bool(same.all())


@dataclass
class _Toggles:
    """Changes values of a failing case, and sees whether it still fails."""

    job: Job
    case: AnyCase
    judge: Judge
    until: float
    _known: dict[Any, bool | None] = field(default_factory=dict)

    def region(self) -> dict[str, list[Any]]:
        """Return the axes that matter, and the values with which the case fails, its own first.

        An axis whose other values cannot be had alone is changed together with one other such axis.
        """
        tried = {name: self._tried({name: values}) for name, values in self._axes().items()}
        region = {name: self._failing(name, seen) for name, seen in tried.items() if _matters(seen)}
        stuck = [name for name, seen in tried.items() if not any(verdict is not None for _, verdict in seen)]
        axes = self._axes()
        for first, second in itertools.combinations(stuck, 2):
            if not region.keys() >= {first, second}:
                seen = self._tried({first: axes[first], second: axes[second]})
                if _matters(seen):
                    region |= {name: [getattr(self.case, name)] for name in (first, second)}
        return region

    def _axes(self) -> Mapping[str, Sequence[Any]]:
        """Name of each axis that a field of the case holds, and other values of it."""
        component = self.job.subject.component
        values = component.values(self.case)
        own = {one.name: getattr(self.case, one.name) for one in dataclasses.fields(self.case) if one.init}
        return {
            name: other
            for name, axis in component.axes.items()
            if name in own and tuple(values.get(name, ())) == (own[name],) and (other := _other_values(axis, own[name]))
        }

    def _tried(self, changes: Mapping[str, Sequence[Any]]) -> list[tuple[tuple[Any, ...], bool | None]]:
        combined = itertools.islice(itertools.product(*changes.values()), MOST_TRIED)
        return [(values, self._holds(dict(zip(changes, values, strict=True)))) for values in combined]

    def _holds(self, changes: Mapping[str, Any]) -> bool | None:
        """Whether the case holds with other values; None where there is no such case, or no time."""
        key = tuple(sorted(changes.items(), key=str))
        if key not in self._known:
            self._known[key] = self._judged(changes)
        return self._known[key]

    def _judged(self, changes: Mapping[str, Any]) -> bool | None:
        """Judge the case with other values; it holds if it does with other data as well: by chance one may."""
        holds = self._verdict(changes)
        if not holds or not any(one.name == SEED for one in dataclasses.fields(self.case)):
            return holds
        seeds = (getattr(self.case, SEED) + more for more in range(1, MORE_DATA + 1))
        return not any(self._verdict({**changes, SEED: seed}) is False for seed in seeds)

    def _verdict(self, changes: Mapping[str, Any]) -> bool | None:
        subject = self.job.subject
        if time.monotonic() > self.until:
            return None
        try:
            case = dataclasses.replace(self.case, **changes)
            subject.component.check_case(case)
        except ValueError:
            return None
        if subject.reason_against(case, self.job.drawn_within) is not None:
            return None
        self.judge.begin()
        try:
            return bool(self.judge.check(case, thorough=False).holds)
        except NotApplicable:
            return None
        except ImplementationRaised:
            return False

    def _failing(self, name: str, seen: Sequence[tuple[tuple[Any, ...], bool | None]]) -> list[Any]:
        return [getattr(self.case, name), *(values[0] for values, holds in seen if holds is False)]


def _matters(seen: Sequence[tuple[tuple[Any, ...], bool | None]]) -> bool:
    return any(holds for _, holds in seen)


def _other_values(axis: Axis, own: object) -> list[Any]:
    """Return the other values of an axis of few kinds; of an optional size none at all, which is another kind."""
    if own is not None and axis.optional:
        kinds: list[Any] = [None]
    else:
        kinds = []
    if not isinstance(axis.legal, range) and len(axis.legal) <= MOST_VALUES and isinstance(axis.legal, tuple | list):
        kinds += [value for value in axis.legal if value != own]
    return kinds


def outside(region: Mapping[str, Sequence[Any]], axes: Mapping[str, Axis]) -> Constraints:
    """Return the cases outside of a region, as a union of boxes; of an optional size, its presence is the region."""
    boxes = []
    for name, failing in region.items():
        axis = axes[name]
        rest = [value for value in _kinds(axis) if value not in failing]
        boxes.append({name: tuple(rest)})
    return Constraints(tuple(box for box in boxes if all(box.values())))


def conditions(region: Mapping[str, Sequence[Any]], axes: Mapping[str, Axis]) -> list[str]:
    """Return a region in the words of ``--where``."""
    return [f"{name}={_words(values, axes[name])}" for name, values in region.items()]


def _words(values: Sequence[Any], axis: Axis) -> str:
    """Values of an axis; of an optional size all that there are, since its presence is the region."""
    if isinstance(axis.legal, range) and None not in values:
        return f"{axis.legal[0]}..{axis.legal[-1]}"
    words = {None: "none", True: "true", False: "false"}
    return ",".join(words[value] if value is None or isinstance(value, bool) else str(value) for value in values)


def _kinds(axis: Axis) -> list[Any]:
    listed = [] if isinstance(axis.legal, range) or not isinstance(axis.legal, tuple | list) else list(axis.legal)
    return [*listed, *([None] if axis.optional else [])]
