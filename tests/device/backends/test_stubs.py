"""Stand-ins for packages that are not here: what a backend may do with them, and what not."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest

from npudiff.device.backends.stubs import StubCalled, StubModule, Stubs

GONE = "a_package_that_nobody_has"


@pytest.fixture
def stubs(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    before = set(sys.modules)
    made = Stubs([GONE, "json"], ["colorsys"], [f"{GONE}.absent"])
    made.install()
    yield made
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in (GONE, "colorsys"):
            del sys.modules[name]


@pytest.fixture
def program(stubs, tmp_path, monkeypatch):
    """Import a module of this text."""

    def imported(text):
        (tmp_path / "a_backend.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "a_backend", raising=False)
        importlib.invalidate_caches()
        return importlib.import_module("a_backend")

    return imported


def test_a_module_of_a_missing_package_is_found_at_any_depth(stubs):
    deep = importlib.import_module(f"{GONE}.one.two")
    assert isinstance(deep, StubModule)
    assert deep.__version__ == "99.0"
    with pytest.raises(AttributeError):
        deep.__wrapped__  # noqa: B018


def test_what_is_installed_is_not_stood_in_for_unless_always(stubs):
    assert not isinstance(importlib.import_module("json"), StubModule)
    assert not stubs.standing_in_for("json")
    assert isinstance(importlib.import_module("colorsys"), StubModule)


def test_a_module_without_which_there_is_another_way_is_not_found(stubs):
    importlib.import_module(GONE)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{GONE}.absent")


def test_other_missing_packages_stay_missing(stubs):
    assert importlib.util.find_spec("another_package_that_nobody_has") is None


IMPORTED = f"""
from abc import ABC
import {GONE}
from {GONE}.kernels import Mode, decorate, launch

class Mine(Mode, ABC):
    kind = Mode.NEAREST

@decorate
def plain(x):
    return x + 1

handle = launch(8, name="at import")

def call():
    return launch(9)
"""


def test_names_may_be_inherited_from_decorate_and_be_called_while_a_module_is_imported(program, stubs):
    module = program(IMPORTED)
    assert issubclass(module.Mine, importlib.import_module(f"{GONE}.kernels").Mode.__class__) is False
    assert module.plain(1) == 2
    assert "launch" in repr(module.handle)
    assert stubs.touched[GONE] >= 4


def test_a_call_afterwards_says_which_package_is_not_here(program):
    module = program(IMPORTED)
    with pytest.raises(StubCalled, match=rf"{GONE}\.kernels\.launch was called"):
        module.call()


def test_a_class_is_one_for_isinstance_and_refuses_to_be_made(program):
    module = program(IMPORTED)
    assert not isinstance(3, module.Mode)
    with pytest.raises(StubCalled):
        module.Mode()
