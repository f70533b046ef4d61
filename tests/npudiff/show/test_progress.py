"""The progress of a run on a terminal, and where there is none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from npudiff.model.job import Outcome
from npudiff.run.events import CasesJudged, JobEnded, JobStarted, RunEnded
from npudiff.show import progress
from npudiff.show.progress import RunProgress


@pytest.fixture
def events(toy):
    """A job that judges 5 cases and ends with 8."""
    job = toy.job()
    ended = JobEnded(0, Outcome(job, cases=8), (), "first")
    return [JobStarted(job, "first"), CasesJudged(job, 5, "first"), ended]


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=140)


def test_a_terminal_has_a_bar_of_jobs_that_is_gone_at_the_end(events, monkeypatch):
    monkeypatch.setattr(progress, "DRAWN_EVERY", 0.0)
    console = terminal()
    listener = RunProgress(console, jobs=2)
    seen = []
    for event in events:
        listener(event)
        seen.append(console.file.getvalue())
    assert "first: toy.mine.equivalence" in seen[0]
    assert "0/2 jobs · 5 cases" in seen[1]
    assert "1/2 jobs · 8 cases" in seen[2]
    listener(RunEnded(None))
    assert console.file.getvalue().endswith("\x1b[2K")  # the line of the bar is erased


def test_a_bar_of_seconds_shows_no_number_of_jobs(events, monkeypatch):
    monkeypatch.setattr(progress, "DRAWN_EVERY", 0.0)
    console = terminal()
    listener = RunProgress(console, seconds=600.0)
    for event in events:
        listener(event)
    assert "8 cases" in console.file.getvalue()
    assert "jobs" not in console.file.getvalue()


def test_elsewhere_a_line_comes_with_each_stage_and_now_and_then(events, monkeypatch, capsys):
    console = Console(file=io.StringIO())
    listener = RunProgress(console, jobs=2)
    for event in events:
        listener(event)
    assert capsys.readouterr().err == "first: 0 of 2 jobs and 0 cases so far\n"
    monkeypatch.setattr(progress, "EVERY", 0.0)
    listener(events[-1])
    listener(RunEnded(None))
    assert capsys.readouterr().err == "first: 2 of 2 jobs and 16 cases so far\n"
    assert console.file.getvalue() == ""
