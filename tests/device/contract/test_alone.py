"""How the contract tests end where torch_npu cannot be asked: skipped without it, failed where it does not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
RUN = "import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
ONE = f"{HERE / 'test_registered_schemas.py'}::test_operators_of_other_packages_are_not_torch_npus"


def run(before, *arguments):
    """Run one test that asks torch_npu in a process of its own, after ``before``."""
    command = [sys.executable, "-c", f"{before}\n{RUN}", *arguments, ONE]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return result.returncode, result.stdout + result.stderr


HIDDEN = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == 'torch_npu' else find(name, package)
"""
SHOWN = HIDDEN.replace("None if name", "find('json') if name")
LATE = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # npudiff is imported before pytest
SIMULATED = """
import importlib.util
importlib.util.find_spec('torch')
from npudiff.device import simulator
simulator.install()
"""


@pytest.mark.slow
@pytest.mark.contract
def test_without_torch_npu_they_are_skipped():
    code, text = run(HIDDEN, "-m", "contract")
    assert code == 0, text
    assert "torch_npu is not installed" in text


@pytest.mark.slow
@pytest.mark.contract
def test_in_any_other_selection_they_are_skipped():
    code, text = run(SHOWN)
    assert code == 0, text
    assert "run pytest -m contract" in text


@pytest.mark.slow
@pytest.mark.contract
def test_a_torch_npu_that_does_not_load_is_a_failure():
    code, text = run(SHOWN + "import sys\nsys.modules['torch_npu'] = sys\n", "-m", "contract")
    assert code == 1, text
    assert "torch_npu is installed and does not load: " in text


@pytest.mark.slow
@pytest.mark.contract
def test_operators_that_are_simulated_already_are_a_failure():
    code, text = run(SIMULATED + SHOWN, "-m", "contract", *LATE)
    assert code == 1, text
    assert "the simulator has defined the operators already" in text


@pytest.mark.parametrize(
    ("expression", "asked"),
    [("contract", True), ("not slow", False), ("", False), ("not contract", False), ("contract and not slow", True)],
)
def test_what_asks_for_them(request, expression, asked):
    conftest = next(
        plugin for plugin in request.config.pluginmanager.get_plugins() if hasattr(plugin, "asks_for_contract")
    )
    assert conftest.asks_for_contract(expression) is asked
