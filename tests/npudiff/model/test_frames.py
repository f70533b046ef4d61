"""Frames of an exception: those of whoever raised, and nothing of what called or of what was called inside torch."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch

from npudiff.errors import ExitCode
from npudiff.model import frames
from npudiff.model.frames import MOST_FRAMES, MOST_LETTERS, frames_as_sent, frames_of, places_of


def raised(function):
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


def picked(rows):
    return rows[:, 7]


def test_they_begin_with_the_call_and_end_where_it_was_raised_in_torch_or_not():
    error = raised(lambda: picked(torch.zeros(2, 2)))
    assert [frame.partition(" in ")[2] for frame in frames_of(error)][-2:] == [
        "<lambda>: error = raised(lambda: picked(torch.zeros(2, 2)))",
        "picked: return rows[:, 7]",
    ]
    inside = frames_of(raised(lambda: torch.nn.functional.cross_entropy(torch.zeros(2, 2), torch.zeros(3).long())))
    assert "torch/nn" not in "".join(inside)
    assert inside[-1].endswith("torch.zeros(3).long())))")
    library = frames_of(raised(lambda: json.loads("{")))
    assert library[-1].endswith('raised(lambda: json.loads("{")))')


def test_places_are_files_as_seen_from_here(monkeypatch, tmp_path):
    code = compile("def call():\n    raise ValueError\n", str(tmp_path / "kernels.py"), "exec")
    names = {}
    exec(code, names)  # noqa: S102 - the text above
    error = raised(names["call"])
    assert places_of(error)[-1] == f"{tmp_path}/kernels.py:2"
    monkeypatch.chdir(tmp_path)
    assert places_of(error)[-1] == "kernels.py:2"
    assert frames_of(error)[-1] == "kernels.py:2 in call"  # the file is gone


def test_code_of_npudiff_that_calls_is_none_and_an_adapter_is():
    from npudiff.device.ascend.swa_mask import window_mask
    from npudiff.model.case import loads

    assert "device/ascend/swa_mask.py" in "".join(frames_of(raised(lambda: window_mask(None, 3, 1))))
    assert not any(place.startswith("npudiff/") for place in places_of(raised(lambda: loads(int, "{"))))


def test_an_operator_that_refuses_is_told_by_who_called_it():
    from npudiff.device.simulator import install

    install()
    (*_, last) = frames_of(raised(lambda: torch.ops.npu.npu_swiglu(torch.zeros(2, 3))))
    assert "npu_swiglu(torch.zeros(2, 3))" in last


def test_of_many_the_innermost_are_told():
    def deeper(left):
        return deeper(left - 1) if left else int("nothing")

    told = frames_of(raised(lambda: deeper(50)))
    assert len(told) == MOST_FRAMES
    assert told[-1].endswith('int("nothing")')


def test_code_without_a_file_and_a_folder_that_is_gone_cost_no_exception(monkeypatch, tmp_path):
    def call():
        raise ValueError

    call.__code__ = call.__code__.replace(co_filename="/a\0b.py")
    assert frames_of(raised(call)) == ()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    assert frames_of(raised(lambda: picked(torch.zeros(2, 2)))) == ()
    assert places_of(raised(lambda: picked(torch.zeros(2, 2)))) == ()


@pytest.mark.parametrize("sent", [None, 7, "text", {"a": 1}, [["x"], 3, None]])
def test_what_is_no_list_of_texts_is_none(sent):
    assert frames_as_sent(sent) == ()


def test_what_another_process_sends_cannot_steer_a_terminal_or_fill_it():
    (*others, long, steers) = frames_as_sent(["a"] * 10_000 + ["b" * 10**6, "x\x1b[2J\n"])
    assert len(others) == MOST_FRAMES - 2
    assert len(long) == MOST_LETTERS
    assert steers.isprintable()


KERNEL = textwrap.dedent("""
    import npudiff

    def helper(states):
        return states[:, 10**9]

    @npudiff.implementation("swiglu", name="mine", on_device=True)
    def mine(inputs, target):
        return {"output": helper(inputs.states)}
""")
AT = ['  at         my_kernel.py:9 in mine: return {"output": helper(inputs.states)}',
      "             my_kernel.py:5 in helper: return states[:, 10**9]"]  # fmt: skip
OPTIONS = ("swiglu", "--target", "sim", "--examples", "3")


@pytest.mark.few(1)
@pytest.mark.parametrize("how", [("--no-isolate",), ("--isolate",), ("--untrusted",), ("--workers", "2")])
def test_a_finding_has_them_however_it_is_judged(cli, kernel, tmp_path, how):
    result = cli("check", *OPTIONS, "--impl", kernel(KERNEL), *how)
    assert result.code == ExitCode.FINDINGS
    lines = result.out.splitlines()
    place = lines.index(AT[0])
    assert lines[place - 1].startswith("  raised     IndexError: ")
    assert lines[place + 1] == AT[1]
    (folder,) = (tmp_path / ".npudiff" / "findings").glob("*equivalence*")
    assert len(json.loads((folder / "finding.json").read_text())["detail"]["frames"]) == 2
    assert "my_kernel.py:5 in helper" in (folder / "finding.html").read_text()
    again = cli("replay", folder, "--impl", "my_kernel.py", *(() if how[0] in ("--workers", "--no-isolate") else how))
    assert again.out.splitlines()[1:] == lines[place - 1 : place + 2]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--isolate", "--untrusted"])
@pytest.mark.parametrize("ends", ["while True: time.sleep(0.01)", "os.kill(os.getpid(), 11)"])
def test_a_call_that_hangs_or_dies_has_them_too(cli, kernel, how, ends):
    path = kernel(KERNEL.replace("import npudiff", "import os, time, npudiff").replace("return states[:, 10**9]", ends))
    result = cli("check", *OPTIONS, "--impl", path, how, "--timeout", "0.5")
    lines = result.out.splitlines()
    assert lines[lines.index(AT[0]) + 1] == f"             my_kernel.py:5 in helper: {ends}"


STACK = """Current thread 0x00007f (most recent call first):
  File "/opt/kernels/inner.py", line 7 in inner
  File "{here}/device/simulator/activation.py", line 12 in npu_swiglu
  File "/opt/kernels/outer.py", line 3 in outer
  File "{here}/judge/judge.py", line 5 in check
  File "/opt/kernels/asks.py", line 1 in <module>
"""


def test_of_a_stack_what_was_there_before_the_call_is_left_out():
    here = Path(frames.__file__).resolve().parents[1]
    stack = STACK.format(here=here)
    assert frames.frames_of_stack(stack) == ("/opt/kernels/outer.py:3 in outer", "/opt/kernels/inner.py:7 in inner")
    inside = stack.replace("/opt/kernels/inner.py", f"{here}/model/operators.py")
    assert frames.frames_of_stack(inside) == ("/opt/kernels/outer.py:3 in outer",)
    assert frames.innermost_of_stack(stack) == "inner (inner.py:7)"


@pytest.mark.parametrize(
    "text", ["", "Fatal", 'File "\0", line 3 in x', 'File "a", line 99999999999999999999999 in x\n' * 500]
)
def test_a_stack_that_somebody_made_up_costs_no_exception(text):
    assert len(frames.frames_of_stack(text)) <= MOST_FRAMES


def test_a_file_that_does_not_import_names_its_line(cli, kernel):
    path = kernel("import npudiff\n\ndef half(x):\n    return x / 0\n\nhalf(1)\n")
    result = cli("check", *OPTIONS, "--impl", path)
    assert result.code == ExitCode.USAGE
    assert (
        result.err == f"npudiff: --impl {path}: fails to import: ZeroDivisionError: division by zero (my_kernel.py:4)\n"
    )
