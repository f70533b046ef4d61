from __future__ import annotations

from pathlib import Path

import pytest

from npudiff.findings.finding import finding_of
from npudiff.findings.replay import Replay, ReplayVerdict
from npudiff.model.job import Outcome, Verdict
from npudiff.run.engine import run_case
from npudiff.show.console import Console
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
