from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from npudiff.findings.finding import finding_of
from npudiff.findings.replay import Replay, ReplayVerdict
from npudiff.model.job import Outcome, Verdict
from npudiff.run.engine import run_case
from npudiff.run.events import JobStarted, RunEnded
from npudiff.score import progress as score_progress
from npudiff.score.progress import TrialProgress
from npudiff.score.trials import Trial
from npudiff.show.console import Console
from npudiff.show.progress import RunProgress
from npudiff.text import printable

HOSTILE = "a\x1b[2J\x07b\nc\r\u202ed\u009be\udcff"


def test_printable_text_is_kept_and_control_characters_are_not():
    assert printable("kv3 · window none · ü 中 [red]") == "kv3 · window none · ü 中 [red]"
    assert printable(HOSTILE) == "a?[2J?b?c??d?e?"


def test_a_replay_line_cannot_steer_the_terminal(capsys):
    Console(verbose=False).replay(Replay(Path("x"), ReplayVerdict.ERROR, HOSTILE))
    assert capsys.readouterr().out == "ERROR  a?[2J?b?c??d?e?\n"


@pytest.mark.parametrize("verdict", list(ReplayVerdict))
def test_a_replay_is_one_line_however_long_it_is(capsys, verdict):
    Console(verbose=False).replay(Replay(Path("x"), verdict, "word " * 100))
    assert capsys.readouterr().out.count("\n") == 1


def test_markup_is_printed_and_not_obeyed(capsys):
    console = Console(verbose=True)
    console.lines(["[bold]x[/bold]", "[/]"])
    console.replay(Replay(Path("x"), ReplayVerdict.FIXED, "[link=https://x]y[/link]"))
    assert capsys.readouterr().out == "[bold]x[/bold]\n[/]\nFIXED  [link=https://x]y[/link]\n"


def test_an_error_text_of_an_implementation_cannot_steer_the_terminal(capsys, toy):
    def function(inputs, target):
        raise RuntimeError(HOSTILE)

    outcome = run_case(toy.job(function), toy.Case((1,)))
    Console(verbose=False).finding(finding_of(outcome), Path("folder"))
    out = capsys.readouterr().out
    assert "RuntimeError: a" in out
    assert not {"\x1b", "\x07", "\r", "\u009b"} & set(out)


def test_the_summary_counts_everything(capsys, toy):
    good, bad = Outcome(toy.job(), cases=3, seconds=1.0), Outcome(toy.job(), cases=4, seconds=2.0, failure=object())
    missed = Outcome(toy.job(), cases=5, seconds=0.5, verdict=Verdict.HOLDS)
    console = Console(verbose=False)
    console.summary([good, bad], [missed, bad])
    console.summary([good], [])
    assert capsys.readouterr().out.splitlines() == [
        "16 cases in 5.5 s · 1 implementation · 1 finding · 1 of 2 mutants found",
        "3 cases in 1.0 s · 1 implementation · 0 findings",
    ]


def test_a_missed_mutant_is_said(capsys, toy):
    Console(verbose=False).mutants([Outcome(toy.job(), cases=5)], judged=True)
    out = capsys.readouterr().out
    assert "toy.mine" in out
    assert "MISSED" in out
    assert "not in 5 cases" in out
    Console(verbose=False).mutants([], judged=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("outcomes", "mutants", "colour"),
    [
        ([{"cases": 3}], [], "green"),
        ([{"cases": 3}], [{"cases": 3, "failure": object(), "verdict": Verdict.WRONG}], "green"),
        ([{"cases": 3}], [{"cases": 3}], "red"),
        ([{"cases": 3, "failure": object()}], [], "red"),
        ([{"cases": 0}], [], "red"),
    ],
)
def test_the_summary_is_green_only_if_all_is_well(toy, monkeypatch, outcomes, mutants, colour):
    console, printed = Console(verbose=False), []
    monkeypatch.setattr(console.rich, "print", printed.append)
    console.summary(*([Outcome(toy.job(), **changes) for changes in group] for group in (outcomes, mutants)))
    assert printed[0].startswith(f"[bold {colour}]")


def unchecked(toy, name):
    """A job whose names nobody has checked."""
    job = toy.job()
    job = replace(job, subject=replace(job.subject, component=replace(toy.component)))
    for thing in (job.subject.component, job.subject.implementation):
        object.__setattr__(thing, "name", name)
    return job


def test_no_name_steers_the_terminal_in_a_table(capsys, toy):
    name = f"{HOSTILE}[red]:smile:"
    outcome = Outcome(unchecked(toy, name), cases=3, seconds=1.0)
    outcome.features[name], outcome.not_applicable[name] = 3, 1
    console = Console(verbose=True)
    console.table([outcome])
    console.mutants([outcome], judged=True)
    console.lines([name])
    console.verdict(name, "red")
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\r", "\u009b", "\u202e"} & set(out)
    assert out.count("[red]:smile:") >= 5


def test_no_name_steers_the_terminal_in_progress(toy):
    name = f"{HOSTILE}[red]"
    terminal = RichConsole(file=io.StringIO(), force_terminal=True, width=140)
    progress = RunProgress(terminal, jobs=2)
    progress(JobStarted(unchecked(toy, name), "part"))
    trials = TrialProgress(terminal)
    trials(Trial(name, name, 1, found=True))
    trials.close()
    progress(RunEnded(None))
    text = terminal.file.getvalue()
    assert "part: a?[2J?b?c??d?e?[red]" in text
    assert "1 trial so far, 1 with a finding · a?[2J?b?c??d?e?[red]: a?[2J" in text
    assert not {"\x07", "\u009b", "\u202e"} & set(text)
    assert "\x1b[2J" not in text


def test_a_score_says_how_far_it_is_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(score_progress, "EVERY", 0.0)
    progress = TrialProgress(RichConsole(file=io.StringIO()))
    progress(Trial("toy.mine", "npudiff", 1, found=True))
    progress(Trial("toy.mine", "npudiff", 2, found=False))
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "seed 1: 1 trial so far, 1 with a finding",
        "seed 2: 2 trials so far, 1 with a finding",
    ]
