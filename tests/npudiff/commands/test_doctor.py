from __future__ import annotations

import re
from dataclasses import replace

import pytest

from npudiff import TargetUnavailable
from npudiff.commands import doctor as module
from npudiff.errors import ExitCode
from npudiff.run import discovery, environment


@pytest.fixture(autouse=True)
def no_cann(monkeypatch):
    for variable in ("LD_LIBRARY_PATH", "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(environment.ctypes.util, "find_library", lambda name: None)


@pytest.fixture
def no_npu(monkeypatch):
    """Only the simulator is there, and every target is tried in this process."""
    original = discovery.load_target

    def load_target(name, cann):
        if name != "sim":
            raise TargetUnavailable("torch_npu sees no NPU")
        return original(name, cann)

    monkeypatch.setattr(module, "load_target", load_target)
    monkeypatch.setattr(module, "_probe_alone", module._probe)


@pytest.mark.slow
def test_it_says_what_this_machine_can_run(cli, no_npu):
    result = cli("doctor")
    assert result.code == ExitCode.CLEAN
    assert re.search(r"^npudiff +\S+$", result.out, re.MULTILINE)
    assert re.search(r"^torch +\d", result.out, re.MULTILINE)
    assert re.search(r"^  npu +not available: torch_npu sees no NPU$", result.out, re.MULTILINE)
    assert re.search(r"^  sim +works \(CANN 8\.5; 3 known answers per component\)$", result.out, re.MULTILINE)
    assert re.search(
        r"^components +.*, vocabulary_parallel, weight_quant_matmul$",
        result.out,
        re.MULTILINE,
    )
    assert re.search(r"^default target +sim$", result.out, re.MULTILINE)
    assert "CANN             libhccl.so not found: source set_env.sh" in result.out


@pytest.mark.slow
def test_a_target_that_gives_wrong_answers_does_not_work(cli, no_npu, monkeypatch):
    original = module.select_implementations

    def wrong(components, selectors):
        return [replace(item, function=lambda inputs, target: None) for item in original(components, selectors)]

    monkeypatch.setattr(module, "select_implementations", wrong)
    result = cli("doctor")
    assert "runs, but gives wrong answers: " in result.out
    assert "swa_mask.eager.equivalence" in result.out
    assert result.out.endswith("no target works here\n")
    assert result.code == ExitCode.DEVICE_LOST == 6


@pytest.mark.slow
def test_the_npu_is_the_default_where_it_works(cli, monkeypatch):
    original = discovery.load_target
    monkeypatch.setattr(module, "load_target", lambda name, cann: replace(original("sim", None), name=name))
    monkeypatch.setattr(module, "_probe_alone", module._probe)
    assert "default target   npu" in cli("doctor").out


@pytest.mark.slow
def test_one_target_is_one_line(cli, no_npu):
    works = cli("doctor", "--target", "sim")
    assert (works.code, works.out) == (ExitCode.CLEAN, "works (CANN 8.5; 3 known answers per component)\n")
    missing = cli("doctor", "--target", "npu")
    assert (missing.code, missing.out) == (ExitCode.DEVICE_LOST, "not available: torch_npu sees no NPU\n")


def test_an_unknown_target_is_refused(cli):
    result = cli("doctor", "--target", "gpu")
    assert result.code == ExitCode.USAGE
    assert "unknown target 'gpu'; known: npu, sim, virtual" in result.err


@pytest.mark.parametrize(
    ("code", "out", "err", "answer"),
    [
        (0, "W a warning\nworks (CANN 8.5)\n", "", (True, "works (CANN 8.5)")),
        (6, "not available: no compiler\n", "", (False, "not available: no compiler")),
        (-11, "half a li", "x.so: bad\n", (False, "crashed with exit code -11: x.so: bad")),
        (-11, "", "", (False, "crashed with exit code -11: it said nothing")),
    ],
)
def test_each_target_is_tried_in_a_process_of_its_own(monkeypatch, code, out, err, answer):
    asked = []

    def run(command, **_):
        asked.append(command)
        return module.subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(module.subprocess, "run", run)
    assert module._probe_alone("virtual") == answer
    assert asked == [[module.sys.executable, "-m", "npudiff", "doctor", "--target", "virtual"]]


@pytest.mark.slow
def test_it_says_that_torch_would_not_import(cli, no_npu, monkeypatch):
    monkeypatch.setattr(module, "version_of", lambda name: "2.6.0")
    monkeypatch.setattr(module, "autoload_would_fail", lambda: True)
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "3")
    out = cli("doctor").out
    assert "npudiff sets TORCH_DEVICE_BACKEND_AUTOLOAD=0, and so must your own scripts" in out
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0\n" in out
    assert "ASCEND_RT_VISIBLE_DEVICES=3\n" in out


@pytest.mark.slow
def test_it_says_what_to_install(cli, no_npu, monkeypatch):
    monkeypatch.setattr(module, "version_of", lambda name: None)
    assert "torch_npu        not installed (needed for the npu target" in cli("doctor").out
