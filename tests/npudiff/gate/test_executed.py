"""Which files of a backend an implementation executes, and a gate that runs what a change touches only."""

from __future__ import annotations

import subprocess
import sys

import pytest

from npudiff.errors import ExitCode
from npudiff.model.job import Outcome
from npudiff.run.engine import run_job

ADAPTERS = """
import os, sys
import npudiff
sys.path.insert(0, os.environ["CHECKOUT"])
from their import masks

@npudiff.implementation("swa_mask", on_device=True)
def near(inputs, target):
    return masks.near(inputs)

@npudiff.implementation("swa_mask", on_device=True)
def far(inputs, target):
    return masks.far(inputs)

@npudiff.implementation("swa_mask", on_device=True)
def leaves(inputs, target):
    masks.near(inputs)
    os._exit(0)
"""
MASKS = """
from npudiff.device.ascend.swa_mask import window_mask
from their import helper, other

def near(inputs):
    return window_mask(inputs.kv_lengths, inputs.capacity, inputs.window)

def far(inputs):
    return helper.same(near(inputs))
"""


@pytest.fixture
def checkout(tmp_path, small_backend, monkeypatch):
    """The repository of a backend, which adapters of a package elsewhere call; return its folder."""
    folder = tmp_path / "checkout"
    files = {"their/__init__.py": "", "their/masks.py": MASKS, "their/other.py": "def f(): pass\n",
             "their/helper.py": "from their import other\ndef same(x):\n    return x\n"}  # fmt: skip
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
    for command in (("init", "-q", "-b", "main"), ("add", "."), (*identity, "commit", "-qm", "first")):
        git = ["git", "-C", str(folder), *command]
        subprocess.run(git, check=True, capture_output=True)
    monkeypatch.setenv("CHECKOUT", str(folder))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (small_backend / "swa_mask.py").write_text(ADAPTERS)
    yield folder
    for name in [one for one in sys.modules if one.partition(".")[0] == "their"]:
        del sys.modules[name]


def test_files_are_those_that_cases_execute_also_of_one_that_dies(checkout):
    from npudiff.gate.executed import files_executed
    from npudiff.run.plan import Request, make_plan

    plan = make_plan(Request(("swa_mask",), ("backend:small",), "sim"))
    found = files_executed(plan.jobs, checkout)
    names = {name: {path.name for path in files} for (_, name), files in found.items()}
    assert names == {"near": {"masks.py"}, "far": {"masks.py", "helper.py"}, "leaves": {"masks.py"}}


def test_an_implementation_that_has_executed_all_that_changed_is_not_looked_at_any_longer(checkout):
    from npudiff.gate.executed import files_executed
    from npudiff.run.plan import Request, make_plan

    plan = make_plan(Request(("swa_mask",), ("backend:small",), "sim"))
    found = files_executed(plan.jobs, checkout, frozenset({checkout / "their" / "masks.py"}))
    assert {path.name for path in found["swa_mask", "far"]} == {"masks.py"}  # helper.py would come next


def test_cases_that_are_not_run_do_not_end_the_look(checkout, monkeypatch):
    """Whose first cases do not apply has executed nothing yet."""
    from npudiff.gate import executed
    from npudiff.run.plan import Request, make_plan

    made = []

    def late(job, budget):
        made.append(job)
        return Outcome(job) if len(made) < executed.CASES else run_job(job, budget)

    monkeypatch.setattr(executed, "run_job", late)
    plan = make_plan(Request(("swa_mask",), ("backend:small",), "sim"))
    found = executed.files_executed(plan.jobs, checkout)
    assert {path.name for path in found["swa_mask", "far"]} == {"masks.py", "helper.py"}


@pytest.mark.parametrize(("file", "run"), [("helper", {"far"}), ("masks", {"near", "far"}), ("other", {"near", "far"})])
def test_a_gate_of_what_is_touched_runs_nothing_else_and_all_where_nothing_is(checkout, small_backend, cli, file, run):
    that_stays = ADAPTERS.partition('\n@npudiff.implementation("swa_mask", on_device=True)\ndef leaves')[0]
    (small_backend / "swa_mask.py").write_text(that_stays)
    path = checkout / "their" / f"{file}.py"
    path.write_text(path.read_text() + "# changed\n")
    arguments = (
        "--backend",
        f"small={checkout}",
        "--since",
        "HEAD",
        "--only-touched",
        "--rotating",
        "off",
        "--examples",
        "5",
    )
    arguments += ("--output", str(small_backend.parents[1] / "out"))
    result = cli("gate", "swa_mask", *arguments, "--workers", "1")
    assert result.code == ExitCode.CLEAN, result.out + result.err
    rows = {line.split()[0] for line in result.out.splitlines() if " ok, " in line}
    assert rows == run
    assert ("nothing else is run" in result.out) == (file != "other")


def test_what_is_touched_needs_a_revision(cli, small_backend):
    result = cli("gate", "--only-touched")
    assert result.code == ExitCode.USAGE
    assert "--only-touched runs what they touch, and needs --since" in result.err
