"""A repository of a backend: kernels of its own, and a gate that is run on them."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import textwrap
from types import SimpleNamespace

import pytest

KERNELS = """
import npudiff
from npudiff.device.ascend.swa_mask import window_mask


def right(inputs, target):
    return window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)


@npudiff.implementation("swa_mask", name="good")
def good(inputs, target):
    return right(inputs, target)


@npudiff.implementation("swa_mask", name="bad")
def bad(inputs, target):
    mask = right(inputs, target)
    return ~mask if inputs.window == 3 else mask
"""

SOON = dt.datetime.now(dt.timezone.utc).date() + dt.timedelta(days=60)

ISSUE = """
[[issue]]
component = "swa_mask"
implementation = "{name}"
link = "https://example.org/issues/7"
expires = {expires}
{more}
"""


@pytest.fixture
def gate(cli, tmp_path, monkeypatch):
    """Write kernels, and return a function that runs the gate on them."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    (tmp_path / "mine.py").write_text(textwrap.dedent(KERNELS), encoding="utf-8")

    def run(*arguments, rotating="off", examples=60, budget="120s"):
        common = ("--impl", "mine.py", "--target", "sim", "--workers", "1", "--budget", budget)
        result = cli("gate", *common, "--examples", examples, "--rotating", rotating, *arguments)
        folder = tmp_path / ".npudiff"
        if (folder / "npudiff.sarif").exists():
            result.sarif = json.loads((folder / "npudiff.sarif").read_text())
            result.junit = (folder / "junit.xml").read_text()
            result.summary = (folder / "summary.md").read_text()
        return result

    return run


@pytest.fixture
def soon():
    """A day on which an issue may expire."""
    return str(SOON)


@pytest.fixture
def known(tmp_path):
    """Write a file of known issues: (name of the implementation, more lines) of each."""

    def write(*issues):
        text = "".join(ISSUE.format(name=name, more=more, expires=SOON) for name, more in issues)
        (tmp_path / "known_issues.toml").write_text(text, encoding="utf-8")

    return write


@pytest.fixture
def repository(tmp_path):
    """A git repository in the folder of the test."""

    def git(*arguments):
        identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "-q", "-b", "main")
    return SimpleNamespace(git=git, folder=tmp_path)
