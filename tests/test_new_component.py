"""The example of a new component: how little it takes, and that it is found, checked, and able to fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "new_component"
FILES = sorted(path.relative_to(EXAMPLE) for path in EXAMPLE.rglob("*.py"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a command of npudiff where the example is put into the rooms, and nothing else is changed."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "npudiff", folder / "npudiff", ignore=shutil.ignore_patterns("__pycache__"))
    for path in FILES:
        shutil.copy(EXAMPLE / path, folder / "npudiff" / path)

    def call(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(folder), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        command = [sys.executable, "-m", "npudiff", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)

    return call


def test_it_takes_few_lines_in_four_files():
    assert len(FILES) == 4
    assert sum(len((EXAMPLE / path).read_text(encoding="utf-8").splitlines()) for path in FILES) <= 150


@pytest.mark.slow
def test_it_is_checked_by_name_and_its_mutants_are_found(run):
    checked = run("check", "l2_norm", "--target", "sim", "--seed", "1")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "native_l2_norm" in checked.stdout
    assert "ok, 4 properties" in checked.stdout
    tested = run("self-test", "l2_norm", "--target", "sim", "--seed", "1")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "3 of 3 mutants found" in tested.stdout


@pytest.mark.slow
def test_its_axes_are_listed(run):
    listed = run("list", "l2_norm")
    assert listed.returncode == 0
    assert "width" in listed.stdout
    assert "tiny: epsilon decides" in listed.stdout
