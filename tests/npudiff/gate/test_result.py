"""The exit code of a gate and its one line, of every way in which it can end."""

from __future__ import annotations

from collections import Counter
from datetime import date

import pytest

from npudiff.errors import ExitCode
from npudiff.gate.known import KnownIssue
from npudiff.gate.result import NOT_ENDED, GateResult, KnownStatus, Part, ReportedFinding, State
from npudiff.model.job import Outcome
from npudiff.run.plan import Request, make_plan

PLAN = make_plan(Request(("swa_mask",), target="sim"))
ISSUE = KnownIssue("swa_mask", "mine", "https://example.org/1", date(2027, 1, 1))


def result(cases=5, **changes):
    outcomes = [(Part.FIXED, Outcome(PLAN.jobs[0], cases=cases))]
    return GateResult(PLAN, "off", 60.0, outcomes=outcomes, **{"ended": "", **changes})


def reported(*, warns):
    finding = object.__new__(ReportedFinding)
    object.__setattr__(finding, "warns", warns)
    return finding


def status(state):
    return KnownStatus(ISSUE, state, "why")


@pytest.mark.parametrize(
    ("changes", "code", "verdict"),
    [
        ({}, ExitCode.CLEAN, "open"),
        ({"cases": 0}, ExitCode.NOTHING_RAN, "closed: nothing ran"),
        ({"cases": 0, "known": [status(State.SEEN)]}, ExitCode.CLEAN, "open"),
        ({"cases": 0, "known": [status(State.QUIET)]}, ExitCode.NOTHING_RAN, "closed: nothing ran"),
        ({"known": [status(State.NOT_RUN), status(State.ELSEWHERE), status(State.QUIET)]}, ExitCode.CLEAN, "open"),
        ({"known": [status(State.STALE)]}, ExitCode.FINDINGS, "closed: 1 known issue to look at"),
        ({"known": [status(State.UNMATCHED)]}, ExitCode.FINDINGS, "closed: 1 known issue to look at"),
        ({"known": [status(State.EXPIRED)] * 2}, ExitCode.FINDINGS, "closed: 2 known issues to look at"),
        ({"findings": [reported(warns=True)]}, ExitCode.CLEAN, "open"),
        ({"findings": [reported(warns=True), reported(warns=False)]}, ExitCode.FINDINGS, "closed: 1 finding"),
        ({"unfinished": ["a"]}, ExitCode.FINDINGS, "closed: 1 job for which there was no time"),
        ({"lost": "no answer", "ended": "KeyboardInterrupt"}, ExitCode.DEVICE_LOST, "device lost, nothing counts: no"),
        ({"ended": "KeyboardInterrupt"}, ExitCode.INTERRUPTED, "ended early: KeyboardInterrupt"),
        ({"ended": "ZeroDivisionError"}, ExitCode.INTERNAL, "ended early: ZeroDivisionError"),
        ({"ended": "ZeroDivisionError", "findings": [reported(warns=False)]}, ExitCode.INTERNAL, "ended early"),
    ],
)
def test_how_it_ended_decides_the_code_and_the_line(changes, code, verdict):
    ended = result(**changes)
    assert ended.code is code
    assert ended.verdict.startswith(verdict)


def test_before_its_end_it_is_not_green():
    fresh = GateResult(PLAN, "off", 60.0)
    assert fresh.ended == NOT_ENDED
    assert fresh.code is ExitCode.INTERNAL


def test_cases_of_all_parts_count():
    outcomes = [(Part.SHARED, Outcome(PLAN.jobs[0], cases=2)), (Part.ROTATING, Outcome(PLAN.jobs[0], cases=3))]
    whole = GateResult(PLAN, "off", 60.0, outcomes=outcomes, ended="")
    assert whole.cases == 5
    groups = whole.by_implementation()
    assert Counter(len(found) for found in groups.values())[2] == 1
    assert list(groups) == list(dict.fromkeys(job.subject.names for job in PLAN.jobs))


def test_a_status_says_why():
    assert status(State.STALE).line == "swa_mask.mine: does not fail any more: why"
    assert KnownStatus(ISSUE, State.QUIET).line == "swa_mask.mine: did not fail this time, and comes and goes"
