"""Somebody's own tests with mutants in place: what is found, missed, not called, and refused."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from npudiff.cli import main
from npudiff.errors import ExitCode, UsageError
from npudiff.model.implementation import DEFINITION_HOOKS, Implementation
from npudiff.run.discovery import COMPONENT_HOOKS, built_in_implementations
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_mutant_that_hangs_the_suite_is_found_and_nothing_is_left(suite, tmp_path, monkeypatch):
    monkeypatch.setattr("npudiff.score.suite._LEAST", 0.5)
    monkeypatch.setattr("npudiff.score.suite.PATIENCE", 1.2)
    script = GOOD.replace("sys.exit(not ", "\nimport subprocess, time\nwhile not ").replace(
        "(keys >= LENGTH)))", "(keys >= LENGTH)): subprocess.run(['sleep', '60'])"
    )
    assert found(suite(script, LENGTH=600, WINDOW=512), tmp_path, "mask_without_tail") == [True]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def defined(name, function, **more):
    """Make an implementation of cache_gather, and return what the hook of a suite makes of it."""
    return in_place.placed(Implementation("cache_gather", name, function, **more))


def placed(monkeypatch, mutant, **more):
    """Make what stands where it should for a mutant of cache_gather; the original returns a word."""
    given = in_place.Substitution("cache_gather.index_pages", f"cache_gather.{mutant}", **more)
    monkeypatch.setenv(in_place.VARIABLE, given.environment()[in_place.VARIABLE])
    return defined("index_pages", lambda inputs, target: "original")


class Inputs:
    """Something that no mutant can compute with."""


def test_outside_of_what_a_mutant_was_made_for_stands_the_original(monkeypatch):
    from npudiff.properties.cache_gather import CacheGatherCase, Stretch

    function = placed(monkeypatch, "page_tail_dropped")
    assert function.factory is None
    inputs = in_place.remembering(lambda case: Inputs())
    outside = inputs(CacheGatherCase((Stretch(1),), page_size=16))
    inside = inputs(CacheGatherCase((Stretch(1),), page_size=192))
    assert call(function, outside) == "original"
    with pytest.raises(AttributeError):
        call(function, inside)
    assert call(function, Inputs()) == "original"  # nobody knows the case, and the mutant raises


def test_a_mutant_that_keeps_something_is_opened_for_each_that_is_opened(monkeypatch):
    opens = placed(monkeypatch, "rows_of_the_batch_before", stateful=True).factory
    assert opens is not None
    assert opens() is not opens()


def test_other_mutants_call_the_original_itself(monkeypatch):
    function = placed(monkeypatch, "page_tail_dropped")
    other = defined("x", lambda inputs, target: call(function, inputs), wrong="on purpose")
    inputs = in_place.remembering(lambda case: Inputs())(None)
    assert call(other, inputs) == "original"


def test_outside_of_a_suite_nothing_stands_anywhere():
    assert in_place.VARIABLE not in os.environ
    assert DEFINITION_HOOKS == []
    assert COMPONENT_HOOKS == []
    code = "import sys, npudiff.run.discovery; print('npudiff.score' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


BESIDE = """
import subprocess, sys
assert "npudiff" not in sys.modules
sys.exit(subprocess.run([*PROGRAM, sys.executable, "SUITE"]).returncode)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [[], pytest.param([sys.executable, "-m", "npudiff", "virtual", "--"], marks=pytest.mark.virtual)],
    ids=["directly", "npudiff virtual"],
)
def test_a_mutant_is_in_processes_of_processes_beside_what_the_suite_itself_starts_with(
    suite, tmp_path, monkeypatch, program
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sitecustomize.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('x')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "mine"))
    suite(GOOD, LENGTH=600, WINDOW=512)
    script = BESIDE.replace("SUITE", str(tmp_path / "suite.py")).replace("PROGRAM", repr(program))
    command = shlex.join([sys.executable, "-c", script])
    assert found(command, tmp_path, "mask_without_tail", "mask_left_context_512") == [True, False]
    assert len((tmp_path / "ran").read_text()) >= 3 * 2
