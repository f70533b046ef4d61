"""Which cases known issues leave out, which issues are looked at, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from types import SimpleNamespace

import pytest

from npudiff.errors import UsageError
from npudiff.gate.known import KnownIssue
from npudiff.gate.result import State
from npudiff.gate.triage import is_known, judged, triage
from npudiff.gate.versions import Machine, Range, Versions
from npudiff.model.constraints import parse_where
from npudiff.model.instead import Change
from npudiff.model.job import Outcome
from npudiff.run.plan import Request, make_plan

TODAY = date(2026, 11, 23)
HERE = Machine("sim", "8.5")
PLAN = make_plan(Request(("swa_mask", "swiglu"), target="sim"))
NAMED = next(job for job in PLAN.jobs if job.subject.component.name == "swa_mask").subject.implementation.name
ISSUE = KnownIssue("swa_mask", NAMED, "https://example.org/1", TODAY)
CASE = '{"kv_lengths": [2], "window": 1, "spare": 0, "dtype": "int32", "column": false}'


def sorted_by(*issues, plan=PLAN, here=HERE):
    return triage(plan, issues, here, TODAY, "known.toml")


def of(issue):
    return [job for job in PLAN.jobs if job.subject.names == (issue.component, issue.implementation)]


def where(*texts, issue=ISSUE):
    return replace(issue, condition=texts, where=parse_where(list(texts)))


def instead(*texts, issue=ISSUE):
    return replace(issue, case=CASE, instead=tuple(map(Change.parsed, texts)))


def test_without_issues_every_job_is_run_as_it_is():
    found = sorted_by()
    assert (found.jobs, found.again, found.settled) == (PLAN.jobs, (), ())


def test_an_issue_of_a_whole_implementation_leaves_out_its_jobs_and_runs_them_again():
    found = sorted_by(ISSUE)
    assert list(found.jobs) == [job for job in PLAN.jobs if job not in of(ISSUE)]
    ((checked, jobs),) = found.again
    assert checked.implementation == NAMED
    assert [job.prop for job in jobs] == [job.prop for job in of(ISSUE)]
    assert found.settled == ()


def test_an_issue_with_a_condition_leaves_out_its_cases_only():
    found = sorted_by(where("window=3"))
    assert len(found.jobs) == len(PLAN.jobs)
    for before, after in zip(PLAN.jobs, found.jobs, strict=True):
        mine = before in of(ISSUE)
        assert [one.reason for one in after.subject.excluded] == (["known: https://example.org/1"] if mine else [])
        assert after.constraints == before.constraints
    ((_, again),) = found.again
    assert {tuple(box["window"]) for job in again for box in job.constraints.boxes} == {(3,)}
    assert not any(job.subject.excluded for job in again)


def test_an_issue_that_says_what_is_computed_leaves_out_no_case_of_what_can_be_judged_by_that():
    plan = make_plan(Request(("swa_mask", "rms_norm"), target="sim"))
    component = next(job for job in plan.jobs if job.subject.component.name == "rms_norm").subject
    other = KnownIssue("rms_norm", component.implementation.name, "https://example.org/2", TODAY)
    norm = replace(other, instead=(Change.parsed("epsilon = 0.0"),))
    found = sorted_by(norm, plan=plan)
    seen = {}
    for job in found.jobs:
        if job.subject.names == component.names:
            seen[job.prop.name] = (len(job.subject.instead), len(job.subject.excluded))
    assert seen == {"equivalence": (1, 0), "earlier_calls_change_nothing": (1, 0)}  # and no relation, of any case
    assert component.component.relations
    assert all(job.subject.instead == () for job in found.jobs if job.subject.names != component.names)
    ((_, again),) = found.again
    assert not any(job.subject.instead for job in again)


def test_an_issue_of_one_property_concerns_no_other():
    found = sorted_by(replace(ISSUE, prop="equivalence"))
    gone = [job for job in PLAN.jobs if job not in found.jobs]
    assert [job.name for job in gone] == [f"swa_mask.{NAMED}.equivalence"]
    ((_, again),) = found.again
    assert [job.name for job in again] == [f"swa_mask.{NAMED}.equivalence"]


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"expires": TODAY - timedelta(days=1)}, State.EXPIRED),
        ({"expires": TODAY}, None),
        ({"targets": ("npu",)}, State.ELSEWHERE),
        ({"targets": ("npu", "sim")}, None),
        ({"versions": Versions(cann=Range(">=9"))}, State.ELSEWHERE),
        ({"versions": Versions(cann=Range(">=8.5"))}, None),
        ({"versions": Versions(torch_npu=Range(">=2"))}, State.ELSEWHERE),
        ({"versions": Versions(soc="Ascend910B*")}, State.ELSEWHERE),
        ({"implementation": "nobody"}, State.UNMATCHED),
        ({"component": "rms_norm"}, State.NOT_RUN),
    ],
)
def test_an_issue_that_is_not_looked_at_hides_nothing(changes, state):
    found = sorted_by(replace(ISSUE, **changes))
    assert [status.state for status in found.settled] == ([] if state is None else [state])
    assert (found.jobs == PLAN.jobs) == (state is not None)
    assert bool(found.again) == (state is None)


def test_an_issue_of_what_is_left_out_here_is_not_known_here():
    plan = replace(PLAN, left_out={("swa_mask", "newer"): "get_mask has no argument window"})
    (status,) = sorted_by(replace(where("an_option=1"), implementation="newer"), plan=plan).settled
    assert (status.state, status.why) == (State.ELSEWHERE, "get_mask has no argument window")


def test_a_condition_that_no_case_meets_matches_nothing():
    narrow = replace(PLAN, jobs=tuple(
        replace(job, constraints=job.constraints.within(parse_where(["window=1..4"]))) for job in of(ISSUE)
    ))  # fmt: skip
    (status,) = sorted_by(where("window=9"), plan=narrow).settled
    assert (status.state, status.why) == (State.UNMATCHED, "the implementation supports no case of the condition")
    assert sorted_by(where("window=4"), plan=narrow).settled == ()


@pytest.mark.parametrize(
    ("issue", "said"),
    [
        (replace(ISSUE, component="nothing"), "known.toml:1: unknown component 'nothing'"),
        (replace(ISSUE, prop="nothing"), "known.toml:1: unknown property 'nothing'"),
        (where("nothing=1"), "known.toml:1"),
        (replace(ISSUE, case="{}"), "known.toml:1: case: "),
        (replace(ISSUE, case=CASE.replace("[2]", "[-1]")), "known.toml:1: case: "),
        (replace(where("window=3"), case=CASE), "known.toml:1: case: no part of it lies within 'where'"),
        (instead("windows += 1"), "known.toml:1: instead: windows += 1: unknown field of SwaMaskInputs 'windows'"),
        (instead("kv_lengths = many"), "known.toml:1: instead: "),
    ],
)
def test_an_issue_that_says_what_there_is_not_is_refused(issue, said):
    with pytest.raises(UsageError) as caught:
        sorted_by(issue)
    assert str(caught.value).startswith(said)


def test_a_case_of_an_issue_lies_within_its_condition():
    assert sorted_by(replace(where("window=1"), case=CASE)).again


def outcome(cases=3):
    return Outcome(PLAN.jobs[0], cases=cases)


def finding(verdict="wrong value"):
    return SimpleNamespace(verdict=verdict)


@pytest.mark.parametrize(
    ("changes", "seen", "state"),
    [
        ({}, [], State.NOT_RUN),
        ({}, [(outcome(0), [])], State.UNMATCHED),
        ({}, [(outcome(), [])], State.STALE),
        ({"intermittent": True}, [(outcome(), [])], State.QUIET),
        ({}, [(outcome(), [finding()])], State.SEEN),
        ({}, [(outcome(), []), (outcome(), [finding("time-out")])], State.SEEN),
        ({"verdict": "wrong value"}, [(outcome(), [finding()])], State.SEEN),
        ({"verdict": "time-out"}, [(outcome(), [finding()])], State.STALE),
        ({"verdict": "time-out"}, [(outcome(), [finding(), finding("time-out")])], State.SEEN),
    ],
)
def test_what_its_cases_came_to_decides_on_an_issue(changes, seen, state):
    assert judged(replace(ISSUE, **changes), seen).state is state


def test_a_stale_issue_says_how_many_cases_hold_and_what_failed_otherwise():
    assert judged(ISSUE, [(outcome(), []), (outcome(4), [])]).why == "7 cases of the condition hold: remove the entry"
    other = judged(replace(ISSUE, verdict="time-out"), [(outcome(), [finding()])])
    assert other.why == "3 cases of the condition hold, but for wrong value: remove the entry"


def test_an_issue_without_a_verdict_knows_all():
    assert is_known(ISSUE, finding("time-out"))
    assert is_known(replace(ISSUE, verdict="time-out"), finding("time-out"))
    assert not is_known(replace(ISSUE, verdict="time-out"), finding())


def test_an_implementation_of_the_same_name_of_another_component_is_another_one():
    other = next(job for job in PLAN.jobs if job.subject.component.name == "swiglu")
    subject = replace(other.subject, implementation=replace(other.subject.implementation, name=NAMED))
    plan = replace(PLAN, jobs=(*of(ISSUE), replace(other, subject=subject)))
    found = sorted_by(ISSUE, plan=plan)
    assert [job.subject.names for job in found.jobs] == [("swiglu", NAMED)]
    assert {job.subject.names for job in found.again[0][1]} == {("swa_mask", NAMED)}
