"""A search that is guided by the branches that an implementation takes, where it is Python that can be seen.

Cases that took a branch which none before had taken are kept, and mutated field by field with values that are legal.
Every second case is a plain draw. Where no branch can be seen there is nothing to go by: regions and margins alone were
measured, and find nothing sooner than plain draws do (``docs/measured.md``).
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

import numpy as np

from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.anything import AnyCase, AnyInputs, AnyOutputs
from npudiff.model.case import DeclaredCase, declaration, loads
from npudiff.model.implementation import Target
from npudiff.model.job import Budget, Job

MOST_VALUES, MOST_PARTS, MOST_TRIES = 1024, 8, 20
"""Values of a field that are remembered, parts of each, and mutations that are tried until one is legal."""

NEWEST, ONE_FIELD = 0.5, 0.75
"""Of the cases that are mutated, the part that the newest has, and of the rest the one before it, and so on: what comes
after a branch is behind it. Of mutations, the part that changes one field only."""

Branch = tuple[CodeType, int, int]
"""Code, and the places in it from which and to which it went."""


def guide_of(job: Job, budget: Budget) -> Guide | None:
    """Return a guide of a job whose budget asks for one, where branches can be seen."""
    if not budget.guided or not can_be_guided(job):
        return None
    return Guide(job, budget.seed_of(job) or 0, budget.corpus)


def can_be_guided(job: Job) -> bool:
    """Whether branches of a job's implementation can be seen: it is a plain function of a file of the user's."""
    item = job.subject.implementation
    plain = item.factory is None and item.operators is None and not item.untrusted and not item.built_in
    whole = job.prop is EQUIVALENCE and job.subject.component.history is None
    return plain and whole and inspect.isfunction(inspect.unwrap(item.function))


class BranchWatch:
    """Sees the branches that functions of one file take while it is entered.

    Parameters
    ----------
    file : str
        The file, as its code names it.

    Attributes
    ----------
    taken : set
        Branches, until somebody clears it.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self.taken: set[Branch] = set()
        self._before: Any = None

    def __enter__(self) -> BranchWatch:
        """Begin to see."""
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        """See no more."""
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401 - a function, or None
        """Say what sees a frame that begins: nothing, in another file."""
        del event, arg
        if frame.f_code.co_filename != self._file:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        last = -1

        def seen(frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401 - itself
            nonlocal last
            del arg
            if event == "opcode":
                self.taken.add((frame.f_code, last, frame.f_lasti))
                last = frame.f_lasti
            return seen

        return seen


class Guide:
    """A corpus of cases that took new branches, and what their fields may be instead.

    Parameters
    ----------
    job : Job
        A job that can be guided.
    seed : int
        Of the choices.
    corpus : sequence of str
        Cases as JSON that are run first: those that brought something before.

    Attributes
    ----------
    job : Job
        The job, whose implementation is watched.
    """

    def __init__(self, job: Job, seed: int, corpus: Sequence[str] = ()) -> None:
        item = job.subject.implementation
        self._watch = BranchWatch(inspect.unwrap(item.function).__code__.co_filename)
        self.job = replace(
            job, subject=replace(job.subject, implementation=replace(item, function=self._watched(item)))
        )
        self._component, self._random = job.subject.component, np.random.Generator(np.random.Philox(seed))
        self._within = job.drawn_within
        self._given = corpus
        self._known: set[Branch] = set()
        self._corpus: list[AnyCase] = []
        self._values: dict[str, dict[Any, None]] = {}
        self._old = 0

    def _watched(self, item: Callable[[AnyInputs, Target], AnyOutputs]) -> Callable[[AnyInputs, Target], AnyOutputs]:
        def watched(inputs: AnyInputs, target: Target) -> AnyOutputs:
            with self._watch:
                return item(inputs, target)

        return watched

    def cases(self, drawn: Sequence[AnyCase]) -> Iterator[AnyCase]:
        """Yield given cases, then draws and mutated cases in turns; who asks for the next has judged the one before."""
        for case in itertools.chain(self._legal_given(), self._turns(drawn)):
            self._watch.taken.clear()
            yield case
            self._take(case)

    def _turns(self, drawn: Sequence[AnyCase]) -> Iterator[AnyCase]:
        for case in drawn:
            yield case
            other = self._mutated() if self._corpus else None
            if other is not None:
                yield other

    def _legal_given(self) -> Iterator[AnyCase]:
        for text in self._given:
            try:
                case = loads(self._component.case_type, text)
                self._component.check_case(case)
            except ValueError:  # of another version
                continue
            yield case
        self._old = len(self._corpus)

    def _take(self, case: AnyCase) -> None:
        """Keep a case that took a new branch."""
        for one in dataclasses.fields(case):
            self._note(one.name, getattr(case, one.name))
        new = self._watch.taken - self._known
        if new:
            self._known |= new
            self._corpus.append(case)

    def _note(self, name: str, value: Any) -> None:  # noqa: ANN401 - of any field
        """Remember a value of a field, and those of its parts."""
        values = self._values.setdefault(name, {})
        if len(values) < MOST_VALUES:
            values.setdefault(value)
        for inner, part in _parts(name, value)[:MOST_PARTS]:
            self._note(inner, part)

    @property
    def new(self) -> Sequence[AnyCase]:
        """Cases that took new branches, in their order; the given ones are not among them."""
        return self._corpus[self._old :]

    def _mutated(self) -> AnyCase | None:
        """Return a legal case that differs from one of the corpus in one field or two; None if none was found."""
        for _ in range(MOST_TRIES):
            back = int(self._random.geometric(NEWEST)) - 1
            case = self._corpus[-1 - back] if back < len(self._corpus) else self._corpus[self._below(len(self._corpus))]
            names = [one.name for one in dataclasses.fields(case) if one.init]
            count = 1 + (self._random.random() > ONE_FIELD)
            chosen = self._random.permutation(len(names))[:count].tolist()
            try:
                other = replace(case, **{names[place]: self._value(case, names[place]) for place in chosen})
                self._component.check_case(other)
            except ValueError:
                continue
            if other != case and self.job.subject.reason_against(other, self._within) is None:
                return other
        return None

    def _value(self, case: AnyCase, name: str) -> Any:  # noqa: ANN401 - of any field
        """Return another value of a field: one that is drawn, or one that is like its own."""
        options: Any = ()
        if isinstance(case, DeclaredCase):
            said = declaration(type(case)).quantities.get(name)
            options = () if said is None or callable(said.drawn) else said.drawn or ()
        if len(options) and not self._random.integers(3):
            return options[self._below(len(options))]
        return self._other(name, getattr(case, name))

    def _other(self, name: str, own: Any) -> Any:  # noqa: ANN401 - of any field, or a part of one
        """Return another that a case had, a number beside it, or one with another part, without a part or with two."""
        known, parts = list(self._values.get(name, ())), _parts(name, own)
        if known and not (parts and self._below(4)) and not (type(own) is int and not self._below(4)):
            return known[self._below(len(known))]
        if type(own) is int:
            return (max(0, own - 1), own + 1, own * 2)[self._below(3)]
        if not parts:
            return own
        place = self._below(len(parts))
        inner, part = parts[place]
        if not isinstance(own, tuple):
            return replace(own, **{inner.rpartition(".")[2]: self._other(inner, part)})
        middle = {0: (), 1: (part, part)}.get(self._below(8), (self._other(inner, part),))
        return (*own[:place], *middle, *own[place + 1 :])

    def _below(self, count: int) -> int:
        return int(self._random.integers(count))


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 - of any field
    """Return the parts of a value, each with a name that like ones have in common."""
    if isinstance(value, tuple):
        return [(f"{name}[]", part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f"{name}.{one.name}", getattr(value, one.name)) for one in dataclasses.fields(value) if one.init]
    return []
