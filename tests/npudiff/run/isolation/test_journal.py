"""Journals: what is written before it is run, what a killed run left behind, and files that somebody else made."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import string
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npudiff.run.isolation import journal
from npudiff.run.isolation.journal import SUFFIX, Journal, LeftBehind, left_behind
from npudiff.show.console import Console

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
    os.close(book._file)  # killed before anything else was begun
    assert left_behind(tmp_path) == [LeftBehind(JOB, "{}")]


def test_the_case_in_flight_is_told_and_cases_that_hold_are_not(tmp_path):
    book = Journal(tmp_path)
    for number in range(3):
        book.end(book.begin(JOB, f'{{"n":{number}}}'), "holds")
    book.begin(JOB, '{"n":3}')
    os.close(book._file)  # as when its process is killed
    assert left_behind(tmp_path) == [LeftBehind(JOB, '{"n":3}')]
    assert left_behind(tmp_path) == []


def test_what_was_reported_is_not_told_again(tmp_path):
    book = Journal(tmp_path)
    book.end(book.begin(JOB, '{"n":0}'), "wrong value")
    book.settle()
    book.end(book.begin(JOB, '{"n":1}'), "wrong value")
    book.begin(JOB, '{"n":2}')
    assert book.begun() == [(JOB, f'{{"n":{number}}}') for number in range(3)]
    os.close(book._file)
    assert left_behind(tmp_path) == [LeftBehind(JOB, '{"n":1}', "wrong value"), LeftBehind(JOB, '{"n":2}')]


@pytest.mark.parametrize("named", [True, False])
def test_what_a_forked_process_has_written_can_be_read_and_taken_back(tmp_path, named):
    book = Journal(tmp_path if named else None)
    pid = os.fork()
    if not pid:
        book.begin(JOB, "{}")
        os._exit(0)
    os.waitpid(pid, 0)
    assert book.begun() == [(JOB, "{}")]
    assert left_behind(tmp_path) == []  # this process holds the lock
    book.forget()
    assert book.begun() == []
    assert book.close(keep=False) is None
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_locks_there_are_no_journals(tmp_path, monkeypatch):
    book = Journal(tmp_path)
    book.begin(JOB, "{}")
    os.close(book._file)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fcntl", None)
        assert left_behind(tmp_path) == []
    assert left_behind(tmp_path) == [LeftBehind(JOB, "{}")]


@pytest.mark.slow
def test_without_locks_a_run_that_isolates_nothing_works(tmp_path):
    script = """
import sys
sys.modules["fcntl"] = None
from npudiff.cli import main
sys.exit(main(["check", "swa_mask", "--impl", "eager", "--target", "sim", "--examples", "3", "--workers", "1"]))
"""
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


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
    os.close(book._file)
    assert left_behind(tmp_path) == [LeftBehind(JOB, '{"n":2000}')]


@pytest.mark.parametrize("cut", ["ftruncate", "lseek"])
def test_a_journal_is_whole_whenever_its_process_is_killed_while_it_is_shortened(tmp_path, monkeypatch, cut):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(journal, "MOST_BYTES", 20_000)
    book = Journal(tmp_path)
    for number in range(2000):
        book.end(book.begin(JOB, f'{{"n":{number}}}'), "wrong value" if number == 150 else "holds")
        if os.lseek(book._file, 0, os.SEEK_CUR) > 19_800:
            break
    seek, begun = os.lseek, []
    with monkeypatch.context() as patch:
        if cut == "ftruncate":
            patch.setattr(os, cut, killed)
        else:
            patch.setattr(os, cut, lambda file, at, how: killed() if how == os.SEEK_END else seek(file, at, how))
        with contextlib.suppress(KeyboardInterrupt):
            for later in range(2000, 2010):
                begun.append(f'{{"n":{later}}}')
                book.end(book.begin(JOB, begun[-1]), "holds")
    assert len(begun) < 10
    os.close(book._file)
    assert left_behind(tmp_path)[-1] == LeftBehind(JOB, begun[-1])


LINES = st.one_of(
    st.text(alphabet=string.printable, max_size=60),
    st.dictionaries(
        st.sampled_from(("n", "job", "case", "verdict", "at", "x")),
        st.one_of(st.integers(), st.text(max_size=5), st.none(), st.floats(), st.lists(st.integers(), max_size=2)),
    ).map(json.dumps),
    st.just("[" * 5000),
)


@settings(
    max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
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
from npudiff.device.ascend.swa_mask import window_mask

@npudiff.implementation("swa_mask", name="mine")
def mine(inputs, target):
    if len(inputs.kv_lengths) > 2:
        child = subprocess.Popen(["sleep", "1000"])
        Path("pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(1000)
    return window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
"""


def started_in(folder):
    """Processes that a run in a folder has started, and that live: they have its environment."""
    mark = f"NPUDIFF_TEST={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


@pytest.fixture(params=[("--timeout", "60s"), ("--timeout", "1s")], ids=["in a batch worker", "in a worker"])
def killed(request, tmp_path):
    """A folder in which a run was killed while a case hung, with a process that the implementation had started.

    With a short time-out that was when the job was run again, each case in a worker.
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(KERNEL))
    # Without its guardian, at whose death a command ends as if it were interrupted, and tells what it has.
    program = "import sys; from npudiff.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "check", "swa_mask", "--impl", "mine.py", "--target", "sim"]
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "NPUDIFF_TEST": str(tmp_path)}
    with (tmp_path / "out.txt").open("wb") as output:
        run = subprocess.Popen(
            [*command, "--isolate", "--workers", "1", *request.param],
            cwd=tmp_path, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
        _wait_for(lambda: _written(tmp_path), 60)
        first = _written(tmp_path)
        if request.param[1] == "1s":
            _wait_for(lambda: _written(tmp_path) not in ("", first), 20)
        seen = _written(tmp_path), len(started_in(tmp_path))
        run.kill()
        run.wait()
    assert (seen[0] != first) == (request.param[1] == "1s")
    assert seen[1] >= 4  # the run, its reaper, who judges, and what the implementation has started
    return tmp_path


def _written(folder):
    return (folder / "pids").read_text() if (folder / "pids").exists() else ""


def _is_free(folder):
    """Whether nobody holds a journal: a process that ends loses its name some time before its locks."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
    return True


def _wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_the_next_one_says_what_it_was_doing(killed, cli):
    _wait_for(lambda: not started_in(killed), 10)
    assert not started_in(killed)
    _wait_for(lambda: _is_free(killed / ".npudiff" / "journal"), 10)
    result = cli("check", "swa_mask", "--impl", "eager", "--target", "sim", "--examples", "3")
    assert "a run before this one was killed: a case of swa_mask.mine.equivalence was being run" in result.out
    assert 'npudiff check swa_mask --impl mine --case \'{"kv_lengths":[' in result.out
    again = cli("check", "swa_mask", "--impl", "eager", "--target", "sim", "--examples", "3")
    assert "killed" not in again.out


def test_a_journal_that_cannot_be_made_is_kept_in_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    book = Journal(tmp_path / "file")
    book.end(book.begin(JOB, "{}"), "wrong value")
    assert book.begun() == [(JOB, "{}")]
    assert book.close(keep=True) is None


def test_a_full_disk_takes_nothing_from_who_reads_in_memory(tmp_path, monkeypatch):
    book = Journal(tmp_path)
    write, room = os.write, [40]

    def small(file, data):
        if file != book._file:
            return write(file, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part, room[0] = data[: room[0]], max(0, room[0] - len(data))
        return write(file, part)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", small)
        for number in range(3):
            book.end(book.begin(JOB, f'{{"n":{number}}}'), "wrong value")
    assert [case for _, case in book.begun()] == ['{"n":0}', '{"n":1}', '{"n":2}']
    book.begin(JOB, '{"n":3}')  # there is room again: the torn entry takes no other along
    os.close(book._file)
    assert left_behind(tmp_path) == [LeftBehind(JOB, '{"n":3}')]


def test_a_linked_folder_is_neither_read_nor_written(tmp_path):
    (tmp_path / "outside").mkdir()
    theirs = tmp_path / "outside" / f"1-1{SUFFIX}"
    theirs.write_text(json.dumps({"n": 1, "job": JOB, "case": "{}"}))
    (tmp_path / "journal").symlink_to(tmp_path / "outside")
    assert left_behind(tmp_path / "journal") == []
    book = Journal(tmp_path / "journal")
    book.begin(JOB, "{}")
    assert book.close(keep=True) is None
    assert [path.name for path in (tmp_path / "outside").iterdir()] == [theirs.name]


def test_as_many_journals_as_a_run_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MOST_JOURNALS", 5)
    for number in range(12):
        (tmp_path / f"{number}{SUFFIX}").write_text(json.dumps({"n": 1, "job": JOB, "case": "{}"}))
    assert [len(left_behind(tmp_path)) for _ in range(4)] == [5, 5, 2, 0]


def test_what_is_told_of_a_journal_is_limited(tmp_path):
    entries = []
    for number in range(1000):
        entries += [{"n": number, "job": JOB, "case": str(number)}, {"n": number, "verdict": "time-out"}]
    (tmp_path / f"1{SUFFIX}").write_text("\n".join(map(json.dumps, entries)))
    assert [one.case for one in left_behind(tmp_path)] == [str(number) for number in range(1000 - journal.KEPT, 1000)]


LONG = ("[" * 2**22, "[]," * 2**21, '{"a":' * 2**20, "9" * 2**22, '"' * 2**22, "\x00" * 2**22)


@pytest.mark.parametrize("line", LONG, ids=range(len(LONG)))
def test_a_long_line_takes_little_memory_and_time(tmp_path, line):
    good = json.dumps({"n": 1, "job": JOB, "case": "{}"})
    (tmp_path / f"1{SUFFIX}").write_text(f"[{line}\n{good}\n")
    began = time.monotonic()
    tracemalloc.start()
    try:
        assert left_behind(tmp_path) == [LeftBehind(JOB, "{}")]
        assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 20


def test_the_line_to_paste_is_one_command_whatever_a_journal_says(capsys):
    job = "a; rm -rf ~.$(x)`y`.equivalence"
    console = Console(verbose=False)
    console.left_behind([LeftBehind(job, "'; rm -rf ~ #"), LeftBehind(job, "x" * 10**6)])
    said, command, other = capsys.readouterr().out.splitlines()
    words = ["npudiff", "check", "a; rm -rf ~", "--impl", "$(x)`y`", "--case", "'; rm -rf ~ #"]
    assert shlex.split(command) == words
    assert len(said + other) < 1000


def test_hostile_words_of_a_journal_stay_on_their_line(capsys):
    odd = "x\n\x1b[2J\x07" * 3
    Console(verbose=False).left_behind([LeftBehind(odd, odd, odd), LeftBehind(f"a.{odd}.equivalence", odd)] * 50)
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07"} & set(out)
    assert out.count("\n") == 31
    assert out.endswith("  and 80 other cases\n")
