"""Tests that are marked ``virtual`` find a virtual NPU; all others find a process without one."""

from __future__ import annotations

import importlib.util

import pytest

import npudiff.device.virtual
from npudiff.device.simulator import library


@pytest.fixture(autouse=True)
def virtual_npu(request):
    """Enable it for those that ask for it. Where torch_npu is installed, one that cannot be enabled is a failure."""
    if request.node.get_closest_marker("virtual") is None:
        return
    if importlib.util.find_spec("torch_npu") is None:
        pytest.skip("no torch_npu: pip install 'npudiff[npu]'")
    if not npudiff.device.virtual.enabled() and library._register.cache_info().currsize:
        pytest.skip("the simulator was here first, in a run of other tests: run pytest -m virtual")
    npudiff.device.virtual.enable()
