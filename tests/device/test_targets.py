from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch

from npudiff import TargetUnavailable
from npudiff.device import simulator, targets


@pytest.fixture
def installed(monkeypatch):
    """Make a torch_npu importable, with a device module of our own; returns what was waited for."""
    waited = []

    def install(*, available=True, fails=None):
        found = importlib.util.find_spec
        monkeypatch.setattr(
            targets.importlib.util, "find_spec", lambda name: object() if name == "torch_npu" else found(name)
        )
        if fails is None:
            monkeypatch.setitem(sys.modules, "torch_npu", types.ModuleType("torch_npu"))
        else:
            monkeypatch.setitem(sys.modules, "torch_npu", None)
        device = types.SimpleNamespace(is_available=lambda: available, synchronize=lambda: waited.append(1))
        monkeypatch.setattr(torch, "get_device_module", lambda name: device)
        return waited

    return install


def test_the_simulator_runs_on_cpu_tensors_with_its_default_profile():
    target = targets.sim(None)
    assert (target.name, target.device, target.cann) == ("sim", "cpu", simulator.DEFAULT_PROFILE)
    assert target.synchronize() is None


@pytest.mark.parametrize("name", list(simulator.PROFILES))
def test_operators_follow_the_profile_of_the_target_while_it_is_active(name):
    target = targets.sim(name)
    assert target.cann == name
    before = simulator.active_profile()
    with target.activate():
        assert simulator.active_profile().name == name
    assert simulator.active_profile() is before


def test_the_operators_are_there_once_the_simulator_is_chosen():
    targets.sim(None)
    targets.sim(None)  # a second time does no harm
    assert torch.ops.npu.npu_fused_infer_attention_score_v2.default


def test_an_unknown_profile_is_named_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"^unknown CANN profile '7'; known: 8\.5, 9\.0, 9\.1, pessimistic$"):
        targets.sim("7")


def test_without_torch_npu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetUnavailable, match=r"torch_npu is not installed: pip install 'npudiff\[npu\]', on a mach"):
        targets.npu(None)


def test_a_torch_npu_that_does_not_import_is_said_with_what_to_do(installed):
    installed(fails=True)
    with pytest.raises(TargetUnavailable, match=r"torch_npu does not import: .*; run 'npudiff doctor'"):
        targets.npu(None)


def test_no_visible_device_is_said_with_where_to_look(installed):
    installed(available=False)
    with pytest.raises(TargetUnavailable, match="torch_npu sees no NPU: see npu-smi info and ASCEND_RT_VISIBLE_DEVIC"):
        targets.npu(None)


def test_a_device_is_used_and_waited_for(installed):
    waited = installed()
    target = targets.npu(None)
    assert (target.name, target.device, target.cann) == ("npu", "npu:0", "unknown")
    target.synchronize()
    assert waited == [1]
    with target.activate():
        pass


def test_a_device_has_the_cann_that_it_has(installed):
    installed()
    with pytest.raises(ValueError, match=r"--cann 8\.5 is a profile of the simulator"):
        targets.npu("8.5")


def test_the_cann_version_is_that_which_torch_npu_reports(installed, monkeypatch):
    installed()
    module = types.ModuleType("torch_npu.utils.collect_env")
    module.get_cann_version = lambda: "8.5.RC1"
    monkeypatch.setitem(sys.modules, "torch_npu.utils", types.ModuleType("torch_npu.utils"))
    monkeypatch.setitem(sys.modules, "torch_npu.utils.collect_env", module)
    assert targets.npu(None).cann == "8.5.RC1"


def test_a_simulated_target_names_the_versions_that_are_not_looked_at():
    assert targets.sim("9.0").other_canns == ("8.5", "9.1", "pessimistic")
    assert targets.sim(None).other_canns == ("9.0", "9.1", "pessimistic")
