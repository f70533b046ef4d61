"""Scripts of findings on the virtual NPU, as on a card: no npudiff, the real torch_npu, a device of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mutant_pairs import PAIRS
from npudiff.device import ascend, mutants, targets
from npudiff.device.virtual import faults
from npudiff.errors import ExitCode
from npudiff.findings.finding import finding_of, read_finding, write_finding
from npudiff.findings.reproduce import reproduction
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.job import Isolation, Job
from npudiff.run.discovery import load_components
from npudiff.run.engine import run_case
from npudiff.show.finding import keep_findings

pytestmark = pytest.mark.virtual

COMPONENTS = {component.name: component for component in load_components(())}
MUTANTS = {item.name: item for item in map(vars(mutants).get, mutants.__all__)}
ORIGINALS = {(item.component, item.name): item for item in map(vars(ascend).get, ascend.__all__)}


def ran(folder, **environment):
    command = [sys.executable, "-m", "npudiff", "virtual", "--", sys.executable, str(folder / "reproduce.py")]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, env={**os.environ, **environment}
    )


def judged(name, target):
    item = MUTANTS[name]
    job = Job(Subject(COMPONENTS[item.component], item, target), EQUIVALENCE, item.constraints)
    return run_case(job, PAIRS[name].shows)


@pytest.mark.parametrize("name", ["decode_nz_pages_as_nd", "slots_truncated"])
@pytest.mark.parametrize("found_on", ["virtual", "sim"])
def test_what_is_wrong_is_wrong_on_the_device(tmp_path, name, found_on):
    target = getattr(targets, found_on)(None)
    outcome = judged(name, target)
    ((finding, folder),) = keep_findings(outcome, tmp_path)
    assert finding.detail["script"] == ""
    text = (folder / "reproduce.py").read_text()
    assert "DEVICE" in text.partition("def calls")[2].partition("OPERATORS")[0] or found_on == "sim"
    done = ran(folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG" in done.stdout


def test_what_it_was_made_from_is_right_on_the_device(tmp_path):
    outcome = judged("slots_truncated", targets.virtual(None))
    item = MUTANTS["slots_truncated"]
    original = ORIGINALS[item.component, item.mutant_of]
    correct = replace(outcome, job=replace(outcome.job, subject=replace(outcome.job.subject, implementation=original)))
    script = reproduction(correct, finding_of(outcome), outcome.failure)
    done = ran(write_finding(finding_of(outcome), outcome.failure, tmp_path, script))
    assert done.returncode == 0, done.stdout + done.stderr


def npudiff(*arguments, **environment):
    """Run a command on the virtual NPU, in a process that is new to it."""
    command = [sys.executable, "-m", "npudiff", "virtual", "--", sys.executable, "-m", "npudiff", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, env={**os.environ, **environment}
    )


def test_the_call_of_which_a_device_is_lost_is_the_last_one(tmp_path):
    options = ["--target", "virtual", "--isolate", "--workers", "1", "--examples", "2", "--output", tmp_path]
    lost = {"NPUDIFF_VIRTUAL_FAULTS": "npu_rms_norm:507015"}
    done = npudiff("check", "rms_norm", "--impl", "npu_rms_norm", *options, **lost)
    assert done.returncode == ExitCode.FINDINGS, done.stdout + done.stderr
    found = {folder: read_finding(folder) for folder in (tmp_path / "findings").iterdir()}
    assert {finding.verdict for finding in found.values()} == {"device fault"}
    folder, finding = next(one for one in found.items() if one[1].property_name == "equivalence")
    assert finding.detail["script"] == ""
    text = (folder / "reproduce.py").read_text()
    assert "    run.last()\n" in text
    assert "torch.ops.npu.npu_rms_norm.default(" in text.partition("    run.last()\n")[2].partition("OPERATORS")[0]
    done = ran(folder, **lost)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED in line" in done.stdout
    done = ran(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("the last call returned, which it did not when this was found: ")


def test_a_process_that_has_used_the_device_makes_no_script_of_what_it_would_not_survive(tmp_path):
    right, target = ascend.npu_rms_norm, targets.virtual(None)

    def function(inputs, target):
        faults._state.waiting = faults.parse("npu_rms_norm:507015")
        return right.function(inputs, target)

    component = COMPONENTS["rms_norm"]
    job = Job(Subject(component, replace(right, function=function), target), EQUIVALENCE, right.constraints)
    with target.activate():
        torch.zeros(1, device=target.device)
        outcome = run_case(job, component.case_type(2, hidden_size=16), Isolation(tmp_path, warm_up=20.0, run=5.0))
        ((finding, _),) = keep_findings(outcome, tmp_path)
    assert finding.detail["script"].startswith("no script: its calls have to be made in a process of their own")
    assert not faults._state.lost


def test_without_the_device_it_says_so_in_a_line(tmp_path):
    ((_, folder),) = keep_findings(judged("slots_truncated", targets.virtual(None)), tmp_path)
    done = subprocess.run(
        [sys.executable, str(folder / "reproduce.py")], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 2
    assert done.stdout.startswith("cannot run here: CannotRun: torch_npu")
    assert done.stdout.count("\n") == 1
