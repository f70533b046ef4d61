"""What raises, kills, hangs or writes into its inputs ends its script; and a defect of ours costs no finding."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from npudiff.findings.finding import REPRODUCE_TENSORS, SCRIPT_FILE, read_finding
from npudiff.model.job import Isolation
from npudiff.run.isolation.reaper import reaper


@pytest.fixture
def operator():
    """Register operators with faults, for as long as a test runs."""
    with torch.library._scoped_library("npudiff_faulty", "DEF") as library:
        for name, kernel in KERNELS.items():
            library.define(f"{name}(Tensor x, int[] sizes=[]) -> Tensor")
            library.impl(name, kernel, "CPU")
        yield torch.ops.npudiff_faulty


def _refuses(x, sizes=()):
    raise RuntimeError("call aclnnFoo failed, error code is 561002:\n\ttiling failed")


KERNELS = {
    "refuses": _refuses,
    "dies": lambda x, sizes=(): os.kill(os.getpid(), signal.SIGSEGV),
    "hangs": lambda x, sizes=(): time.sleep(60),
    "right": lambda x, sizes=(): x * 2,
    "writes": lambda x, sizes=(): x.mul_(2).clone(),
}


@pytest.fixture
def isolation(tmp_path):
    return Isolation(tmp_path / "journal", warm_up=5.0, run=0.4)


def test_a_call_that_raises_is_the_last_one(kept, lines, operator, alone):
    def function(inputs, target):
        y = operator.right(inputs.x + 1)
        return operator.refuses(y, sizes=[1, 2]) + 1

    one = kept(function)
    text = (one.folder / SCRIPT_FILE).read_text()
    assert (
        "\n    run.last()\n    torch.ops.npudiff_faulty.refuses.default(x=right, sizes=[1, 2])\n\n\nOPERATORS" in text
    )
    assert "# raised: RuntimeError: call aclnnFoo failed, error code is 561002: | tiling failed\n" in text
    assert "run.check(" not in text


def test_a_call_that_raised_and_was_caught_is_not_made_again(calls_of, lines, operator):
    def function(inputs, target):
        try:
            return operator.refuses(inputs.x)
        except RuntimeError:
            return inputs.x * 3

    text = lines(calls_of(function))
    assert "refuses" not in text
    assert "aten.mul.Tensor(x, 3)" in text


@pytest.mark.slow
def test_a_call_that_raises_fails_in_a_process_of_its_own(kept, alone):
    one = kept(lambda inputs, target: inputs.x.view(7, 7))
    done = alone(one.folder, "--device", "cpu")
    assert done.returncode == 1, done.stdout + done.stderr
    number = int(done.stdout.partition("FAILED in line ")[2].partition(":")[0])
    assert "aten.view.default(x, [7, 7])" in (one.folder / SCRIPT_FILE).read_text().splitlines()[number - 1]
    assert "RuntimeError: shape '[7, 7]' is invalid" in done.stdout
    assert done.stderr == ""


def test_what_python_raises_has_no_script(kept):
    def function(inputs, target):
        y = inputs.x + 1
        raise ValueError(f"not {len(y)}\nat all")

    one = kept(function)
    sentence = "the exception was raised by the implementation's own Python, and not by an operator"
    assert one.why == f"no script: {sentence}: ValueError: not 3"
    assert not (one.folder / SCRIPT_FILE).exists()


def test_a_result_that_is_no_output_has_no_script(kept):
    assert "must return a tensor or a mapping" in kept(lambda inputs, target: None).why


def test_a_call_that_kills_the_process_is_the_last_one(kept, operator, isolation):
    def function(inputs, target):
        return operator.right(operator.dies(inputs.x + 1, sizes=[3]))

    one = kept(function, isolation=isolation)
    assert one.finding.verdict == "process died"
    text = (one.folder / SCRIPT_FILE).read_text()
    assert "\n    run.last()\n    torch.ops.npudiff_faulty.dies.default(x=add, sizes=[3])\n\n\nOPERATORS" in text
    assert "add = torch.ops.aten.add.Tensor(x, 1)" in text
    assert (one.folder / REPRODUCE_TENSORS).exists()


@pytest.mark.slow
def test_a_call_that_hangs_is_the_last_one(kept, operator, isolation, monkeypatch):
    monkeypatch.setattr("npudiff.findings.reproduce.HANG_SECONDS", 0.5)
    one = kept(lambda inputs, target: operator.hangs(inputs.x), isolation=isolation)
    assert one.finding.verdict == "time-out"
    text = (one.folder / SCRIPT_FILE).read_text()
    assert "    run.last()\n    torch.ops.npudiff_faulty.hangs.default(x=x)\n\n\nOPERATORS" in text
    assert "OPERATORS, 'it did not come back')" in text


def test_what_was_judged_in_a_process_of_its_own_is_written_down_in_one(kept, operator, isolation):
    here = os.getpid()

    def function(inputs, target):
        assert os.getpid() != here
        return operator.refuses(inputs.x)

    one = kept(function, isolation=isolation)
    assert one.finding.verdict == "rejected call"
    assert (
        "    run.last()\n    torch.ops.npudiff_faulty.refuses.default(x=x)\n" in (one.folder / SCRIPT_FILE).read_text()
    )


def test_a_process_that_takes_longer_than_it_did_leaves_no_script(kept, operator, isolation, monkeypatch):
    monkeypatch.setattr("npudiff.findings.reproduce.SECONDS", 0.0)

    def slowly(inputs, target):
        time.sleep(0.2)
        return operator.refuses(inputs.x)

    one = kept(slowly, isolation=isolation)
    assert one.finding.verdict == "rejected call"
    assert one.why.startswith("no script: the process in which its calls were written down died, or took too long")


def test_where_processes_cannot_be_forked_there_is_no_script(kept, operator, isolation, monkeypatch):
    monkeypatch.setattr("npudiff.findings.reproduce.sys.platform", "win32")
    one = kept(lambda inputs, target: operator.dies(inputs.x), isolation=isolation)
    assert one.why.endswith("in a process of their own, and that is done on Linux only")


def test_a_process_that_python_kills_has_no_script(kept, isolation):
    def function(inputs, target):
        os.kill(os.getpid(), signal.SIGSEGV * int(inputs.x[0] > 0))

    one = kept(function, isolation=isolation)
    assert one.why == "no script: the process died, or hung, in the implementation's own Python, and not in an operator"


def test_what_poisons_is_called_before_what_is_poisoned(toy, tmp_path, isolation, operator):
    from npudiff.run.engine import run_cases
    from npudiff.show.finding import keep_findings

    held = {"poisoned": False}

    def function(inputs, target):
        y = operator.right(inputs.x)
        if inputs.x[0] == 7:
            held["poisoned"] = True
        return operator.refuses(y) if held["poisoned"] and inputs.x[0] != 7 else y

    outcome = run_cases(toy.job(poison_of(function)), [toy.Case((7,)), toy.Case((3,))], isolation)
    kept = keep_findings(outcome, tmp_path)
    assert [finding.verdict for finding, _ in kept] == ["poisons the device"]
    text = (kept[0][1] / SCRIPT_FILE).read_text()
    assert text.count("torch.ops.npudiff_faulty.right.default(") == 2
    assert "# run 2 of the implementation" in text
    assert "run.last()\n    torch.ops.npudiff_faulty.refuses.default(x=right_2)" in text
    assert not held["poisoned"]


def poison_of(function):
    """Errors that say that the device is not to be used any more are judged alone."""

    def called(inputs, target):
        try:
            return function(inputs, target)
        except RuntimeError as error:
            raise RuntimeError("error code is 507035: context is abort") from error

    return called


@pytest.mark.slow
def test_an_input_that_is_written_to_is_said_to_be(kept, alone):
    def function(inputs, target):
        return inputs.x.mul_(2)

    one = kept(function)
    assert "run.unchanged('x', 'x', x)" in (one.folder / SCRIPT_FILE).read_text()
    done = alone(one.folder, "--device", "cpu")
    assert (done.returncode, done.stdout) == (1, "x: WRONG: an input, which was written to\n")


def test_a_defect_in_writing_down_is_told_and_the_finding_is_kept(kept, monkeypatch):
    def broken(*arguments):
        raise KeyError("no such stride")

    monkeypatch.setattr("npudiff.findings.reproduce.recorder.place", broken)
    one = kept(lambda inputs, target: inputs.x + 1)
    assert one.why == "no script: npudiff could not write it, please report: KeyError: 'no such stride'"
    assert read_finding(one.folder).verdict == "wrong value"
    assert one.why.replace("'", "&#39;") in (one.folder / "finding.html").read_text()


def test_a_defect_in_the_script_is_told_and_the_finding_is_kept(kept, monkeypatch):
    def broken(*arguments):
        raise ValueError("bad\nline")

    monkeypatch.setattr("npudiff.findings.reproduce.script_of", broken)
    one = kept(lambda inputs, target: inputs.x + 1)
    assert one.why == "no script: npudiff could not write it, please report: ValueError: bad?line"
    assert read_finding(one.folder).verdict == "wrong value"


def test_a_defect_in_a_picture_is_told_and_the_finding_is_kept(kept, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("<no width>")

    monkeypatch.setattr("npudiff.show.finding.grid_of", broken)
    one = kept(lambda inputs, target: inputs.x + 1)
    page = (one.folder / "finding.html").read_text()
    assert (
        "<p>y, the smallest case: npudiff could not draw it, please report: ZeroDivisionError: &lt;no width&gt;</p>"
        in page
    )
    assert read_finding(one.folder).verdict == "wrong value"


def test_nothing_is_left_running(kept, operator, isolation):
    own = Path(f"/proc/self/task/{os.getpid()}/children")
    before = set(own.read_text().split())
    kept(lambda inputs, target: operator.dies(inputs.x), isolation=isolation)
    assert set(own.read_text().split()) <= before | {str(reaper().pid)}
