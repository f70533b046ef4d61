"""Traces that are there as a whole: given, kept in a finding, replayed, shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from npudiff.findings.finding import finding_of, read_finding, write_finding
from npudiff.findings.replay import ReplayVerdict, replay
from npudiff.judge.judge import LocalJudge, TraceExecutor
from npudiff.model.case import dumps, loads
from npudiff.model.implementation import Implementation
from npudiff.model.job import Budget, Verdict
from npudiff.run.engine import run_case, run_job
from npudiff.run.plan import Plan, Request
from npudiff.show.console import Console


def test_a_given_trace_is_walked_up_to_the_step_that_fails(watched, tally):
    class ForgetsHere(tally.Forgets, watched):
        pass

    outcome = run_case(tally.job(ForgetsHere), tally.TRACE)
    assert outcome.verdict is Verdict.WRONG
    assert outcome.failure.case == replace(tally.TRACE, steps=tally.TRACE.steps[:6])
    assert (outcome.cases, outcome.steps) == (1, 6)
    assert ForgetsHere.traces == ([3, 5, 6, "undo", 7, 30, "undo"],)


def test_a_given_trace_that_holds_is_walked_to_its_end(watched, tally):
    outcome = run_case(tally.job(watched), tally.TRACE)
    assert outcome.verdict is Verdict.HOLDS
    assert (outcome.cases, outcome.steps) == (1, 8)
    assert watched.traces == ([3, 5, 6, "undo", 7, 30, "undo", 1, "undo"],)


def test_a_given_trace_that_is_not_supported_as_a_whole_is_not_begun(watched, tally):
    outcome = run_case(tally.job(watched, supports={"step": ()}), tally.TRACE)
    assert outcome.verdict is Verdict.NOT_APPLICABLE
    assert not watched.traces


def test_the_property_itself_walks_a_trace_as_well(tally):
    made = tally.job(tally.Forgets)
    assert LocalJudge(made).check(tally.TRACE).worst == float("inf")
    assert LocalJudge(tally.job()).check(tally.TRACE).holds


def test_a_walk_ends_with_the_step_that_fails_and_goes_on_where_it_stood(watched, tally):
    walk = TraceExecutor(tally.job(tally.Forgets).subject)
    assert not walk.run_to(tally.TRACE).holds
    assert walk.case == replace(tally.TRACE, steps=tally.TRACE.steps[:6])
    walk = TraceExecutor(tally.job(watched).subject)
    assert walk.run_to(replace(tally.TRACE, steps=())).outputs == ()
    for count in (3, 8):
        assert walk.run_to(replace(tally.TRACE, steps=tally.TRACE.steps[:count])).holds
    assert watched.traces == ([3, 5, 6, "undo", 7, 30, "undo", 1, "undo"],)


def test_a_component_without_history_has_no_walk(toy, tally):
    with pytest.raises(ValueError, match="toy has no history"):
        TraceExecutor(toy.job().subject).run_to(toy.Case((1,)))


def test_steps_have_a_column_where_there_are_any(capsys, toy, tally):
    budget = Budget(examples=3, seed=1, steps=5)
    Console(verbose=False).table([run_job(tally.job(), budget), run_job(toy.job(), budget)])
    first, other = capsys.readouterr().out.split("toy ")
    assert re.search(r"cases +steps +n/a", first)
    assert re.search(r"mine +3 +15 +0 +exact", first)
    assert "steps" not in other


def test_a_finding_has_the_shrunk_trace_as_its_case_and_is_about_its_last_step(tmp_path, tally):
    outcome = run_job(tally.job(tally.Forgets), tally.SEEDED)
    finding = finding_of(outcome)
    assert finding.case == json.loads(dumps(outcome.failure.case))
    assert finding.case["steps"][-2:] == [{"number": 21, "kind": "add"}, {"kind": "undo"}]
    assert finding.detail["line"] == "0 1 1 21 undo"
    assert finding.detail["where"]["step"] == 4
    assert finding.detail["context"] == f"after {tally.Undo()}"
    folder = write_finding(finding, outcome.failure, tmp_path)
    read = read_finding(folder)
    assert loads(tally.TallyCase, json.dumps(dict(read.case))) == outcome.failure.case


@pytest.fixture
def discovered(monkeypatch, tally):
    """Make the replay find the toy component with one implementation; returns a function of it."""
    monkeypatch.setattr("npudiff.findings.replay.load_component", lambda name: tally.COMPONENT)
    monkeypatch.setattr("npudiff.findings.replay.load_target", lambda name, cann: tally.job().subject.target)

    def provide(function):
        items = [Implementation("tally", "mine", function)]
        monkeypatch.setattr("npudiff.findings.replay.select_implementations", lambda components, selectors: items)

    return provide


def test_a_finding_replays_until_it_is_fixed(tmp_path, discovered, tally):
    outcome = run_job(tally.job(tally.Forgets), tally.SEEDED)
    folder = write_finding(finding_of(outcome), outcome.failure, tmp_path)
    discovered(tally.Forgets)
    failed = replay(folder, [], None, None)
    assert failed.verdict is ReplayVerdict.FAILED
    assert failed.line == "tally.mine.equivalence: 0 1 1 21 undo"
    discovered(tally.Tally)
    fixed = replay(folder, [], None, None)
    assert fixed.verdict is ReplayVerdict.FIXED
    assert fixed.outcome.steps == 4


def test_a_trace_that_is_not_legal_is_damaged(tmp_path, discovered, tally):
    outcome = run_job(tally.job(tally.Forgets), tally.SEEDED)
    folder = write_finding(replace(finding_of(outcome), case={"start": 0, "steps": [{"kind": "add", "number": 0}]}),
                           outcome.failure, tmp_path)  # fmt: skip
    discovered(tally.Forgets)
    result = replay(folder, [], None, None)
    assert result.verdict is ReplayVerdict.ERROR
    assert "the case is damaged: numbers must lie in 1..99" in result.line


def test_runs_are_a_share_of_the_examples(tally):
    made = tally.job()
    assert Plan(made.subject.target, (made,), (), Request(examples=100)).budget(made).examples == 50
    assert Plan(made.subject.target, (made,), (), Request(examples=1)).budget(made).examples == 1


def test_steps_are_told_apart_by_their_kind(tally):
    assert loads(tally.TallyCase, '{"steps": [{"kind": "undo"}, {"kind": "add", "number": 4}]}').steps == (
        tally.Undo(),
        tally.Add(4),
    )
    for text in ('{"steps": [{"kind": "subtract"}]}', '{"steps": [{"kind": "add"}]}', '{"steps": [{"kind": 1}]}'):
        with pytest.raises(ValueError, match=r"kind|missing"):
            loads(tally.TallyCase, text)
