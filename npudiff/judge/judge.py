"""What must hold of every implementation, and who judges a case: this process, or one that may die of it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from npudiff.draw.derived_cases import grown, longer, same_size, shrunk
from npudiff.judge.compare import Derived, compare, same_bits
from npudiff.judge.graphs import REPLAYS_AS_EAGER
from npudiff.judge.memory import STAYS_WITHIN
from npudiff.model.anything import AnyCase, AnyInputs, AnyOutputs
from npudiff.model.component import (
    Comparison,
    Component,
    ExpectedOutput,
    ImplementationRaised,
    NotApplicable,
    Passed,
    Property,
    Session,
    Subject,
)
from npudiff.model.implementation import Implementation, Target
from npudiff.model.instead import Instead, known_answers
from npudiff.model.job import Job, Outcome
from npudiff.model.operators import OperatorWatch


def _calls_are_independent(subject: Subject, case: AnyCase) -> Comparison:
    """Call with the case alone; then one object with less, as many that are longer, as much, the case, more, the case.

    All answers to the case must have the same bits. What was captured for another batch of its size, made for a
    smaller one, or kept from the longest, shows in the second, and what a larger batch left behind shows in the third.
    """
    live, component = subject.fresh(), subject.component
    others = (
        shrunk(subject, case),
        *longer(subject, case),
        same_size(subject, case),
    )
    before = [other for other in others if other is not None]
    after = grown(subject, case)
    if not before and after is None:
        raise NotApplicable("no other case can be derived from this one")
    inputs = component.inputs(case)
    alone = subject.fresh().run(inputs)
    for other in before:
        _call(live, other)
    last = f"after {component.describe(before[-1])}" if before else "again"
    second = same_bits(alone, live.run(inputs), f"the same inputs alone, and {last}")
    if not second.holds or after is None:
        return second
    _call(live, after)
    return same_bits(alone, live.run(inputs), f"the same inputs alone, and after {component.describe(after)}")


def _call(live: Subject, other: AnyCase) -> None:
    """Make another call. What it raises says nothing of the case; equivalence is there for cases by themselves."""
    with contextlib.suppress(ImplementationRaised):
        live.run(live.component.inputs(other))


CALL_INDEPENDENCE = Property(
    "earlier_calls_change_nothing",
    "calls before, with less, as much and more, change no bit of an answer",
    _calls_are_independent,
    example_ratio=0.05,
)


STATEFUL_EXAMPLE_RATIO = 0.25
"""Examples of ``CALL_INDEPENDENCE`` per example of equivalence, of a stateful implementation."""


def _equivalent(subject: Subject, case: AnyCase) -> Comparison:
    """Compare with the reference; where something else is known to be computed, with that if the answer is not right.

    What is made of memory that nobody may read, and so is not a number, is not specified then.
    """
    inputs = subject.component.inputs(case)
    run = subject.begin(inputs)
    expected = subject.expected(inputs)  # before an implementation in this process can have changed anything
    outputs = run()
    comparison = compare(expected, outputs)
    known = [] if comparison.holds else subject.known_in(case)
    return _with_known_answers(subject, known, inputs, outputs) if known else comparison


def _with_known_answers(
    subject: Subject, known: Sequence[Instead], inputs: AnyInputs, outputs: Mapping[str, torch.Tensor]
) -> Comparison:
    """Compare with what is known to be computed; if none of it holds, return the comparison with all of it."""
    comparisons = []
    for changed, how in known_answers(known, inputs):
        try:
            expected = {name: _but_for_nan(one) for name, one in subject.expected(changed).items()}
        except ValueError as error:
            raise NotApplicable(f"no reference of what is known to be computed, {how}: {error}") from error
        if all(bool(one.bound.isposinf().all()) for one in expected.values()):
            raise NotApplicable(f"nothing is specified of what is known to be computed, {how}")
        comparisons.append(compare(expected, outputs, f"what is known to be computed here: {how}"))
        if comparisons[-1].holds:
            return comparisons[-1]
    return comparisons[0]


def _but_for_nan(one: ExpectedOutput) -> ExpectedOutput:
    bound = one.bound.masked_fill(one.value.isnan(), torch.inf)
    return Derived(one.value, bound, one.dtype, one.gain, one.directions)


EQUIVALENCE = Property(
    "equivalence",
    "every element is within the reference's bound",
    _equivalent,
    example_ratio=1.0,
)


def check(prop: Property, subject: Subject, case: AnyCase) -> Comparison:
    """Check a property.

    A relation counts rows, looks things up, and puts runs together, which fails where outputs have another shape than
    they must have, or hold indices that lead nowhere. Then the output that is wrong is the answer. Where every output
    is right, what is raised is a defect.

    Raises
    ------
    ImplementationRaised, NotApplicable
        As of ``Property.check``.
    """
    runs: list[tuple[AnyInputs, Mapping[str, torch.Tensor]]] = []
    watched = replace(subject, observer=lambda inputs, outputs: runs.append((inputs, outputs)))
    try:
        return prop.check(watched, case)
    except (ImplementationRaised, NotApplicable):
        raise
    except Exception:
        for inputs, outputs in runs:
            comparison = compare(subject.expected(inputs), outputs, f"one run of {prop.name}")
            if not comparison.holds:
                return comparison
        raise


def properties_of(component: Component) -> tuple[Property, ...]:
    """Return everything that must hold for each implementation of a component: what it says itself, and what all share.

    A component with history is tested by nothing but sequences of calls already. The memory of ranks lies in other
    processes, where nobody looks around it.
    """
    alone = () if component.ranks is not None else (STAYS_WITHIN,)
    shared = () if component.history is not None else (CALL_INDEPENDENCE, *alone)
    return (EQUIVALENCE, *component.relations, *shared)


def property_of_mutant(item: Implementation) -> Property:
    """Return the property by which an implementation that is wrong on purpose has to be found."""
    if item.graph:
        return REPLAYS_AS_EAGER
    return EQUIVALENCE if item.factory is None else CALL_INDEPENDENCE


class Judge(Protocol):
    """Says of cases whether the property of a job holds."""

    @property
    def case(self) -> AnyCase:
        """What was judged last. Of a component with history: the part of the trace up to the step that failed."""

    def begin(self) -> None:
        """Forget how far a trace was walked: the next one is walked from its beginning."""

    def check(self, case: AnyCase, *, thorough: bool = True) -> Comparison | Passed:
        """Judge a case, or those steps of a trace that were not walked yet.

        Parameters
        ----------
        case : object
            What is judged.
        thorough : bool
            Whether to find out whose fault a failure is; while a failure is made smaller nobody asks.

        Raises
        ------
        ImplementationRaised
            If the implementation raises, or what runs it dies or does not answer.
        NotApplicable
            If the property says nothing of the case.
        """

    def close(self, outcome: Outcome) -> None:
        """End what it holds, and add to the account what it knows besides."""


class TraceExecutor:
    """The steps of a trace on a live object, as far as they were taken.

    Parameters
    ----------
    subject : Subject
        An implementation of a component with history.

    Attributes
    ----------
    case : object
        The part of the trace that was taken, the step that failed included; None before it was opened.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._session: Session | None = None
        self.case: Any = None

    def run_to(self, case: AnyCase) -> Comparison:
        """Take those steps of a trace that were not taken yet, up to the first that fails.

        Returns
        -------
        Comparison
            The one that fails, or else the one with the largest error over bound.
        """
        worst = Comparison(())
        session = self._opened(case)
        for step in case.steps[len(self.case.steps) :]:
            self.case = replace(self.case, steps=(*self.case.steps, step))
            comparison = session.take(step)
            if not comparison.holds:
                return comparison
            worst = max(worst, comparison, key=lambda one: one.worst)
        return worst

    def _opened(self, case: AnyCase) -> Session:
        if self._session is None:
            history = self._subject.component.history
            if history is None:
                raise ValueError(f"{self._subject.component.name} has no history")
            self.case = replace(case, steps=())
            self._session = history.session(self._subject, self.case)
        return self._session


class LocalJudge:
    """A judge in this process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.case: Any = None
        self._operators: dict[str, int] | None = None
        self.begin()

    def begin(self) -> None:
        """Run the next trace from its beginning."""
        subject = self._job.subject
        self._executor = None if subject.component.history is None else TraceExecutor(subject)

    def check(self, case: AnyCase, *, thorough: bool = True) -> Comparison | Passed:
        """Judge a case here."""
        del thorough
        self.case = case
        if self._executor is None:
            return check(self._job.prop, self._watched(), case)
        try:
            return self._executor.run_to(case)
        finally:
            self.case = self._executor.case

    def _watched(self) -> Subject:
        """The subject, whose first call is watched if it is somebody else's."""
        subject = self._job.subject
        item = subject.implementation
        elsewhere = item.untrusted or subject.component.ranks is not None
        if item.built_in or elsewhere or self._operators is not None or self._job.prop is not EQUIVALENCE:
            return subject
        self._operators = {}

        def watched(inputs: AnyInputs, target: Target) -> AnyOutputs:
            with OperatorWatch(target) as watch:
                outputs = item(inputs, target)
            self._operators = dict(watch.operators)
            return outputs

        return replace(subject, implementation=replace(item, function=watched))

    def close(self, outcome: Outcome) -> None:
        """Say which operators were dispatched."""
        elsewhere = self._job.subject.implementation.operators
        seen = self._operators if elsewhere is None else elsewhere()
        outcome.operators = None if seen is None else dict(seen)
