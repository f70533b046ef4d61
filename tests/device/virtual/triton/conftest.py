"""Tests that are marked ``triton`` find Triton on the virtual NPU; where it is not installed they are skipped."""

from __future__ import annotations

import importlib.util

import pytest

import npudiff.device.virtual
import npudiff.device.virtual.triton


@pytest.fixture(autouse=True)
def triton_on_the_device(request, virtual_npu):
    """Enable it for those that ask for it. Where Triton is installed, one that cannot be enabled is a failure."""
    if request.node.get_closest_marker("triton") is None:
        return
    for package, extra in (("torch_npu", "npu"), ("triton", "triton")):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}: pip install 'npudiff[{extra}]'")
    npudiff.device.virtual.enable()
    npudiff.device.virtual.triton.enable()


@pytest.fixture
def kernels(triton_on_the_device):
    """The module of kernels, which imports Triton."""
    import triton_kernels

    return triton_kernels
