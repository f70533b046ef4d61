"""Tests on the virtual NPU need a process of their own: ``pytest -m virtual``.

torch_npu defines its operators when it is imported, and cannot where the simulator has defined them before. Where
torch_npu is installed the virtual NPU has to work: anything else fails every test here.
"""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture(scope="session", autouse=True)
def _virtual_npu():
    if importlib.util.find_spec("torch_npu") is None:
        pytest.skip("torch_npu is not installed: pip install 'npudiff[npu]'")
    import device.virtual

    device.virtual.enable()
