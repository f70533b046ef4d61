from __future__ import annotations

import importlib.util
import os

import pytest

from npudiff.cli import prepare_environment
from npudiff.run import environment
from npudiff.run.environment import CANN_LIBRARY, autoload_would_fail, cann_library, version_of

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


@pytest.fixture(autouse=True)
def no_cann(monkeypatch):
    for variable in ("LD_LIBRARY_PATH", "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(AUTOLOAD, "placeholder")  # so that whatever is set below is undone
    monkeypatch.delenv(AUTOLOAD)
    monkeypatch.setattr(environment.ctypes.util, "find_library", lambda name: None)


@pytest.fixture
def torch_npu(monkeypatch):
    monkeypatch.setattr(
        environment.importlib.util,
        "find_spec",
        lambda name, find_spec=importlib.util.find_spec: object() if name == "torch_npu" else find_spec(name),
    )


def test_versions_are_those_of_installed_distributions():
    assert version_of("npudiff")
    assert version_of("no-such-distribution") is None


def test_cann_is_found_on_the_library_path(monkeypatch, tmp_path):
    assert cann_library() is None
    (tmp_path / CANN_LIBRARY).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere::{tmp_path}")
    assert cann_library() == str(tmp_path / CANN_LIBRARY)


@pytest.mark.parametrize("variable", ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"])
def test_cann_is_found_in_its_home(monkeypatch, tmp_path, variable):
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / CANN_LIBRARY).touch()
    monkeypatch.setenv(variable, str(tmp_path))
    assert cann_library() == str(tmp_path / "lib64" / CANN_LIBRARY)


def test_torch_does_not_load_a_torch_npu_that_would_fail(torch_npu):
    assert autoload_would_fail()
    prepare_environment()
    assert os.environ[AUTOLOAD] == "0"


def test_what_the_user_said_about_autoload_stays(torch_npu, monkeypatch):
    monkeypatch.setenv(AUTOLOAD, "1")
    prepare_environment()
    assert os.environ[AUTOLOAD] == "1"


def test_autoload_stays_on_with_cann(torch_npu, monkeypatch, tmp_path):
    (tmp_path / CANN_LIBRARY).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    prepare_environment()
    assert AUTOLOAD not in os.environ


def test_autoload_stays_on_without_torch_npu(monkeypatch):
    monkeypatch.setattr(environment, "torch_npu_installed", lambda: False)
    prepare_environment()
    assert AUTOLOAD not in os.environ


def test_torch_shows_errors_only_here_and_all_to_a_program_of_the_user(torch_npu, monkeypatch):
    monkeypatch.setattr(environment, "_quietened", [])
    monkeypatch.delenv(environment.LOG_LEVEL, raising=False)
    prepare_environment()
    assert os.environ[environment.LOG_LEVEL] == "ERROR"
    assert environment.of_the_user({environment.LOG_LEVEL: "ERROR", "HOME": "/"}) == {"HOME": "/"}
    monkeypatch.setattr(environment, "_quietened", [])
    prepare_environment()
    assert environment.LOG_LEVEL in environment.of_the_user(os.environ), "what somebody said stays"
