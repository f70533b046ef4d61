"""What several runs say together: the latest word on each job, and nothing that is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from npudiff.show.run_page.matrix import cell
from npudiff.show.run_page.read import StoredRun
from npudiff.show.run_page.record import FindingRecord, KnownRecord
from npudiff.show.run_page.state import State


@pytest.fixture
def run(record, job):
    """A run at a minute, of jobs; a job that fails has a finding of its name."""

    def make(minute, *jobs, root="out", **changes):
        findings = tuple(
            FindingRecord(name, one.component, one.implementation, one.property_name, one.verdict, "x", "x")
            for one in jobs
            for name in one.findings
        )
        started = f"2026-01-02T03:{minute:02}:00Z"
        return StoredRun(record(started=started, jobs=jobs, findings=findings, **changes), Path(root))

    return make


def verdicts(state):
    return [now.job.verdict for now in state.jobs]


def failed(job, **changes):
    return job(verdict="wrong value", findings=("f1",), **changes)


def test_the_later_run_has_the_last_word(run, job):
    assert verdicts(State([run(1, failed(job)), run(2, job())])) == ["holds"]
    assert verdicts(State([run(1, job()), run(2, failed(job))])) == ["wrong value"]


def test_what_is_no_longer_found_is_not_lost(run, job):
    state = State([run(1, failed(job)), run(2, job())])
    assert not state.findings
    assert [one.finding.folder for one in state.earlier] == ["f1"]


def test_a_finding_that_two_runs_have_is_one(run, job):
    state = State([run(1, failed(job)), run(2, failed(job))])
    assert len(state.findings) == 1
    assert state.findings[0].run.record.started == "2026-01-02T03:02:00Z"
    assert not state.earlier


def test_a_finding_that_a_whole_and_a_narrowed_run_have_is_the_later_ones(run, job):
    state = State([run(1, failed(job)), run(2, failed(job), scope=("--where a=1",))])
    assert [one.run.record.started for one in state.findings] == ["2026-01-02T03:02:00Z"]
    assert cell(state.jobs)[0] == "1 finding"


def test_a_finding_of_another_folder_is_another_one(run, job):
    state = State([run(1, failed(job)), run(2, failed(job, property_name="other"), root="elsewhere")])
    assert len(state.findings) == 2


def test_a_narrowed_run_says_nothing_of_the_rest(run, job):
    narrow = ("--where window=4",)
    assert verdicts(State([run(1, failed(job)), run(2, job(), scope=narrow)])) == ["wrong value", "holds"]
    assert verdicts(State([run(1, failed(job), scope=narrow), run(2, job(), scope=narrow)])) == ["holds"]
    assert verdicts(State([run(1, failed(job), scope=narrow), run(2, job())])) == ["holds"]


def test_a_gate_that_left_out_known_issues_says_nothing_of_their_cases(run, job):
    left_out = job(without=("toy.mine where a=1",))
    assert verdicts(State([run(1, failed(job)), run(2, left_out)])) == ["wrong value", "holds"]
    assert verdicts(State([run(1, failed(job)), run(2, left_out), run(3, job())])) == ["holds"]
    assert verdicts(State([run(1, failed(job, implementation="other")), run(2, job(implementation="other"))])) == [
        "holds"
    ]


def test_known_issues_are_those_of_the_latest_gate_at_each_place(run, job):
    one, other, elsewhere = (KnownRecord(name, "still fails", False, "x", "2027-01-31") for name in "abc")
    runs = [
        run(1, job(), gate="open", known=(one,)),
        run(2, job(), gate="open", known=(other,)),
        run(3, job(), gate="open", known=(elsewhere,), target="npu"),
        run(4, job()),
    ]
    assert [now.known.name for now in State(runs).known] == ["c", "b"]
    assert not State([*runs, run(5, job(), gate="open"), run(6, job(), gate="open", target="npu")]).known


def test_what_a_run_did_not_get_to_says_nothing(run, job):
    missing = job(verdict="not run", cases=0)
    assert verdicts(State([run(1, failed(job)), run(2, missing)])) == ["wrong value"]
    assert verdicts(State([run(1, missing), run(2, job(), scope=("--case 1",))])) == ["holds"]
    assert verdicts(State([run(1, missing)])) == ["not run"]


def test_targets_and_cann_stand_beside_each_other(run, job):
    runs = [run(1, job()), run(2, job(), cann="8.0"), run(3, job(), target="npu", cann="8.5")]
    assert [place.text for place in State(runs).columns] == ["npu, CANN 8.5", "sim, CANN 8.0", "sim, CANN 8.5"]


def test_a_mutant_counts_where_it_was_judged(run, mutant):
    def found(*runs):
        return [one.mutant.found for one in State(runs).mutants]

    judged = run(1, mutants=(mutant(found=True),))
    missed, shortened = (run(2, mutants=(mutant(found=False),), judged=one) for one in (True, False))
    assert found(judged, missed) == [False]
    assert found(judged, shortened) == [True]
    assert found(shortened, judged) == [True]
    assert len(State([missed]).missed) == 1
    assert not State([shortened]).missed


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ([], ("not run", "none", "")),
        ([{}], ("ok", "yes", "10 cases")),
        ([{"cases": 1}], ("ok", "yes", "1 case")),
        ([{"verdict": "not applicable", "cases": 0}], ("not applicable", "none", "")),
        ([{"verdict": "not run", "cases": 0}], ("not run", "none", "")),
        ([{}, {"verdict": "not run", "cases": 0}], ("ok so far", "few", "10 cases, 1 not run")),
        ([{"verdict": "exception", "cases": 3}], ("1 finding", "no", "3 cases")),
        ([{"verdict": "wrong value", "cases": 3, "findings": ("a", "b")}, {}], ("2 findings", "no", "13 cases")),
        ([{"findings": ("poisoned",)}], ("1 finding", "no", "10 cases")),
        ([{"without": ("a",)}, {"without": ("a",)}], ("ok", "yes", "20 cases, without 1 known issue")),
        (
            [{"verdict": "not run", "cases": 0, "without": ("a", "b")}],
            ("2 known issues", "few", "nothing else was run"),
        ),
    ],
)
def test_a_cell_says_it_in_words(run, job, jobs, said):
    kept = run(1, *(job(property_name=f"p{number}", **one) for number, one in enumerate(jobs)))
    assert cell(State([kept]).jobs) == said


def test_a_cell_says_that_it_was_narrowed(run, job):
    assert cell(State([run(1, job(), scope=("--where a=1",))]).jobs) == ("ok", "yes", "10 cases, narrowed")
