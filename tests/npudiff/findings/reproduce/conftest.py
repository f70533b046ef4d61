from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from npudiff.findings.finding import finding_of
from npudiff.findings.reproduce import reproduction
from npudiff.model.job import Failure, Outcome
from npudiff.run.engine import run_case
from npudiff.show.finding import keep_findings

BLOCKED = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("npudiff", "safetensors", "numpy", "torch_npu"):
            raise ModuleNotFoundError(f"{name} is not there", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def kept(toy, tmp_path):
    """Judge a case of a function and keep the finding; returns the finding and its folder."""

    def run(function, numbers=(1, 200, 300), isolation=None, **changes):
        outcome = run_case(toy.job(function, **changes), toy.Case(numbers), isolation)
        ((finding, folder),) = keep_findings(outcome, tmp_path / "findings")
        return SimpleNamespace(finding=finding, folder=folder, why=finding.detail["script"], outcome=outcome)

    return run


@pytest.fixture
def calls_of(toy):
    """Write down what a function calls, whether it is right or wrong; returns the script."""

    def run(function, numbers=(1, 200, 300), **changes):
        outcome = Outcome(toy.job(function, **changes))
        outcome.failure = outcome.first_failure = Failure(toy.Case(numbers), None, None)
        return reproduction(outcome, finding_of(outcome), outcome.failure)

    return run


def started(folder, *options):
    """Run a script as somebody does who has torch and nothing else."""
    command = [sys.executable, "-W", "ignore", "-c", BLOCKED, str(folder / "reproduce.py"), *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd="/", check=False)


@pytest.fixture
def alone():
    return started


@pytest.fixture
def here(tmp_path):
    """Run the text of a script in this process; returns what its Run saw."""

    def run(script, device="cpu"):
        path = tmp_path / "reproduce.py"
        path.write_text(script.text, encoding="utf-8")
        (tmp_path / "reproduce.safetensors").write_bytes(script.tensors)
        space = {"__name__": "script", "__file__": str(path)}
        exec(compile(script.text, str(path), "exec"), space)  # noqa: S102 - what we have written ourselves
        one = space["Run"](space["read"](Path(tmp_path / "reproduce.safetensors")) if script.tensors else {}, device)
        one.keep()
        one.seen = {}
        check = one.check

        def watched(name, dtype, actual, *rest, **options):
            one.seen[name] = actual.clone()
            check(name, dtype, actual, *rest, **options)

        one.check = watched
        space["calls"](one, device)
        return one

    return run


@pytest.fixture
def lines():
    """The calls of a script, without what surrounds them."""

    def of(script):
        return script.text.partition("def calls(run: Run, DEVICE: str) -> None:\n")[2].partition("\n\n\nOPERATORS")[0]

    return of
