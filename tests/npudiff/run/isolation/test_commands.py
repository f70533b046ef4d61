"""Crashes through the command line and pytest: findings that are shown, and that replay without killing anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

import warm
from npudiff.errors import ExitCode

KERNELS = """
import os
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

LOST = []

def right(inputs, target):
    return window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)

@npudiff.implementation("swa_mask", name="crashes")
def crashes(inputs, target):
    if len(inputs.kv_lengths) > 2:
        os._exit(9)
    return right(inputs, target)

@npudiff.implementation("swa_mask", name="poisons")
def poisons(inputs, target):
    if LOST:
        raise RuntimeError("error code is 507035, context is abort")
    if inputs.window == 3:
        LOST.append(1)
    return right(inputs, target)
"""


@pytest.fixture
def kernels(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(KERNELS))
    return (
        "check",
        "swa_mask",
        "--impl",
        "mine.py",
        "--target",
        "sim",
        "--isolate",
        "--workers",
        "1",
        "--seed",
        "3",
        "--examples",
        "60",
    )


def findings(folder, name):
    found = [json.loads(path.read_text()) for path in folder.glob(f".npudiff/findings/*{name}*/finding.json")]
    return {one["property_name"]: one for one in found}


@pytest.mark.slow
def test_findings_of_a_crash_and_of_a_poisoning_are_shown_and_replayed(cli, kernels, tmp_path, monkeypatch):
    result = cli(*kernels)
    assert result.code == ExitCode.FINDINGS
    assert "FINDING swa_mask.crashes · equivalence · process died" in result.out
    assert "failed 3 of 3 times in a process of its own" in result.out
    assert "FINDING swa_mask.poisons · equivalence · poisons the device" in result.out
    assert f" · {len(list((tmp_path / '.npudiff' / 'findings').iterdir()))} findings" in result.out
    crash = findings(tmp_path, "crashes")["equivalence"]
    assert len(crash["case"]["kv_lengths"]) == 3
    assert "exit code 9" in crash["detail"]["error"]
    assert findings(tmp_path, "poisons")["equivalence"]["case"]["window"] == 3
    assert not list((tmp_path / ".npudiff" / "journal").iterdir())
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("npudiff.findings.replay.can_isolate", lambda: False)
        for name, hint in (("crashes", "; --no-isolate runs the case in this process"), ("poisons", "")):
            folder = next((tmp_path / ".npudiff" / "findings").glob(f"*{name}-equivalence*"))
            refused = cli("replay", folder, "--impl", "mine.py")
            assert refused.code == ExitCode.USAGE
            assert refused.out == f"ERROR  {folder}: --isolate needs Linux{hint}\n"
    replayed = cli("replay", ".npudiff/findings", "--impl", "mine.py")
    assert replayed.code == ExitCode.FINDINGS
    assert {line.split()[0] for line in replayed.out.splitlines() if line[0] != " "} == {"FAILED"}
    (tmp_path / "mine.py").write_text(textwrap.dedent(KERNELS).replace("os._exit(9)", "pass").replace("== 3", "== -1"))
    fixed = cli("replay", ".npudiff/findings", "--impl", "mine.py")
    assert {line.split()[0] for line in fixed.out.splitlines()} == {"FIXED"}


@pytest.mark.slow
def test_in_processes_beside_each_other_as_well(cli, kernels):
    result = cli(*kernels[:-6], "--workers", "2", "--seed", "3", "--examples", "60")
    assert result.code == ExitCode.FINDINGS
    assert "FINDING swa_mask.crashes · equivalence · process died" in result.out
    assert "FINDING swa_mask.poisons · equivalence · poisons the device" in result.out


def test_isolation_that_cannot_be_had_is_refused_in_one_line(cli, kernels, monkeypatch):
    monkeypatch.setattr("npudiff.run.plan.can_isolate", lambda: False)
    result = cli(*kernels)
    assert (result.code, result.err.splitlines()[-1]) == (ExitCode.USAGE, "npudiff: --isolate needs Linux")


HOLDS = """
import os
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

@npudiff.implementation("swa_mask", name="holds")
def holds(inputs, target):
    with open("pids", "a") as file:
        file.write(f"{os.getppid()} {os.getpid()}\\n")
    return window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
"""


@pytest.mark.slow
def test_tests_that_hold_share_a_process(tmp_path):
    (tmp_path / "mine.py").write_text(HOLDS)
    command = [sys.executable, "-m", "pytest", "--pyargs", "npudiff.properties", "--impl", "mine.py", "--target", "sim"]
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    run = subprocess.Popen(
        [*command, "--isolate", "--examples", "20", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, _ = run.communicate()
    assert run.returncode == ExitCode.CLEAN
    assert "6 passed" in out
    assert len(set((tmp_path / "pids").read_text().splitlines())) == 1
    assert (tmp_path / "pids").read_text().split()[0] != str(run.pid)  # that one is the guardian
    assert not list((tmp_path / ".npudiff" / "journal").iterdir())


@pytest.mark.slow
def test_a_test_of_an_implementation_that_crashes_fails_and_the_others_run(kernels, tmp_path):
    result = warm.run_pytest(
        "--pyargs", "npudiff.properties", "--impl", "mine.py", "--target", "sim",
        "--isolate", "-k", "equivalence", "-q", "-p", "no:cacheprovider",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == ExitCode.FINDINGS
    assert "2 failed" in result.stdout
    assert "swa_mask.crashes: equivalence: process died" in result.stdout
    assert "swa_mask.poisons: equivalence: poisons the device" in result.stdout
