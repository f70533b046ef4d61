"""Journals: what is written before it is run, what a killed run left behind, and files that somebody else made."""

from __future__ import annotations

import json
import os
import signal
import string
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npudiff.isolation import journal
from npudiff.isolation.journal import SUFFIX, Journal, LeftBehind, left_behind

JOB = "toy.mine.equivalence"


def test_a_run_that_ends_leaves_nothing(tmp_path):
    book = Journal(tmp_path)
    book.end(book.begin(JOB, "{}"), "holds")
    assert book.close(keep=False) is None
    assert not list(tmp_path.iterdir())


def test_what_is_to_be_reported_is_kept_until_it_is(tmp_path):
    book = Journal(tmp_path)
    book.end(book.begin(JOB, "{}"), "wrong value")
    path = book.close(keep=True)
    assert left_behind(tmp_path) == [LeftBehind(JOB, "{}", "wrong value")]
    assert not path.exists()


def test_a_case_that_held_last_is_told_as_in_flight(tmp_path):
    book = Journal(tmp_path)
    book.end(book.begin(JOB, "{}"), "holds")
    book._file.close()  # killed before anything else was begun
    assert left_behind(tmp_path) == [LeftBehind(JOB, "{}")]


def test_the_case_in_flight_is_told_and_cases_that_hold_are_not(tmp_path):
    book = Journal(tmp_path)
    for number in range(3):
        book.end(book.begin(JOB, f'{{"n":{number}}}'), "holds")
    book.begin(JOB, '{"n":3}')
    book._file.close()  # as when its process is killed
    assert left_behind(tmp_path) == [LeftBehind(JOB, '{"n":3}')]
    assert left_behind(tmp_path) == []


def test_the_journal_of_a_process_that_lives_is_left_alone(tmp_path):
    book = Journal(tmp_path)
    book.begin(JOB, "{}")
    assert left_behind(tmp_path) == []
    assert book.close(keep=False) is None


def test_a_long_journal_is_shortened_and_keeps_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MOST_BYTES", 20_000)
    book = Journal(tmp_path)
    for number in range(2000):
        book.end(book.begin(JOB, f'{{"n":{number}}}'), "holds")
    book.begin(JOB, '{"n":2000}')
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 25_000
    book._file.close()
    assert left_behind(tmp_path) == [LeftBehind(JOB, '{"n":2000}')]


LINES = st.one_of(
    st.text(alphabet=string.printable, max_size=60),
    st.dictionaries(
        st.sampled_from(("n", "job", "case", "verdict", "at", "x")),
        st.one_of(st.integers(), st.text(max_size=5), st.none(), st.floats(), st.lists(st.integers(), max_size=2)),
    ).map(json.dumps),
    st.just("[" * 5000),
)


@settings(max_examples=200)
@given(lines=st.lists(LINES, max_size=6), junk=st.binary(max_size=40), cut=st.integers(0, 80))
def test_damaged_journals_are_read_as_far_as_they_make_sense(tmp_path_factory, lines, junk, cut):
    folder = tmp_path_factory.mktemp("journal")
    good = [json.dumps({"n": 1, "job": JOB, "case": "{}"}), *lines]
    (folder / f"x{SUFFIX}").write_bytes("\n".join(good).encode("utf-8", "surrogateescape")[cut:] + junk)
    for one in left_behind(folder):
        assert isinstance(one.job, str)
        assert isinstance(one.case, str)
    assert not list(folder.iterdir())


def test_what_is_no_plain_file_is_not_opened(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"n": 1, "job": JOB, "case": "{}"}))
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / f"link{SUFFIX}").symlink_to(secret)
    os.mkfifo(folder / f"pipe{SUFFIX}")
    (folder / f"folder{SUFFIX}").mkdir()
    assert left_behind(folder) == []
    assert secret.exists()
    assert left_behind(tmp_path / "nowhere") == []


KERNEL = """
import os, subprocess, time
import npudiff
from pathlib import Path
from device.ascend.swa_mask import window_mask

@npudiff.implementation("swa_mask", name="mine")
def mine(inputs, target):
    if len(inputs.kv_lengths) > 2:
        child = subprocess.Popen(["sleep", "1000"])
        Path("pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(1000)
    return window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def killed(tmp_path):
    """A run that is killed while a case hangs, with a process that the implementation has started."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(KERNEL))
    command = [sys.executable, "-m", "npudiff", "check", "swa_mask", "--impl", "mine.py", "--target", "sim"]
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    with (tmp_path / "out.txt").open("wb") as output:
        run = subprocess.Popen(
            [*command, "--isolate", "--workers", "1"], cwd=tmp_path, env=environment, stdout=output, stderr=output
        )
        pids, until = tmp_path / "pids", time.monotonic() + 60
        while not (pids.exists() and pids.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()
    return [int(pid) for pid in pids.read_text().split()]


def test_a_killed_run_leaves_no_process_and_the_next_one_says_what_it_was_doing(killed, cli, tmp_path):
    until = time.monotonic() + 10
    while any(map(alive, killed)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, killed))
    result = cli("check", "swa_mask", "--impl", "eager", "--target", "sim", "--examples", "3")
    assert "a run before this one was killed: a case of swa_mask.mine.equivalence was being run" in result.out
    assert 'npudiff check swa_mask --impl mine --case \'{"kv_lengths":[' in result.out
    again = cli("check", "swa_mask", "--impl", "eager", "--target", "sim", "--examples", "3")
    assert "killed" not in again.out
