"""The real torch_npu, for tests that ask it; the other tests here need none.

Those that ask are marked ``contract`` and run by themselves, or on the virtual NPU: ``pytest -m contract``. They import
torch_npu on the virtual NPU, which gives a process other operators, another device and other errors for as long as it
lives, and they must do so before anything is simulated. In any other selection of tests they are therefore skipped,
also where torch_npu is installed; what is asked of the package's files without importing it runs there as well.
"""

from __future__ import annotations

import importlib.util
import re

import pytest

ALONE = "imports torch_npu, which must be the first thing that a process does: run pytest -m contract"


def load_torch_npu():
    """Import torch_npu and then simulate its operators; returns why that is impossible, or None."""
    from npudiff.device.simulator import library
    from npudiff.device.virtual.loading import load

    if library._register.cache_info().currsize and not load.cache_info().currsize:
        return f"the simulator has defined the operators already; this test {ALONE}"

    try:
        load()
    except Exception as error:  # noqa: BLE001 - whatever it is, the tests that need torch_npu fail with it
        return f"torch_npu is installed and does not load: {type(error).__name__}: {error}"
    library.install()
    return None


def asks_for_contract(expression):
    return re.search(r"(?<!not )\bcontract\b", expression) is not None


def pytest_configure(config):
    """Import torch_npu while this folder is collected: collecting npudiff's own properties simulates operators."""
    if asks_for_contract(config.getoption("markexpr", "")) and importlib.util.find_spec("torch_npu") is not None:
        config.stash[_STATE] = load_torch_npu()


_STATE = pytest.StashKey()


@pytest.fixture(scope="session")
def torch_npu(request):
    """The operators of the real torch_npu, with the simulator's CPU kernels."""
    if importlib.util.find_spec("torch_npu") is None:
        pytest.skip("torch_npu is not installed: pip install 'npudiff[npu]'")
    if _STATE not in request.config.stash:
        pytest.skip(ALONE)
    if request.config.stash[_STATE] is not None:
        pytest.fail(request.config.stash[_STATE])
