"""Where no case of an implementation comes to a verdict, nothing is green."""

from __future__ import annotations

import textwrap

import pytest

from npudiff.errors import ExitCode
from npudiff.model.component import NotApplicable, Subject

KERNELS = """
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

@npudiff.implementation("swa_mask", name="good")
def good(inputs, target):
    return window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)

@npudiff.implementation("swa_mask", name="elsewhere", supports={"window": (7,)})
def elsewhere(inputs, target):
    return good(inputs, target)
"""


@pytest.fixture
def check(cli, tmp_path, monkeypatch):
    """Check two kernels, of which one needs an operator that is not here."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(KERNELS), encoding="utf-8")
    begin = Subject.begin

    def left_out(subject, inputs):
        if subject.implementation.name == "elsewhere":
            raise NotApplicable("torch.ops.npu.npu_nothing is not there")
        return begin(subject, inputs)

    monkeypatch.setattr(Subject, "begin", left_out)
    common = ("--impl", "mine.py", "--target", "sim", "--no-isolate", "--examples", "5", "--workers", "1")
    return lambda *more: cli("check", *common, *more)


def test_a_kernel_that_was_judged_in_no_case_is_not_green_beside_one_that_holds(check, tmp_path):
    result = check("--junit", "junit.xml")
    assert result.code == ExitCode.NOTHING_RAN
    said = "no case of swa_mask.elsewhere could be judged: torch.ops.npu.npu_nothing is not there"
    assert said in result.out
    assert said in (tmp_path / "junit.xml").read_text()
    assert "no case of swa_mask.good" not in result.out


def test_what_somebody_narrowed_to_nothing_is_his_own_doing(check):
    result = check("--where", "window=3")
    assert result.code == ExitCode.CLEAN
    assert "could be judged" not in result.out
    assert check("--where", "window=7").code == ExitCode.NOTHING_RAN  # it has cases there
