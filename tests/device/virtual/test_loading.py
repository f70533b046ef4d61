"""What does not fit is refused in one line, before anything crashes."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from npudiff.device.virtual import VirtualNpuUnavailable, enabled, loading

SET_BY_A_VIRTUAL_PROCESS = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "TASK_QUEUE_ENABLE")


@pytest.fixture
def versions(monkeypatch):
    """Install packages of some versions, or none, as far as anybody can tell without importing them."""
    installed = {"torch": "2.13.0+cpu", "torch_npu": "2.13.0.post2"}
    original = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed.get(name) or original(name))

    def folder(name):
        if installed.get(name, "there") is None:
            raise VirtualNpuUnavailable(f"{name} is not installed")
        return Path(name)

    monkeypatch.setattr(loading, "package_folder", folder)
    return installed


def test_versions_that_belong_together(versions):
    assert loading.version_of_torch_npu() == "2.13.0.post2"


@pytest.mark.parametrize("torch_npu", ["2.12.0", "2.14.0", "2.13.1", "2.1.0.post17"])
def test_a_torch_npu_for_another_torch_is_one_line(versions, torch_npu):
    versions["torch_npu"] = torch_npu
    wanted = ".".join(torch_npu.split(".")[:3])
    with pytest.raises(VirtualNpuUnavailable) as raised:
        loading.version_of_torch_npu()
    assert str(raised.value) == f"torch_npu {torch_npu} needs torch {wanted}, and torch is 2.13.0+cpu"


@pytest.mark.parametrize(("version", "refused"), [("2.13.0+cu130", True), ("2.14.1", True), ("2.10.0", False)])
def test_a_torch_for_cuda_is_one_line_where_torch_npu_would_end_the_process(
    versions, monkeypatch, tmp_path, version, refused
):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_cuda.so").touch()
    monkeypatch.setattr(loading, "package_folder", lambda name: tmp_path)
    versions |= {"torch": version, "torch_npu": version.partition("+")[0]}
    if not refused:
        assert loading.version_of_torch_npu() == version
        return
    with pytest.raises(VirtualNpuUnavailable, match=rf"^torch {re.escape(version)} is a build for CUDA, beside which "):
        loading.version_of_torch_npu()


def test_a_missing_package_is_one_line():
    with pytest.raises(
        VirtualNpuUnavailable, match=r"^no_such_package is not installed: pip install 'npudiff\[npu\]'$"
    ):
        loading.package_folder("no_such_package")


def test_asking_whether_it_is_enabled_enables_nothing():
    code = (
        "import sys, npudiff.device.virtual; "
        "print(npudiff.device.virtual.enabled(), 'torch' in sys.modules, 'torch_npu' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False False\n"


def run(code, **environment):
    inherited = {name: value for name, value in os.environ.items() if name not in SET_BY_A_VIRTUAL_PROCESS}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, timeout=60)


@pytest.mark.virtual
class TestWithTorchNpu:
    """Where the package is installed."""

    def test_it_is_enabled_here(self):
        import torch

        assert enabled()
        assert torch.npu.is_available()
        assert torch.npu.device_count() == 1

    @pytest.mark.parametrize(
        "first", ["", "import torch; ", "import npudiff.device.virtual; npudiff.device.virtual.enable(); "]
    )
    def test_before_or_after_torch(self, first):
        code = (
            first + "import npudiff.device.virtual; npudiff.device.virtual.enable(); "
            "import torch; print(torch.ones(2).npu() + 1)"
        )
        autoload = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"} if first.startswith("import torch") else {}
        done = run(code, **autoload)
        assert done.stdout == "tensor([2., 2.], device='npu:0')\n", done.stderr

    def test_it_leaves_the_environment_as_it_was(self):
        code = (
            "import os; before = dict(os.environ); import npudiff.device.virtual; npudiff.device.virtual.enable(); "
            "print(sorted(set(os.environ.items()) ^ set(before.items())))"
        )
        assert run(code).stdout == "[('TASK_QUEUE_ENABLE', '0')]\n"

    def test_too_late_is_one_line(self):
        code = (
            "import sys, types; sys.modules['torch_npu'] = types.ModuleType('torch_npu'); "
            "import npudiff.device.virtual; npudiff.device.virtual.enable()"
        )
        line = run(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0").stderr.strip().splitlines()[-1]
        assert line.endswith("torch_npu has been imported without the virtual NPU: enable it before that")

    def test_after_the_simulator_defined_operators_is_one_error(self):
        code = "from npudiff.device import simulator, virtual; simulator.install(); virtual.enable()"
        done = run(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
        line = done.stderr.strip().splitlines()[-1]
        assert line.endswith("the simulator has defined torch_npu's operators: enable the virtual NPU before that")

    def test_the_npu_target_is_hardware(self):
        """A virtual device must not be reported as a real one."""
        from npudiff.device.targets import npu
        from npudiff.model.implementation import TargetUnavailable

        with pytest.raises(
            TargetUnavailable, match="runs on the virtual NPU in this process: ask for --target virtual"
        ):
            npu(None)

    def test_the_default_target_is_not_the_virtual_one(self):
        from npudiff.run.discovery import default_target

        assert default_target(None).name == "sim"

    def test_programs_run_on_it_unchanged(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text("import sys, torch\nprint((torch.ones(2, device='npu') + 1).tolist(), sys.argv[1:])\n")
        done = run_virtual(sys.executable, str(script), "--flag", "value")
        assert done.stdout == "[2.0, 2.0] ['--flag', 'value']\n", done.stderr

    @pytest.mark.parametrize("imports", ["import torch_npu, torch", "import torch, torch_npu", "import torch"])
    def test_programs_import_in_any_order(self, imports):
        done = run_virtual(sys.executable, "-c", f"{imports}; print(torch.npu.get_device_name())")
        assert done.stdout == "Ascend910B3\n", done.stderr

    def test_a_program_that_does_not_use_torch_pays_nothing(self):
        done = run_virtual(sys.executable, "-c", "import sys; print('npudiff' in sys.modules, 'torch' in sys.modules)")
        assert done.stdout == "False False\n"

    def test_a_program_keeps_its_own_startup_file_and_exit_code(self, tmp_path):
        (tmp_path / "sitecustomize.py").write_text("print('mine')\n")
        done = run_virtual(sys.executable, "-c", "raise SystemExit(7)", PYTHONPATH=str(tmp_path))
        assert (done.stdout, done.returncode) == ("mine\nmine\n", 7)  # npudiff's own process has it, too


def run_virtual(*program, **environment):
    """Run ``npudiff virtual`` as a user does."""
    command = [sys.executable, "-m", "npudiff", "virtual", "--", *program]
    inherited = {name: value for name, value in os.environ.items() if name not in SET_BY_A_VIRTUAL_PROCESS}
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, timeout=60)


def test_a_program_that_is_not_there_is_one_line(cli_errors):
    assert cli_errors("nosuchprogram") == "npudiff: npudiff virtual: no program 'nosuchprogram'\n"
    assert cli_errors() == "npudiff: npudiff virtual runs a program: npudiff virtual -- python script.py\n"


@pytest.fixture
def cli_errors():
    def errors(*program):
        done = run_virtual(*program)
        assert done.returncode == 4
        return done.stderr

    return errors


def test_packaging_keeps_the_files_that_are_not_modules():
    """C files and the startup file lie beside the package, wherever it was installed."""
    from npudiff.device.virtual.build import SOURCES
    from npudiff.run.on_import import STARTUP

    assert {path.suffix for path in SOURCES.iterdir()} == {".c", ".h"}
    assert (STARTUP / "sitecustomize.py").is_file()
