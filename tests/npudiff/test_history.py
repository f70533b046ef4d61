"""Components with history: traces that a state machine draws, judged step by step, shrunk, kept and replayed."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import rule

from npudiff.codec import dumps, loads
from npudiff.compare import compare
from npudiff.component import Component, Subject
from npudiff.console import Console
from npudiff.constraints import Axis, Constraints, allows
from npudiff.draw import Chooser
from npudiff.engine import EQUIVALENCE, run_case, run_job
from npudiff.evidence import finding_of
from npudiff.findings import read_finding, write_finding
from npudiff.history import History
from npudiff.implementation import Implementation
from npudiff.machine import Machine
from npudiff.outcome import Budget, Job, Verdict
from npudiff.plan import Plan, Request
from npudiff.property import Property
from npudiff.replay import ReplayVerdict, replay
from npudiff.target import Target
from npudiff.walk import Walk
from reference.bounds import Expected

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
        self.tally = subject.open(torch.tensor(case.start))
        self.numbers = [case.start]

    def take(self, step):
        if isinstance(step, Add):
            self.numbers.append(step.number)
            given = torch.tensor(step.number)
            self.subject.ask(lambda: self.tally.add(given), given)
        else:
            self.numbers = self.numbers[:1] + self.numbers[1:-1]
            self.subject.ask(self.tally.undo)
        total = self.subject.ask(self.tally.total)
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


@st.composite
def _openings(draw, boxes):
    choose = Chooser(draw)
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
    strategy=lambda constraints: _openings(constraints.boxes),
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
    history=History(machine=TallyMachine, open=TallySession, simpler=(smaller,), runs=0.5, steps=12),
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


@pytest.fixture
def watched():
    """A class of its own for each test."""
    return type("WatchedHere", (Watched,), {"traces": ()})


def test_a_right_implementation_holds_in_every_step(watched):
    outcome = run_job(job(watched), SEEDED)
    assert outcome.verdict is Verdict.HOLDS
    assert (outcome.cases, outcome.steps) == (20, sum(len(trace) - 1 for trace in watched.traces))
    assert outcome.steps == 20 * 12
    assert outcome.exact
    assert 10 < outcome.features["add"] < 20  # Hypothesis leaves out some rules in some runs
    assert 10 < outcome.features["undo"] < 20


def test_runs_are_drawn_afresh(watched):
    """Were steps copied from run to run, as Hypothesis does after some runs, most would have common ones."""
    run_job(job(watched), Budget(examples=40, seed=2))
    numbers = [number for trace in watched.traces for number in trace[1:] if number != "undo"]
    starts = {tuple(trace[:3]) for trace in watched.traces}
    assert len(starts) >= 36
    assert max(numbers.count(number) for number in set(numbers) - {1}) <= len(numbers) / 20


def test_no_trace_is_walked_twice(watched):
    run_job(job(watched), Budget(examples=40, seed=2))
    assert len({tuple(map(str, trace)) for trace in watched.traces}) == len(watched.traces)


def test_the_number_of_steps_is_the_components_or_the_budgets(watched):
    for steps in (None, 5, 40):
        watched.traces = ()
        run_job(job(watched), replace(SEEDED, steps=steps))
        assert max(len(trace) - 1 for trace in watched.traces) == (steps or 12)


def test_a_trace_that_fails_is_shrunk_to_the_smallest():
    outcome = run_job(job(Forgets), SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.case == TallyCase(0, (Add(1), Add(1), Add(21), Undo()))
    assert outcome.failure.comparison.context == f"after {Undo()}"
    assert not outcome.flaky
    assert len(outcome.first_failure.case.steps) >= 4
    assert outcome.first_failure.case != outcome.failure.case
    assert outcome.cases <= 20


def test_the_trace_ends_with_the_step_that_fails(watched):
    class ForgetsHere(Forgets, watched):
        pass

    outcome = run_job(job(ForgetsHere), replace(SEEDED, shrink=False))
    assert outcome.failure.case == outcome.first_failure.case
    asked = [step.number if isinstance(step, Add) else "undo" for step in outcome.failure.case.steps]
    assert asked[-1] == "undo"
    assert ForgetsHere.traces[-2][1:] == ForgetsHere.traces[-1][1:] == asked  # the last one repeats it


def test_shrinking_walks_each_trace_once_and_only_legal_ones(watched):
    class ForgetsHere(Forgets, watched):
        pass

    outcome = run_job(job(ForgetsHere), SEEDED)
    shrinking = ForgetsHere.traces[outcome.cases : -1]
    assert len({tuple(map(str, trace)) for trace in shrinking}) > len(shrinking) / 2  # a trace may end before its end
    assert all(number != 0 for trace in ForgetsHere.traces for number in trace[1:])
    assert len(shrinking) < 60


def test_what_shrinking_meets_does_not_count():
    shrunk, drawn = (run_job(job(Forgets), replace(SEEDED, shrink=shrink)) for shrink in (True, False))
    assert (shrunk.cases, shrunk.steps, shrunk.features) == (drawn.cases, drawn.steps, drawn.features)
    assert not shrunk.not_applicable


def test_shrinking_ends_after_its_time(monkeypatch):
    monkeypatch.setattr("npudiff.case_run.SHRINK_SECONDS", 0.0)
    outcome = run_job(job(Forgets), SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.case == outcome.first_failure.case


def test_shrinking_stays_within_what_is_supported():
    outcome = run_job(job(Forgets, supports={"number": range(7, 100), "start": (5,)}), SEEDED)
    assert outcome.failure.case == TallyCase(5, (Add(7), Add(7), Add(21), Undo()))


def test_an_exception_in_a_step_is_a_finding():
    class Breaks(Tally):
        def add(self, number):
            if number > 50:
                raise RuntimeError("507035: vector core exception")
            super().add(number)

    outcome = run_job(job(Breaks), SEEDED)
    assert outcome.verdict is Verdict.RAISED
    assert outcome.failure.case == TallyCase(0, (Add(51),))
    assert str(outcome.failure.error) == "507035: vector core exception"


def test_an_implementation_that_does_not_open_is_a_finding_without_steps():
    def closed(inputs, target):
        raise RuntimeError("no memory")

    outcome = run_job(job(closed), SEEDED)
    assert outcome.verdict is Verdict.RAISED
    assert outcome.failure.case == TallyCase()
    assert (outcome.cases, outcome.steps) == (1, 0)


def test_an_object_that_lacks_a_method_is_a_finding():
    outcome = run_job(job(lambda inputs, target: object()), SEEDED)
    assert outcome.verdict is Verdict.RAISED
    assert "add" in str(outcome.failure.error) or "undo" in str(outcome.failure.error)
    assert len(outcome.failure.case.steps) == 1


def test_a_step_that_writes_into_what_it_is_given_is_a_finding():
    class Writes(Tally):
        def add(self, number):
            super().add(number)
            number.zero_()

    outcome = run_job(job(Writes), SEEDED)
    assert "wrote into its inputs" in str(outcome.failure.error)


def test_every_step_waits_for_the_device():
    waited = []
    made = job()
    target = replace(made.subject.target, synchronize=lambda: waited.append(1))
    outcome = run_job(replace(made, subject=replace(made.subject, target=target)), Budget(examples=2, seed=0))
    assert len(waited) == outcome.cases + 2 * outcome.steps


def test_a_failure_that_does_not_repeat_is_flaky_and_still_a_finding():
    asked = []

    class Moody(Tally):
        def total(self):
            asked.append(1)
            return super().total() + (len(asked) == 40)

    outcome = run_job(job(Moody), SEEDED)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.flaky
    assert outcome.failure.case == outcome.first_failure.case


def test_runs_are_drawn_within_what_is_supported(watched):
    outcome = run_job(job(watched, supports={"start": (7,), "step": ()}), SEEDED)
    assert {trace[0] for trace in watched.traces} == {7}
    assert not any("undo" in trace for trace in watched.traces)
    assert not outcome.not_applicable
    assert outcome.cases == 20


def narrower(made, **supports):
    """A job whose cases are drawn as before, for an implementation that supports less."""
    item = replace(made.subject.implementation, constraints=Constraints.of(supports))
    return replace(made, subject=replace(made.subject, implementation=item))


def test_a_run_that_begins_outside_what_is_supported_is_counted_and_not_taken(watched):
    outcome = run_job(narrower(job(watched), start=range(50)), Budget(examples=10, seed=0))
    assert outcome.cases == 10
    assert outcome.not_applicable.total() > 2
    assert all("start" in reason for reason in outcome.not_applicable)
    assert all(trace[0] < 50 for trace in watched.traces)


def test_a_run_ends_with_a_step_that_is_not_supported(watched):
    outcome = run_job(narrower(job(watched), step=()), Budget(examples=10, seed=0))
    assert set(outcome.not_applicable) == {"step undo is not in {}"}
    assert not any("undo" in trace for trace in watched.traces)


def test_a_machine_that_never_applies_ends_and_says_so():
    outcome = run_job(narrower(job(), start=(500,)), SEEDED)
    assert outcome.verdict is Verdict.NOT_APPLICABLE
    assert outcome.cases == 0
    assert outcome.not_applicable.total() == 9


def test_a_machine_with_one_trace_ends(watched):
    history = machine(
        TallyMachine, opening=lambda self: TallyCase(), add=rule()(lambda self: self.take(Add(3))), undo=None
    )
    outcome = run_job(job(watched, history=history), SEEDED)
    assert outcome.verdict is Verdict.HOLDS
    assert (outcome.cases, outcome.steps) == (1, 12)
    assert len(watched.traces) == 1


def test_the_same_seed_draws_the_same_traces_and_another_one_others(watched):
    drawn = []
    for seed in (7, 7, 8):
        watched.traces = ()
        run_job(job(watched), Budget(examples=20, seed=seed, deterministic=False))
        drawn.append(watched.traces)
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_deterministic_run_draws_the_same_traces_and_a_free_one_others(watched):
    drawn = []
    for deterministic in (True, True, False, False):
        watched.traces = ()
        run_job(job(watched), Budget(examples=20, deterministic=deterministic))
        drawn.append(watched.traces)
    assert drawn[0] == drawn[1]
    assert drawn[2] != drawn[3]


def test_a_budget_of_seconds_stops_in_the_middle_of_a_run():
    class Slow(Tally):
        def total(self):
            import time

            time.sleep(0.005)
            return super().total()

    outcome = run_job(job(Slow), Budget(examples=None, seconds=0.3, steps=1000))
    assert outcome.verdict is Verdict.HOLDS
    assert 0.25 < outcome.seconds < 2
    assert 5 < outcome.steps < 100


def test_a_budget_of_seconds_runs_more_than_the_default_number():
    assert run_job(job(), Budget(examples=None, seconds=1.0)).cases > 50


def test_a_failure_is_remembered_and_tried_first(tmp_path):
    budget = Budget(examples=50, deterministic=False, memory=tmp_path)
    first = run_job(job(Forgets), budget)
    assert not first.remembered
    again = run_job(job(Forgets), budget)
    assert again.remembered
    assert again.cases == 1
    assert again.first_failure.case == first.first_failure.case
    assert again.failure.case == first.failure.case


def test_a_seeded_or_deterministic_run_remembers_nothing(tmp_path):
    for budget in (Budget(seed=1, memory=tmp_path), Budget(deterministic=True, memory=tmp_path)):
        assert run_job(job(Forgets), budget).failure is not None
        assert list(tmp_path.iterdir()) == []


def test_progress_hears_of_every_run():
    heard = []
    run_job(job(), SEEDED, lambda outcome: heard.append(outcome.cases))
    assert heard == list(range(1, 21))


def boom(*_):
    raise LookupError("my own defect")


class BrokenSession(TallySession):
    def take(self, step):
        raise ValueError("my own defect")


@pytest.mark.parametrize(
    "changes",
    [
        {"values": boom},
        {"features": boom},
        {"history": replace(COMPONENT.history, open=boom)},
        {"history": machine(TallyMachine, opening=boom)},
        {"history": machine(TallyMachine, add=rule()(boom))},
        {"history": replace(COMPONENT.history, open=BrokenSession)},
    ],
    ids=["values", "features", "open", "opening", "rule", "session"],
)
def test_exceptions_of_the_component_are_no_findings(changes):
    with pytest.raises((LookupError, ValueError), match="my own defect"):
        run_job(job(**changes), SEEDED)


@pytest.mark.parametrize("part", ["check_case", "simpler", "session"])
def test_nor_are_they_while_a_trace_is_shrunk(part):
    class Late(TallySession):
        def take(self, step):
            if self.numbers[0] == 0 and len(self.numbers) > 1:
                raise ValueError("my own defect")
            return super().take(step)

    changes = {
        "check_case": {"check_case": boom},
        "simpler": {"history": replace(COMPONENT.history, simpler=(boom,))},
        "session": {"history": replace(COMPONENT.history, open=Late)},
    }[part]
    supports = {"start": range(5, 99)} if part == "session" else None
    made = job(Forgets, supports=supports, **changes)
    item = replace(made.subject.implementation, constraints=Constraints())
    with pytest.raises((LookupError, ValueError), match="my own defect"):
        run_job(replace(made, subject=replace(made.subject, implementation=item)), SEEDED)


def test_a_machine_that_draws_something_else_each_time_does_not_look_clean():
    calls = []

    def add(self):
        calls.append(1)
        self.take(Add(1 + len(calls) % 90))

    with contextlib.suppress(Flaky):  # it may propagate, as a defect of the component
        found = run_job(job(Forgets, history=machine(TallyMachine, add=rule()(add))), SEEDED)
        assert found.verdict is not Verdict.HOLDS


def test_interruption_propagates():
    class Interrupted(Tally):
        def undo(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job(Interrupted), SEEDED)


def test_a_component_with_history_has_no_relations():
    with pytest.raises(ValueError, match="tally has a history, and relations need cases that are drawn whole"):
        replace(COMPONENT, relations=(Property("same", "", lambda subject, case: None),))


TRACE = TallyCase(3, (Add(5), Add(6), Undo(), Add(7), Add(30), Undo(), Add(1), Undo()))


def test_a_given_trace_is_walked_up_to_the_step_that_fails(watched):
    class ForgetsHere(Forgets, watched):
        pass

    outcome = run_case(job(ForgetsHere), TRACE)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.case == replace(TRACE, steps=TRACE.steps[:6])
    assert (outcome.cases, outcome.steps) == (1, 6)
    assert ForgetsHere.traces == ([3, 5, 6, "undo", 7, 30, "undo"],)


def test_a_given_trace_that_holds_is_walked_to_its_end(watched):
    outcome = run_case(job(watched), TRACE)
    assert outcome.verdict is Verdict.HOLDS
    assert (outcome.cases, outcome.steps) == (1, 8)
    assert watched.traces == ([3, 5, 6, "undo", 7, 30, "undo", 1, "undo"],)


def test_a_given_trace_that_is_not_supported_as_a_whole_is_not_begun(watched):
    outcome = run_case(job(watched, supports={"step": ()}), TRACE)
    assert outcome.verdict is Verdict.NOT_APPLICABLE
    assert not watched.traces


def test_the_property_itself_walks_a_trace_as_well():
    made = job(Forgets)
    assert EQUIVALENCE.check(made.subject, TRACE).worst == float("inf")
    assert EQUIVALENCE.check(job().subject, TRACE).holds


def test_a_walk_ends_with_the_step_that_fails_and_goes_on_where_it_stood(watched):
    walk = Walk(job(Forgets).subject)
    assert not walk.to(TRACE).holds
    assert walk.case == replace(TRACE, steps=TRACE.steps[:6])
    walk = Walk(job(watched).subject)
    assert walk.to(replace(TRACE, steps=())).outputs == ()
    for count in (3, 8):
        assert walk.to(replace(TRACE, steps=TRACE.steps[:count])).holds
    assert watched.traces == ([3, 5, 6, "undo", 7, 30, "undo", 1, "undo"],)


def test_a_component_without_history_has_no_walk(toy):
    with pytest.raises(ValueError, match="toy has no history"):
        Walk(toy.job().subject).to(toy.Case((1,)))


def test_steps_have_a_column_where_there_are_any(capsys, toy):
    console = Console(verbose=False)
    console.table([run_job(job(), Budget(examples=3, seed=1, steps=5)), run_job(toy.job(), Budget(examples=3, seed=1))])
    tally, other = capsys.readouterr().out.split("toy ")
    assert re.search(r"cases +steps +not applicable", tally)
    assert re.search(r"mine +3 +15 +0 +exact", tally)
    assert "steps" not in other


def test_a_finding_has_the_shrunk_trace_as_its_case_and_is_about_its_last_step(tmp_path):
    outcome = run_job(job(Forgets), SEEDED)
    finding = finding_of(outcome)
    assert finding.case == json.loads(dumps(outcome.failure.case))
    assert finding.case["steps"][-2:] == [{"number": 21, "kind": "add"}, {"kind": "undo"}]
    assert finding.detail["line"] == "0 1 1 21 undo"
    assert finding.detail["where"]["step"] == 4
    assert finding.detail["context"] == f"after {Undo()}"
    folder = write_finding(finding, outcome.failure, tmp_path)
    read = read_finding(folder)
    assert loads(TallyCase, json.dumps(dict(read.case))) == outcome.failure.case


@pytest.fixture
def discovered(monkeypatch):
    """Make the replay find the toy component with one implementation; returns a function of it."""
    monkeypatch.setattr("npudiff.replay.load_component", lambda name: COMPONENT)
    monkeypatch.setattr("npudiff.replay.load_target", lambda name, cann: job().subject.target)

    def provide(function):
        items = [Implementation("tally", "mine", function)]
        monkeypatch.setattr("npudiff.replay.select_implementations", lambda components, selectors: items)

    return provide


def test_a_finding_replays_until_it_is_fixed(tmp_path, discovered):
    outcome = run_job(job(Forgets), SEEDED)
    folder = write_finding(finding_of(outcome), outcome.failure, tmp_path)
    discovered(Forgets)
    failed = replay(folder, [], None, None)
    assert failed.verdict is ReplayVerdict.FAILED
    assert failed.line == "tally.mine.equivalence: 0 1 1 21 undo"
    discovered(Tally)
    fixed = replay(folder, [], None, None)
    assert fixed.verdict is ReplayVerdict.FIXED
    assert fixed.outcome.steps == 4


def test_a_trace_that_is_not_legal_is_damaged(tmp_path, discovered):
    outcome = run_job(job(Forgets), SEEDED)
    folder = write_finding(replace(finding_of(outcome), case={"start": 0, "steps": [{"kind": "add", "number": 0}]}),
                           outcome.failure, tmp_path)  # fmt: skip
    discovered(Forgets)
    result = replay(folder, [], None, None)
    assert result.verdict is ReplayVerdict.ERROR
    assert "the case is damaged: numbers must lie in 1..99" in result.line


def test_runs_are_a_share_of_the_examples():
    made = job()
    assert Plan(made.subject.target, (made,), (), Request()).budget(made).examples == 50
    assert Plan(made.subject.target, (made,), (), Request(examples=1)).budget(made).examples == 1


def test_steps_are_told_apart_by_their_kind():
    assert loads(TallyCase, '{"steps": [{"kind": "undo"}, {"kind": "add", "number": 4}]}').steps == (Undo(), Add(4))
    for text in ('{"steps": [{"kind": "subtract"}]}', '{"steps": [{"kind": "add"}]}', '{"steps": [{"kind": 1}]}'):
        with pytest.raises(ValueError, match=r"kind|missing"):
            loads(TallyCase, text)
