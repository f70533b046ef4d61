"""Figures, the file, the page, the command: what is said of trials."""

from __future__ import annotations

import json
import re

import pytest

from npudiff.commands.score import _verdict
from npudiff.errors import ExitCode, UsageError
from npudiff.score.page import curve, page
from npudiff.score.summary import encode, reliably_found, scores
from npudiff.score.trials import Trial
from npudiff.show.console import Console


def trial(mutant, method="npudiff", seed=1, found=True, **more):
    return Trial(mutant, method, seed, found, **{"prop": "equivalence" if found else "", "cases": 3, **more})


TRIALS = [
    *(trial("a.one", seed=seed, cases=seed, seconds=0.1 * seed, size=4, case="q1 <b>") for seed in range(1, 11)),
    *(trial("a.two", seed=seed, found=seed > 1, cases=20) for seed in range(1, 11)),
    *(trial("a.three", seed=seed, found=seed > 2, cases=30) for seed in range(1, 11)),
    trial("a.one", "fixed shapes"),
    trial("a.two", "fixed shapes", found=False, cases=8),
    trial("a.right", "fixed shapes", found=True, right=True),
    trial("a.right", found=False, right=True),
]


def test_figures():
    ours, fixed = scores(TRIALS)
    assert (ours.method, ours.mutants, ours.found, ours.reliable) == ("npudiff", 3, 3, 2)
    assert (ours.accused, ours.right, ours.missed) == (0, 1, ("a.three",))
    assert ours.cases == 20
    assert (fixed.mutants, fixed.found, fixed.reliable, fixed.accused, fixed.missed) == (2, 1, 1, 1, ("a.two",))
    assert fixed.cases == 3


def test_a_file_is_read_again(tmp_path):
    path = tmp_path / "score.json"
    path.write_text(encode(TRIALS, {"target": "sim"}), encoding="utf-8")
    assert reliably_found(path) == {"a.one", "a.two"}
    document = json.loads(path.read_text(encoding="utf-8"))
    assert (document["schema"], document["target"], len(document["trials"])) == (2, "sim", len(TRIALS))
    brief = encode(TRIALS, {}, brief=True)
    assert '"a.two": [9, 10]' in brief
    assert "trials" not in json.loads(brief)
    path.write_text(brief, encoding="utf-8")
    assert reliably_found(path) == {"a.one", "a.two"}
    assert reliably_found(path, "fixed shapes") == {"a.one"}
    with pytest.raises(UsageError, match="nothing is said of 'suite'"):
        reliably_found(path, "suite")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 2}', *(f'{{"schema": 2, "found": {it}}}' for it in ("3", '{"npudiff": 3}'))],
)
def test_another_file_is_one_line(tmp_path, text):
    path = tmp_path / "score.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"score\.json is not what npudiff score writes"):
        reliably_found(path)


def test_a_missing_file_and_another_schema_are_one_line(tmp_path):
    with pytest.raises(UsageError, match="is not what npudiff score writes"):
        reliably_found(tmp_path / "none.json")
    (tmp_path / "new.json").write_text('{"schema": 1, "trials": []}', encoding="utf-8")
    with pytest.raises(UsageError, match="has schema 1, expected 2"):
        reliably_found(tmp_path / "new.json")


def test_the_curve_counts_a_mutant_when_half_of_its_trials_have_found_it():
    mutants = {
        "a": [trial("a", cases=cases) for cases in (1, 5, 9)],
        "b": [trial("b", cases=2), trial("b", found=False), trial("b", found=False)],
        "c": [trial("c", cases=7)],
        "d": [trial("d", found=False)],
    }
    assert curve(mutants) == [(5, 1 / 4), (7, 2 / 4)]


def test_the_page_needs_nothing_and_escapes_what_it_is_given():
    text = page(TRIALS, {"target": "<sim>"})
    assert "&lt;sim&gt;" in text
    assert "q1 &lt;b&gt;" in text
    assert not re.search(r"https?://|<script|src=|@import", text)
    assert text.count("<path") == 2
    assert "<td>100% after 6" in text
    assert '<td class="few">90% after 20' in text
    assert '<td class="no">0%' in text
    assert '<td class="none">-' in text


@pytest.mark.slow
def test_the_command(cli, tmp_path):
    arguments = ("score", "swa_mask", "--mutant", "mask_minus_one", "--target", "sim", "--seeds", "2", "--workers", "1")
    result = cli(*arguments, "--baseline-seeds", "1", "--examples", "40")
    assert result.code == ExitCode.CLEAN
    assert "1 mutants, 0 correct implementations" in result.out
    assert re.search(r"npudiff +1 +1 +1 +100% +0 of 0", result.out)
    assert (tmp_path / ".npudiff" / "score.html").is_file()
    assert reliably_found(tmp_path / ".npudiff" / "score.json") == {"swa_mask.mask_minus_one"}


@pytest.mark.slow
def test_a_mutant_that_is_lost_fails_the_command(cli, tmp_path):
    before = tmp_path / "before.json"
    before.write_text(encode([trial("swa_mask.mask_minus_one")], {}), encoding="utf-8")
    arguments = ("score", "swa_mask", "--mutant", "mask_minus_one", "--target", "sim", "--seeds", "1", "--workers", "1")
    assert cli(*arguments, "--examples", "40", "--expect", before).code == ExitCode.CLEAN
    record = tmp_path / "record.json"
    result = cli(*arguments, "--examples", "1", "--expect", before, "--record", record)
    assert result.code == ExitCode.FINDINGS
    assert "LOST swa_mask.mask_minus_one: it was found reliably before, and is not any more" in result.out
    assert json.loads(record.read_text())["found"]["npudiff"] == {"swa_mask.mask_minus_one": [0, 1]}
    assert "--expect is about npudiff or a --suite" in cli(*arguments, "--method=fixed shapes", "--expect", before).err


def test_a_correct_implementation_that_is_accused_fails_the_command(capsys):
    console = Console(verbose=False)
    accused = trial("a.right", seed=2, right=True, case="q1")
    assert _verdict(console, [*TRIALS, accused], "npudiff", set()) == ExitCode.FINDINGS
    assert "FALSE ALARM a.right, seed 2: q1" in capsys.readouterr().out
    assert _verdict(console, TRIALS, "npudiff", set()) == ExitCode.CLEAN  # what fixed shapes accuse is theirs


def test_some_methods_only(cli):
    arguments = ("score", "swa_mask", "--mutant", "mask_minus_one", "--target", "sim", "--workers", "1")
    result = cli(*arguments, "--examples", "10", "--method", "fixed shapes", "--method", "ours, cosine")
    assert "fixed shapes" in result.out
    assert not re.search(r"^ +npudiff ", result.out, re.MULTILINE)
    assert "unknown method 'guessing'; known: " in cli(*arguments, "--method", "guessing").err


def test_mutants_alone(cli):
    arguments = ("score", "int4_pack", "--target", "sim", "--method", "npudiff", "--seeds", "1", "--examples", "5")
    assert re.search(r" mutants, 0 correct implementations", cli(*arguments, "--no-correct", "--no-shrink").out)


def test_an_unknown_mutant_is_one_line(cli):
    result = cli("score", "swa_mask", "--mutant", "nothing", "--target", "sim")
    assert result.code == ExitCode.USAGE
    assert "unknown mutant 'nothing'; known: " in result.err
