"""``python -m npudiff.device.contract``: what it records, and how it ends."""

from __future__ import annotations

import hashlib
import zipfile
from types import SimpleNamespace

import pytest

import npudiff.device.contract.__main__ as recording
from npudiff.device.contract.calls import recorded_calls
from npudiff.device.contract.listing import LISTING
from npudiff.device.contract.versions import recorded_wheels
from npudiff.run.discovery import load_component


@pytest.fixture
def written(monkeypatch):
    """What would have been written."""
    found = []
    monkeypatch.setattr(recording, "write_wheels", found.extend)
    monkeypatch.setattr(recording, "write_calls", found.extend)
    return found


def test_a_wheel_is_added_to_those_that_are_recorded(written, tmp_path, capsys):
    path = tmp_path / "torch_npu-3.0.0-cp311-cp311-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"torch_npu/{LISTING}", "- func: npu_swiglu(Tensor self) -> Tensor\n")
        archive.writestr("torch_npu/version.py", "__version__ = '3.0.0'\n")
    assert recording.main(["versions", str(path)]) == 0
    assert written[:-1] == recorded_wheels()
    assert (written[-1].file, written[-1].sha256) == (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    assert written[-1].listing.schemas == {"npu_swiglu": "npu_swiglu(Tensor input) -> Tensor"}
    assert capsys.readouterr().out == "3.0.0: 1 schemas\n"


def test_what_is_no_wheel_is_one_line_and_writes_nothing(written, tmp_path, capsys):
    assert recording.main(["versions", str(tmp_path / "gone.whl")]) == 1
    assert capsys.readouterr().err.endswith("gone.whl: no such file or folder\n")
    assert written == []


def test_calls_of_the_adapters_are_recorded(written, monkeypatch):
    monkeypatch.setattr(recording, "load_components", lambda names: [load_component("int4_pack")])
    assert recording.main(["calls", "--examples", "2"]) == 0
    forms = {str(call) for call in written}
    assert "npu_convert_weight_to_int4pack(Tensor)" in forms
    assert {form.partition("(")[0] for form in forms} <= {"npu_convert_weight_to_int4pack", "npu_quantize"}


def test_calls_of_one_component_are_added_to_those_that_are_recorded(written):
    assert recording.main(["calls", "int4_pack", "--examples", "2"]) == 0
    assert {str(call) for call in written} == {str(call) for call in recorded_calls().values()}


def test_an_adapter_that_fails_records_nothing(written, monkeypatch, capsys):
    monkeypatch.setattr(recording, "load_components", lambda names: [load_component("int4_pack")])
    failed = SimpleNamespace(failure=SimpleNamespace(case="a case", error=ValueError("why")))
    monkeypatch.setattr(recording, "run_drawn", lambda *arguments: failed)
    assert recording.main(["calls", "--examples", "1"]) == 1
    assert " fails on a case: why" in capsys.readouterr().err
    assert written == []
