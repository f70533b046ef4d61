"""A command that ends before its last verdict is never green, however it ends, and leaves what it knew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import warm
from npudiff.errors import ExitCode
from npudiff.files.writing import RUNS

RIGHT = """
import os, signal, threading, time
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

{top}

@npudiff.implementation("swa_mask", name="mine")
def mine(inputs, target):
    {call}
    return window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
"""


@pytest.fixture
def program(tmp_path):
    """Run a command as a program, in a folder with a kernel that does something besides."""

    def run(*arguments, top="", call="pass", timeout=120):
        (tmp_path / "mine.py").write_text(RIGHT.format(top=textwrap.dedent(top), call=call))
        return warm.run(*arguments, cwd=tmp_path, timeout=timeout)

    return run


def check(*more):
    return ("check", "swa_mask", "--impl", "mine.py", "--target", "sim", "--workers", "1", "--examples", "20", *more)


ENDS = {
    "os._exit(0)": "os._exit(0)",
    "exit of C": "import ctypes; ctypes.CDLL(None).exit(0)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.few(3)
@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("place", ["in a call", "when it is imported", "in a thread"])
def test_no_way_to_leave_is_green(program, how, place):
    if place == "in a call":
        result = program(*check("--no-isolate"), call=ENDS[how])
    elif place == "when it is imported":
        result = program(*check(), top=ENDS[how])
    else:
        later = (
            f"def later():\n    time.sleep(0.3)\n    {ENDS[how]}\nthreading.Thread(target=later, daemon=True).start()"
        )
        result = program(*check(), top=later, call="time.sleep(0.1)")
    usage = (place, how) == ("when it is imported", "os._exit(0)")
    assert result.returncode == (ExitCode.USAGE if usage else ExitCode.INTERNAL), result
    assert ("fails to import: SystemExit: os._exit(0)" if usage else "ended before its last verdict") in result.stderr


@pytest.mark.slow
def test_a_signal_without_a_name_is_told_by_its_number(program):
    result = program(*check("--no-isolate"), call="os.kill(os.getpid(), 40)")
    assert result.returncode == ExitCode.INTERNAL, result
    assert "with signal 40 in swa_mask.mine.equivalence" in result.stderr


@pytest.mark.slow
def test_an_exit_code_counts_only_if_the_process_ends_with_it(tmp_path):
    last = "import atexit\natexit.register(os.kill, os.getpid(), signal.SIGKILL)"
    (tmp_path / "mine.py").write_text(RIGHT.format(top=last, call="pass"))
    command = [sys.executable, "-m", "npudiff", *check("--no-isolate")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == ExitCode.INTERNAL, result
    assert "with signal SIGKILL" in result.stderr


def test_what_it_was_doing_is_told_and_a_record_is_left(program, tmp_path):
    result = program(*check("--no-isolate", "--junit", "junit.xml"), call="os._exit(0)")
    assert "with exit code 0 in swa_mask.mine.equivalence: nothing that it did not tell was judged" in result.stderr
    (record,) = (tmp_path / ".npudiff" / RUNS).iterdir()
    content = json.loads(record.read_text())
    assert (content["ended"], content["problem"]) == ("interrupted", "NotEnded: the run goes on, or was killed")
    assert 'type="ended-early"' in (tmp_path / "junit.xml").read_text()


@pytest.mark.slow
def test_a_gate_that_is_killed_leaves_no_green_file(program, tmp_path):
    green = program("gate", *check()[1:], "--budget", "60s", "--rotating", "off")
    assert green.returncode == ExitCode.CLEAN, green
    names = ("junit.xml", "npudiff.sarif", "summary.md")
    assert not any("killed" in (tmp_path / ".npudiff" / name).read_text() for name in names)
    killed = program("gate", *check("--no-isolate")[1:], "--budget", "60s", call="os._exit(0)")
    assert killed.returncode == ExitCode.INTERNAL
    assert all("killed" in (tmp_path / ".npudiff" / name).read_text() for name in names)


@pytest.mark.slow
def test_exit_codes_and_signals_pass_through(program, tmp_path):
    assert program(*check()).returncode == ExitCode.CLEAN
    assert program(*check(), call="return None").returncode == ExitCode.FINDINGS
    assert program("check", "nothing").returncode == ExitCode.USAGE
    helped, refused = program("check", "--help"), program("check", "--nonsense")
    assert (helped.returncode, helped.stderr) == (ExitCode.CLEAN, "")
    assert refused.returncode == ExitCode.USAGE == 4
    assert "before its last verdict" not in refused.stderr
    (tmp_path / "mine.py").write_text(RIGHT.format(top="", call="open('called', 'w').close(); time.sleep(0.5)"))
    command = [sys.executable, "-m", "npudiff", *check("--examples", "1000")]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "called").exists() and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == ExitCode.INTERRUPTED
        assert process.stderr.read().endswith("npudiff: interrupted\n")


@pytest.mark.slow
def test_a_command_whose_guardian_is_killed_ends(tmp_path):
    (tmp_path / "mine.py").write_text(
        RIGHT.format(top="open('pid', 'w').write(str(os.getpid()))", call="time.sleep(0.5)")
    )
    command = [sys.executable, "-m", "npudiff", *check("--examples", "1000")]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as guardian:
        until = time.monotonic() + 60
        while not (tmp_path / "pid").is_file() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)
        child = int((tmp_path / "pid").read_text())
        guardian.kill()
    while time.monotonic() < until:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the command goes on")
