"""A run with many kernels that are broken or hostile: each is told once, none is green, and nothing is left."""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import hostile_kernels
from npudiff.errors import ExitCode


def judged(folder, kernels, *arguments, timeout):
    """Check kernels as a program; return what it printed, its exit code, and which processes it left."""
    (folder / "hostile.py").write_text(hostile_kernels.HEAD + "".join(text for _, text in kernels))
    token = secrets.token_hex(8)
    command = [
        sys.executable,
        "-m",
        "npudiff",
        "check",
        "swa_mask",
        "--impl",
        "hostile.py",
        "--target",
        "sim",
        *arguments,
    ]
    result = subprocess.run(
        [*command, "--examples", "6", "--seed", "1", "--timeout", "2s"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=timeout, env={**os.environ, "TOKEN": token},
        preexec_fn=_hears_hangups,
    )  # fmt: skip
    return result, processes_with(token)


def _hears_hangups():
    """Where these tests outlive their terminal, SIGHUP is ignored, and a kernel that sends it to itself is right."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def processes_with(token):
    found = []
    for folder in [one for one in Path("/proc").iterdir() if one.name.isdigit()]:
        try:
            if token.encode() in (folder / "environ").read_bytes() and " Z " not in (folder / "stat").read_text():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


def assert_each_told_once(result, left, kernels, *, twice=0):
    """Each is told; at most ``twice`` of them fail in two ways, and have two findings."""
    assert result.returncode == ExitCode.FINDINGS, result.stdout[-2000:] + result.stderr[-2000:]
    told = re.findall(r"^FINDING swa_mask\.(\w+) ", result.stdout, re.MULTILINE)
    names = [name for name, _ in kernels]
    assert set(told) == set(names), sorted(set(names) ^ set(told))
    assert len(told) <= len(names) + twice, Counter(told).most_common(9)
    assert "ok, " not in result.stdout
    assert "internal error" not in result.stderr
    assert not left


def some(count, kinds):
    whole = hostile_kernels.names_and_texts(len(hostile_kernels.KINDS) * len(hostile_kernels.WHEN), 0)
    fitting = [one for one in whole if one[0].partition("__")[0] in kinds]
    return random.Random(7).sample(fitting, count)  # noqa: S311 - the same ones every time


@pytest.mark.slow
def test_some_of_each_kind(tmp_path):
    kernels = [
        one
        for kinds in (hostile_kernels.EXITS, hostile_kernels.LEAVINGS, hostile_kernels.PATCHES)
        for one in some(4, kinds)
    ]
    result, left = judged(tmp_path, kernels, "--untrusted", timeout=300)
    assert_each_told_once(result, left, kernels)


@pytest.mark.slow
def test_some_that_are_only_broken_without_a_word_on_the_command_line(tmp_path):
    kinds = (hostile_kernels.EXITS, hostile_kernels.SIGNALS, hostile_kernels.RETURNS)
    kernels = [one for chosen in kinds for one in some(4, chosen)]
    result, left = judged(tmp_path, kernels, timeout=300)
    assert_each_told_once(result, left, kernels)


@pytest.mark.slow
def test_a_thousand(tmp_path, record_property):
    kernels = hostile_kernels.names_and_texts(1000, 4)
    # Most of the time somebody waits for one that hangs.
    result, left = judged(tmp_path, kernels, "--untrusted", "--workers", "8", timeout=7200)
    record_property("line", result.stdout.splitlines()[-1])
    # One that writes 1 into its lengths is wrong in two ways; and a loaded machine has time-outs of its own.
    assert_each_told_once(result, left, kernels, twice=5)
