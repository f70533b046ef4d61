"""Booting sglang, shown on a small package that has its shape: what is found where, and what is said if it is not."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest

from npudiff.device.backends.sglang import BACKEND, boot
from npudiff.device.backends.stubs import StubCalled, Stubs
from npudiff.model.backend import BackendUnavailable

ATTENTION = """
import torchair
from sgl_kernel_npu.attention.sinks_attention import attention_sinks_triton
from sgl_kernel import rotary
try:
    from sgl_kernel_npu.norm.gemma_rmsnorm import npu_gemma_rms_norm
except ImportError:
    npu_gemma_rms_norm = None
GRAPHS = torchair.get_npu_backend()
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like sglang's repository."""
    package = tmp_path / "python" / "sglang"
    for folder in ("", "srt", "srt/hardware_backend", "srt/hardware_backend/npu", "srt/hardware_backend/npu/attention"):
        (package / folder).mkdir(parents=True, exist_ok=True)
        (package / folder / "__init__.py").write_text("")
    (package / "__init__.py").write_text("__version__ = '9.9'")
    (package / "srt/hardware_backend/npu/attention/ascend_backend.py").write_text(ATTENTION)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in (*boot.SETTINGS, boot.KERNELS):
        monkeypatch.setenv(name, "")  # so that it is taken away again
        monkeypatch.delenv(name)
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] in ("sglang", *boot.MISSING, *boot.ALWAYS):
            del sys.modules[name]
    importlib.invalidate_caches()


def attention():
    return sys.modules["sglang.srt.hardware_backend.npu.attention.ascend_backend"]


def test_a_checkout_is_imported_and_stand_ins_are_told(checkout):
    booted = BACKEND.boot(checkout)
    assert (booted.version, booted.origin) == ("9.9", (checkout / "python" / "sglang").resolve())
    assert {"sgl_kernel", "sgl_kernel_npu", "torchair"} <= set(booted.stubs())
    assert attention().npu_gemma_rms_norm is None


def test_kernels_of_a_checkout_are_found(checkout, tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / "python" / "sgl_kernel_npu" / "sgl_kernel_npu" / "attention"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "sinks_attention.py").write_text("attention_sinks_triton = 'its own'")
    monkeypatch.setenv(boot.KERNELS, str(tmp_path / "kernels"))
    assert "sgl_kernel_npu" not in BACKEND.boot(checkout).stubs()
    assert attention().attention_sinks_triton == "its own"


def test_kernels_that_are_not_there_are_one_line(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv(boot.KERNELS, str(tmp_path / "nowhere"))
    with pytest.raises(BackendUnavailable, match="no folder python/sgl_kernel_npu/sgl_kernel_npu in it"):
        BACKEND.boot(checkout)


def test_the_chip_is_known_and_nothing_else_is(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    stubs = Stubs(["acl"])
    stubs.install()
    boot._answer_what_chip(stubs)
    runtime = importlib.import_module("acl").rt
    assert runtime.get_device_info(0, 601) == (2201, 0)
    with pytest.raises(StubCalled, match=r"acl\.rt"):
        runtime.get_device_info(0, 600)
    with pytest.raises(StubCalled, match=r"acl\.rt\.memcpy"):
        runtime.memcpy()
    del sys.modules["acl"]


def test_a_folder_without_sglang_is_one_line(tmp_path):
    with pytest.raises(BackendUnavailable, match="no folder sglang or python/sglang in it"):
        BACKEND.boot(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("sglang") is not None, reason="sglang is installed")
def test_without_sglang_it_says_how_to_have_it():
    with pytest.raises(BackendUnavailable, match=r"pip install --no-deps sglang, beside 'npudiff\[npu,sglang\]'"):
        BACKEND.boot(None)


def test_a_package_that_does_not_import_is_one_line(checkout):
    (checkout / "python/sglang/srt/hardware_backend/npu/attention/ascend_backend.py").write_text("import not_there")
    with pytest.raises(BackendUnavailable, match="does not import: ModuleNotFoundError: No module named 'not_there'"):
        BACKEND.boot(checkout)
