"""Booting vllm-ascend, shown on a small package that has its shape, beside a vllm that is not one."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

from npudiff.device.backends.vllm_ascend import BACKEND, boot
from npudiff.model.backend import BackendUnavailable

ATTENTION = """
import vllm
from vllm_ascend import _build_info
from vllm_ascend.ops.fused_moe import fused_moe  # it is there: the other way round is a circle
TYPE = _build_info.__device_type__
"""
EXPERTS = "import sys\nassert 'vllm_ascend.attention.attention_v1' not in sys.modules\n"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like vllm-ascend's repository, and a package vllm."""
    package = tmp_path / "checkout" / "vllm_ascend"
    for folder in ("", "attention", "ops", "ops/fused_moe"):
        (package / folder).mkdir(parents=True, exist_ok=True)
        (package / folder / "__init__.py").write_text("")
    (package / "attention" / "attention_v1.py").write_text(ATTENTION)
    (package / "ops" / "fused_moe" / "fused_moe.py").write_text(EXPERTS)
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "vllm.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "installed"), *sys.path])
    for name in boot.SETTINGS:
        monkeypatch.setenv(name, "")  # so that it is taken away again
        monkeypatch.delenv(name)
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path / "checkout"
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("vllm", "vllm_ascend"):
            del sys.modules[name]


def test_a_checkout_that_was_not_built_is_imported_in_the_order_that_works(checkout):
    booted = BACKEND.boot(checkout)
    assert booted.origin == (checkout / "vllm_ascend").resolve()
    assert sys.modules["vllm_ascend.attention.attention_v1"].TYPE == "A2"
    assert any("_C_ascend" in note for note in booted.notes)


def test_what_a_build_wrote_down_stays(checkout):
    (checkout / "vllm_ascend" / "_build_info.py").write_text("__device_type__ = 'A3'\n")
    BACKEND.boot(checkout)
    assert sys.modules["vllm_ascend.attention.attention_v1"].TYPE == "A3"


def test_a_folder_without_it_is_one_line(checkout, tmp_path):
    with pytest.raises(BackendUnavailable, match="no folder vllm_ascend in it"):
        BACKEND.boot(tmp_path)


def test_a_package_that_does_not_import_is_one_line_and_names_vllm(checkout):
    (checkout / "vllm_ascend" / "ops" / "fused_moe" / "fused_moe.py").write_text("import not_there")
    with pytest.raises(BackendUnavailable, match="does not import beside vllm of a checkout: ModuleNotFoundError"):
        BACKEND.boot(checkout)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_without_vllm_it_says_so(tmp_path):
    with pytest.raises(BackendUnavailable, match="vllm is not installed"):
        BACKEND.boot(tmp_path)


def test_modules_that_found_triton_take_their_other_way_until_a_case_asks(monkeypatch):
    found, none, other = ModuleType("vllm_ascend.found"), ModuleType("vllm_ascend.none"), ModuleType("somebody.else")
    found.HAS_TRITON = other.HAS_TRITON = True
    none.HAS_TRITON = False
    for module in (found, none, other):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(boot, "WITH_TRITON", [])
    boot._choose_without_triton()
    assert found.HAS_TRITON, "a card has what is installed"
    monkeypatch.setattr(boot.virtual, "enabled", lambda: True)
    boot._choose_without_triton()
    assert (found.HAS_TRITON, none.HAS_TRITON, other.HAS_TRITON) == (False, False, True)
    assert [found] == boot.WITH_TRITON


def test_where_triton_does_not_run_it_says_why(monkeypatch):
    def refused():
        raise boot.virtual.VirtualNpuUnavailable("triton is not installed")

    assert boot._interpreted_triton() == ()
    monkeypatch.setattr(boot.virtual, "enabled", lambda: True)
    monkeypatch.setattr(boot.virtual.triton, "enable", refused)
    assert boot._interpreted_triton() == ("Triton kernels do not run: triton is not installed",)
