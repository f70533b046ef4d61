"""A run and its events: the same here and in workers, and an end that is told whatever it is."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from npudiff.findings.log import NotEnded, RunLog, untold
from npudiff.model.job import Budget, Outcome, Verdict
from npudiff.run import workers as workers_module
from npudiff.run.events import CasesJudged, JobEnded, JobStarted, RunEnded
from npudiff.run.messages import Kept, Task
from npudiff.run.plan import Plan
from npudiff.run.run import Run
from npudiff.show.finding import keeper

BUDGET = Budget(examples=20, seed=1)


@pytest.fixture
def jobs(toy):
    """Two jobs that hold, and between them one that does not; each has a name of its own."""
    functions = {"one": None, "wrong": toy.wrong_above(600), "two": None}
    made = [toy.job(function) if function else toy.job() for function in functions.values()]
    return [
        replace(job, subject=replace(job.subject, implementation=replace(job.subject.implementation, name=name)))
        for job, name in zip(made, functions, strict=True)
    ]


def run(jobs, folder, workers=1, **options):
    events = []
    with Run(workers, [events.append]) as one:
        one.run([Task(job, BUDGET, keeper(folder)) for job in jobs], **options)
    return events


def names(events, kind):
    return sorted(
        (event.outcome.job if kind is JobEnded else event.job).subject.implementation.name
        for event in events
        if isinstance(event, kind)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_each_job_begins_and_ends_once_and_the_run_ends_last(jobs, tmp_path, workers):
    events = run(jobs, tmp_path, workers, stage="part")
    assert names(events, JobStarted) == names(events, JobEnded) == ["one", "two", "wrong"]
    assert events[-1] == RunEnded(None)
    ended = {event.index: event for event in events if isinstance(event, JobEnded)}
    assert [ended[index].outcome.verdict for index in range(3)] == [Verdict.HOLDS, Verdict.WRONG, Verdict.HOLDS]
    assert [len(ended[index].kept) for index in range(3)] == [0, 1, 0]
    assert all((one.folder / "finding.json").is_file() for one in ended[1].kept)
    assert {event.stage for event in events[:-1]} == {"part"}


def test_cases_are_told_while_a_job_runs_here(jobs, tmp_path):
    told = [event.cases for event in run(jobs[:1], tmp_path) if isinstance(event, CasesJudged)]
    assert told == list(range(1, 21))


def test_workers_tell_how_far_a_long_job_is(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "TOLD_EVERY", 0.01)

    def slow(inputs, target):
        time.sleep(0.01)
        return toy.double(inputs)

    told = [event.cases for event in run([toy.job(slow)], tmp_path, 2) if isinstance(event, CasesJudged)]
    assert told == sorted(told)
    assert len(told) >= 3
    assert 0 < told[0] < told[-1] <= 20


@pytest.mark.parametrize("workers", [1, 2])
def test_after_its_time_no_other_job_begins(jobs, tmp_path, workers):
    events = run(jobs[:1] * 6, tmp_path, workers, until=time.monotonic())
    assert 1 <= len([event for event in events if isinstance(event, JobEnded)]) <= workers
    assert events[-1] == RunEnded(None)


def test_what_ends_a_run_early_is_its_last_event(toy, tmp_path):
    def interrupted(inputs, target):
        raise KeyboardInterrupt

    events = []
    with pytest.raises(KeyboardInterrupt), Run(1, [events.append]) as one:
        one.run([Task(toy.job(), BUDGET, None), Task(toy.job(interrupted), BUDGET, None)])
    assert len([event for event in events if isinstance(event, JobEnded)]) == 1
    assert isinstance(events[-1], RunEnded)
    assert isinstance(events[-1].error, KeyboardInterrupt)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_log_has_outcomes_and_findings_in_the_order_of_the_plan(jobs, tmp_path, workers):
    wrong = replace(jobs[1], subject=replace(jobs[1].subject, implementation=replace(
        jobs[1].subject.implementation, name="wrong too")))  # fmt: skip
    plan = Plan(jobs[0].subject.target, (wrong, jobs[0], jobs[1]), (jobs[2],))
    log = RunLog(plan)
    with Run(workers, [log]) as one:
        one.run([Task(job, BUDGET, None if job in plan.mutants else keeper(tmp_path)) for job in (*jobs, wrong)])
    said = [outcome.job.subject.implementation.name for outcome in log.outcomes]
    assert said == ["wrong too", "one", "wrong"]
    assert [outcome.job.subject.implementation.name for outcome in log.mutants] == ["two"]
    assert [one.finding.implementation for one in log.findings] == ["wrong too", "wrong"]
    assert all(one.folder.parent == tmp_path for one in log.findings)
    assert log.error is None
    assert log.seconds > 0


def log_of(jobs, mutants=()):
    return RunLog(Plan(jobs[0].subject.target, tuple(jobs), tuple(mutants)))


def ended(job, *kept, stage="", index=0):
    return JobEnded(index, Outcome(job, cases=1), kept, stage)


@pytest.fixture
def finding(jobs, tmp_path):
    """The folder of a finding of the second job."""
    (event,) = [event for event in run(jobs[1:2], tmp_path / "findings") if isinstance(event, JobEnded)]
    return event.kept[0].folder


def test_a_run_that_has_not_ended_says_so_and_one_that_was_ended_says_by_what(jobs):
    log = log_of(jobs)
    assert isinstance(log.error, NotEnded)
    interrupt = KeyboardInterrupt()
    log(RunEnded(interrupt))
    assert log.error is interrupt


def test_a_finding_of_a_job_that_ran_again_is_told_once_and_of_the_later_part(jobs, finding):
    kept = Kept(json.loads((finding / "finding.json").read_text()), finding)
    log = log_of(jobs)
    for stage in ("first", "second"):
        log(ended(jobs[1], kept, stage=stage))
    log(ended(jobs[2], stage="second"))
    assert [(one.folder, one.stage) for one in log.findings] == [(finding, "second")]


def test_outcomes_are_in_the_order_of_the_plan_however_jobs_end_and_mutants_apart(jobs):
    log = log_of(jobs[:2], jobs[2:])
    for job in reversed(jobs):
        log(ended(job))
    assert [outcome.job for outcome in log.outcomes] == jobs[:2]
    assert [outcome.job for outcome in log.mutants] == jobs[2:]


def test_a_finding_that_was_not_written_says_why_and_one_that_lacks_parts_is_there(jobs, finding):
    content = json.loads((finding / "finding.json").read_text())
    log = log_of(jobs)
    log(ended(jobs[1], Kept(content, finding, "no room")))
    log(ended(jobs[1], Kept(content, finding.parent / "other", "read-only", written=False)))
    assert [(one.problem, one.unwritten) for one in log.findings] == [("no room", ""), ("read-only", "read-only")]


def test_findings_of_which_no_event_came_are_those_that_were_written_since(jobs, finding):
    root, log = finding.parent, log_of(jobs)
    (root / "damaged").mkdir()
    (root / "damaged" / "finding.json").write_text("{")
    (root / "empty").mkdir()
    at = (finding / "finding.json").stat().st_mtime
    assert [folder for _, folder in untold(root, at, [])] == [finding]
    assert list(untold(root, at + 1, [])) == []
    assert list(untold(root, at, [root.parent / "elsewhere" / finding.name])) == []
    assert list(untold(root / "nowhere", at, [])) == []
    log.started = at
    for _ in range(2):
        log.add_untold(root)
    assert [one.folder for one in log.findings] == [finding]


def test_a_finding_of_no_job_of_the_plan_comes_last(jobs, tmp_path):
    log = log_of(jobs[:1])
    names = ("elsewhere", jobs[0].subject.implementation.name)
    events = run([replace(jobs[1], subject=replace(jobs[1].subject, implementation=replace(
        jobs[1].subject.implementation, name=name))) for name in names], tmp_path)  # fmt: skip
    for event in events:
        log(event)
    assert [one.finding.implementation for one in log.findings] == [*reversed(names)]


def test_every_listener_is_told_and_what_is_run_here_is_closed(toy, tmp_path, monkeypatch):
    closed, events = [], ([], [])

    def close(runner):
        closed.append(runner)

    monkeypatch.setattr("npudiff.run.run.TaskRunner.close", close)
    with Run(1, [one.append for one in events]) as one:
        one.run([Task(toy.job(), BUDGET, None)])
    assert events[0] == events[1]
    assert len(closed) == 1
