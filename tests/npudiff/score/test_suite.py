"""Somebody's own tests with mutants in place: what is found, missed, not called, and refused."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from npudiff.cli import main
from npudiff.errors import ExitCode, UsageError
from npudiff.run.discovery import built_in_implementations
from npudiff.score import substitute as in_place
from npudiff.score.suite import run_suite

MUTANTS = {item.name: item for item in built_in_implementations() if item.wrong is not None}

GOOD = """
import sys, torch
from npudiff.device import ascend, targets
from npudiff.reference.swa_mask import SwaMaskInputs

target = targets.sim(None)
with target.activate():
    mask = ascend.swa_mask_eager(SwaMaskInputs(torch.tensor([LENGTH], dtype=torch.int32), 700, WINDOW), target)
keys = torch.arange(700)
sys.exit(not torch.equal(mask[0, 0], (keys < LENGTH - WINDOW) | (keys >= LENGTH)))
"""

LEAVES = """
import pathlib, subprocess
pathlib.Path("PIDS").open("a").write(f"{subprocess.Popen(['sleep', '60']).pid}\\n")
"""

COUNTS = """
import pathlib
pathlib.Path("RUNS").open("a").write("x")
"""


@pytest.fixture
def suite(tmp_path):
    """Make a command of a script."""

    def made(script, **values):
        for name, value in values.items():
            script = script.replace(name, str(value))
        (tmp_path / "suite.py").write_text(script)
        return shlex.join([sys.executable, str(tmp_path / "suite.py")])

    return made


def found(command, tmp_path, *names):
    trials = run_suite(command, [MUTANTS[name] for name in names], tmp_path / "out", workers=2)
    assert [trial.mutant.partition(".")[2] for trial in trials] == list(names)
    return [trial.found for trial in trials]


def test_mutants_of_what_is_not_called_are_not_run(suite, tmp_path):
    (trial,) = run_suite(suite(GOOD, LENGTH=600, WINDOW=4), [MUTANTS["pages_128_wide"]], tmp_path, workers=1)
    assert not trial.found
    assert trial.prop == "cache_gather.index_pages is not called"
    assert trial.seconds == 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; print('no device'); sys.exit(3)", r"fails without a mutant \(exit code 3\):\nno device"),
        ("", "calls no implementation of npudiff"),
    ],
)
def test_a_suite_that_says_nothing_is_refused(suite, tmp_path, script, reason):
    with pytest.raises(UsageError, match=reason):
        found(suite(script), tmp_path, "mask_without_tail")


def test_a_command_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be run"):
        found("no-such-command --at all", tmp_path, "mask_without_tail")


def test_a_mutant_that_hangs_the_suite_is_found_and_nothing_is_left(suite, tmp_path, monkeypatch):
    monkeypatch.setattr("npudiff.score.suite._LEAST", 0.5)
    monkeypatch.setattr("npudiff.score.suite.PATIENCE", 1.2)
    script = GOOD.replace("sys.exit(not ", "\nimport subprocess, time\nwhile not ").replace(
        "(keys >= LENGTH)))", "(keys >= LENGTH)): subprocess.run(['sleep', '60'])"
    )
    assert found(suite(script, LENGTH=600, WINDOW=512), tmp_path, "mask_without_tail") == [True]


def test_what_a_suite_started_and_left_is_ended_with_it(suite, tmp_path):
    """As a server that a test suite starts and forgets."""
    command = suite(LEAVES + GOOD, LENGTH=600, WINDOW=512, PIDS=tmp_path / "pids")
    assert found(command, tmp_path, "mask_without_tail") == [True]
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    for pid in pids:
        until = time.monotonic() + 5
        while (state := status(pid)) not in ("gone", "Z") and time.monotonic() < until:
            time.sleep(0.01)
        assert state in ("gone", "Z")


def status(pid):
    """Letter of a process's state, or that there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def test_after_an_interrupt_no_other_mutant_is_begun(suite, tmp_path):
    def interrupted(trial):
        raise KeyboardInterrupt

    names = ["mask_without_tail", "mask_left_context_512", "mask_without_tail", "mask_left_context_512"]
    with pytest.raises(KeyboardInterrupt):
        run_suite(
            suite(COUNTS + GOOD, LENGTH=600, WINDOW=512, RUNS=tmp_path / "runs"),
            [MUTANTS[name] for name in names],
            tmp_path / "out",
            workers=1,
            follow=interrupted,
        )
    assert len((tmp_path / "runs").read_text()) <= 3  # alone, the first, and the one that had begun


def test_the_command_line_names_what_is_missed_and_holds_what_was_found(suite, tmp_path, capsys):
    command = suite(GOOD, LENGTH=600, WINDOW=512)
    output = tmp_path / "score"
    names = [f"--mutant={name}" for name in ("mask_without_tail", "mask_left_context_512", "pages_128_wide")]
    assert main(["score", *names, "--suite", command, "--output", str(output)]) == ExitCode.CLEAN
    said = capsys.readouterr().out
    assert "  swa_mask.mask_left_context_512" in said
    assert "  1 mutants: cache_gather.index_pages is not called" in said
    (row,) = json.loads((output / "score.json").read_text())["scores"]
    assert (row["method"], row["mutants"], row["found"]) == ("suite", 3, 1)
    blind = suite(GOOD.replace("sys.exit(", "print("), LENGTH=600, WINDOW=512)
    arguments = ["score", *names[:1], "--suite", blind, "--output", str(tmp_path / "x")]
    assert main([*arguments, "--expect", str(output / "score.json")]) == ExitCode.FINDINGS
    assert "LOST swa_mask.mask_without_tail" in capsys.readouterr().out


def call(function, inputs):
    return function(inputs, None)


def placed(monkeypatch, mutant, **more):
    """Make the functions that stand where they should for a mutant of cache_gather; the original returns a word."""
    given = in_place.Substitution("cache_gather.index_pages", f"cache_gather.{mutant}", **more)
    monkeypatch.setenv(in_place.VARIABLE, given.environment()[in_place.VARIABLE])
    return in_place.placed("cache_gather.index_pages", lambda inputs, target: "original", None, wrong=False)


class Inputs:
    """Something that no mutant can compute with."""


def test_outside_of_what_a_mutant_was_made_for_stands_the_original(monkeypatch):
    from npudiff.properties.cache_gather import CacheGatherCase, Stretch

    function, opens = placed(monkeypatch, "page_tail_dropped")
    assert opens is None
    inputs = in_place.remembering(lambda case: Inputs())
    outside = inputs(CacheGatherCase((Stretch(1),), page_size=16))
    inside = inputs(CacheGatherCase((Stretch(1),), page_size=192))
    assert call(function, outside) == "original"
    with pytest.raises(AttributeError):
        call(function, inside)
    assert call(function, Inputs()) == "original"  # nobody knows the case, and the mutant raises


def test_a_mutant_that_keeps_something_is_opened_for_each_that_is_opened(monkeypatch):
    _, opens = placed(monkeypatch, "rows_of_the_batch_before", stateful=True)
    assert opens is not None
    assert opens() is not opens()


def test_other_mutants_call_the_original_itself(monkeypatch):
    function, _ = placed(monkeypatch, "page_tail_dropped")
    other, _ = in_place.placed("cache_gather.x", lambda inputs, target: call(function, inputs), None, wrong=True)
    inputs = in_place.remembering(lambda case: Inputs())(None)
    assert call(other, inputs) == "original"


def test_without_the_variable_nothing_stands_anywhere():
    assert in_place.VARIABLE not in os.environ
    assert not in_place.active()
