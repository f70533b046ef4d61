"""A toy component with history, a total that can be undone; its answers can be worked out by hand."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from hypothesis.stateful import rule

from npudiff.draw.chosen import chosen
from npudiff.draw.state_machine import Machine
from npudiff.judge.compare import compare
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Component, History, Subject
from npudiff.model.constraints import Axis, Constraints, allows
from npudiff.model.implementation import Implementation, Target
from npudiff.model.job import Budget, Job
from npudiff.reference.bounds import Expected

SEEDED = Budget(examples=20, seed=1)


@dataclass(frozen=True)
class Add:
    """Add a number to the total."""

    number: int
    kind: Literal["add"] = "add"


@dataclass(frozen=True)
class Undo:
    """Take back the last number."""

    kind: Literal["undo"] = "undo"


@dataclass(frozen=True)
class TallyCase:
    """A total that begins somewhere, and what was done to it."""

    start: int = 0
    steps: tuple[Add | Undo, ...] = ()


class Tally:
    """A right implementation: a total that can be undone."""

    def __init__(self, inputs, target):
        self.numbers = [int(inputs)]

    def add(self, number):
        self.numbers.append(int(number))

    def undo(self):
        if len(self.numbers) > 1:
            self.numbers.pop()

    def total(self):
        return torch.tensor([float(sum(self.numbers))])


def exactly(total):
    value = torch.tensor([float(total)], dtype=torch.float64)
    return {"total": Expected(value, torch.zeros_like(value), torch.float32)}


class TallySession:
    """The live object beside a list of all numbers."""

    def __init__(self, subject, case):
        self.subject = subject
        self.tally = subject.create(torch.tensor(case.start))
        self.numbers = [case.start]

    def take(self, step):
        if isinstance(step, Add):
            self.numbers.append(step.number)
            given = torch.tensor(step.number)
            self.subject.call_guarded(lambda: self.tally.add(given), given)
        else:
            self.numbers = self.numbers[:1] + self.numbers[1:-1]
            self.subject.call_guarded(self.tally.undo)
        total = self.subject.call_guarded(self.tally.total)
        return compare(exactly(sum(self.numbers)), {"total": total}, f"after {step}")


class TallyMachine(Machine):
    """Adds and undoes."""

    def opening(self):
        self.box = self.choose.pick(self.constraints.boxes)
        return TallyCase(self.choose.value(self.box, "start", range(100)))

    @rule()
    def add(self):
        self.take(Add(self.choose.value(self.box, "number", range(1, 100))))

    @rule()
    def undo(self):
        if allows(self.box.get("step", ("undo",)), "undo"):
            self.take(Undo())
        else:
            self.add()


def _openings(boxes, choose):
    return TallyCase(choose.value(choose.pick(boxes), "start", range(100)))


def check_case(case):
    if any(isinstance(step, Add) and not 0 < step.number < 100 for step in case.steps):
        raise ValueError("numbers must lie in 1..99")


def smaller(case):
    """Smaller numbers, legal or not."""
    if case.start:
        yield replace(case, start=0)
    for index, step in enumerate(case.steps):
        for number in (0, 1, step.number // 2, step.number - 1) if isinstance(step, Add) else ():
            if number < step.number:
                yield replace(case, steps=(*case.steps[:index], Add(number), *case.steps[index + 1 :]))


def last_total(case):
    numbers = [case.start]
    for step in case.steps:
        numbers = [*numbers, step.number] if isinstance(step, Add) else numbers[:1] + numbers[1:-1]
    return sum(numbers)


COMPONENT = Component(
    name="tally",
    summary="a total",
    case_type=TallyCase,
    outputs=("total",),
    axes={
        "start": Axis("first total", range(1000)),
        "number": Axis("what is added", range(1, 100)),
        "step": Axis("kinds of step besides add", ("undo",)),
    },
    strategy=lambda constraints: chosen(partial(_openings, constraints.boxes)),
    inputs=lambda case: case,
    reference=lambda case: exactly(last_total(case)),
    values=lambda case: {
        "start": (case.start,),
        "number": {step.number for step in case.steps if isinstance(step, Add)},
        "step": {step.kind for step in case.steps} - {"add"},
    },
    features=lambda case: {step.kind for step in case.steps},
    describe=lambda case: " ".join([str(case.start), *(str(getattr(step, "number", "undo")) for step in case.steps)]),
    check_case=check_case,
    coordinates=lambda case, output: {"step": torch.tensor([len(case.steps)])},
    history=History(machine=TallyMachine, session=TallySession, simpler=(smaller,), runs=0.5, steps=12),
)


def job(function=Tally, *, supports=None, prop=EQUIVALENCE, **changes):
    constraints = Constraints() if supports is None else Constraints.of(supports)
    item = Implementation("tally", "mine", function, constraints)
    target = Target("here", "cpu", "0", contextlib.nullcontext)
    return Job(Subject(replace(COMPONENT, **changes), item, target), prop, constraints)


def machine(kind, **attributes):
    """The history with another machine."""
    return replace(COMPONENT.history, machine=type("Other", (kind,), attributes))


class Forgets(Tally):
    """Undoing the third number, if it is above 20, takes back two."""

    def undo(self):
        if len(self.numbers) == 4 and self.numbers[-1] > 20:
            self.numbers.pop()
        super().undo()


class Watched(Tally):
    """A right one that keeps what every object was asked."""

    traces = ()

    def __init__(self, inputs, target):
        super().__init__(inputs, target)
        self.trace = [int(inputs)]
        type(self).traces += (self.trace,)

    def add(self, number):
        self.trace.append(int(number))
        super().add(number)

    def undo(self):
        self.trace.append("undo")
        super().undo()


TRACE = TallyCase(3, (Add(5), Add(6), Undo(), Add(7), Add(30), Undo(), Add(1), Undo()))


@pytest.fixture
def watched():
    """A class of its own for each test."""
    return type("WatchedHere", (Watched,), {"traces": ()})


@pytest.fixture
def tally():
    """Everything above: test folders are not importable in importlib mode."""
    return SimpleNamespace(
        Add=Add,
        Undo=Undo,
        TallyCase=TallyCase,
        TallySession=TallySession,
        TallyMachine=TallyMachine,
        Tally=Tally,
        COMPONENT=COMPONENT,
        SEEDED=SEEDED,
        Forgets=Forgets,
        Watched=Watched,
        job=job,
        machine=machine,
        TRACE=TRACE,
    )
