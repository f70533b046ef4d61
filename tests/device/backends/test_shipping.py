"""The rooms of shipping backends, beside the backends themselves: ``tox -e sglang``, ``tox -e vllm_ascend``."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("sglang", "vllm_ascend")


def checkout_of(name):
    """A checkout that is to be tested in place of what is installed; empty if there is none."""
    return os.environ.get(f"CHECKOUT_OF_{name}".upper(), "")


HERE = [name for name in NAMES if checkout_of(name) or importlib.util.find_spec(name) is not None]
pytestmark = [pytest.mark.backend, pytest.mark.parametrize("name", HERE)]


def npudiff(*arguments, folder):
    """Run a command with a backend as a program; return its exit code and its output."""
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "npudiff", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=3000,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def wish(name):
    """A backend as ``--backend`` is told it."""
    return f"{name}={checkout_of(name)}" if checkout_of(name) else name


def test_the_gate_with_its_known_defects_is_open(name, tmp_path):
    known = ROOT / "docs" / "backends" / f"known_issues_{name}.toml"
    arguments = ("--backend", wish(name), "--known", known, "--rotating", "off", "--budget", "40m", "--examples", "40")
    code, said = npudiff("gate", *map(str, arguments), folder=tmp_path)
    assert code == 0, said
    assert "gate open" in said


def test_the_doctor_says_which_operators_have_no_kernel_and_what_is_stood_in_for(name, tmp_path):
    code, said = npudiff("doctor", "--backend", wish(name), folder=tmp_path)
    assert code == 0, said
    (share,) = re.findall(r"npu and atb: .*\((\d+\.\d) %\) have a kernel", said)
    assert float(share) >= 95
    assert re.search(r"^implementations +\d+ of \d+ components$", said, re.MULTILINE)
