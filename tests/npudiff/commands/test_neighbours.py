"""Hostile surroundings of every command: planted links, absurd names, full disks, a terminal of few letters."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

import warm
from npudiff.commands import score as score_module
from npudiff.errors import ExitCode
from npudiff.files import writing
from npudiff.files.writing import FOLDERS
from npudiff.score import trials as trials_module
from npudiff.text import counted

FOUND = ("swa_mask", "--impl", "mask_left_context_512", "--target", "sim", "--examples", "30", "--workers", "1")
CLEAN = ("swa_mask", "--impl", "eager", "--target", "sim", "--examples", "3", "--workers", "1")
SEEDED = ("--seed", "1")
COMMANDS = {
    "check": ("check", *FOUND, *SEEDED, "--junit", ".npudiff/check.xml"),
    "gate": ("gate", *FOUND, "--budget", "60s", "--rotating", "off"),
    "score": ("score", "swa_mask", "--target", "sim", "--mutant", "mask_left_context_512", "--method", "npudiff",
              "--seeds", "1", "--examples", "30", "--workers", "1", "--record", ".npudiff/recorded.json"),
    "suite": ("score", "swa_mask", "--target", "sim", "--mutant", "mask_left_context_512", "--workers", "1",
              "--suite", f"{sys.executable} suite.py"),
    "report": ("report",),
}  # fmt: skip
SUITE = """
from npudiff.run.discovery import load_component, load_target, select_implementations
component = load_component("swa_mask")
(item,) = select_implementations([component], ["eager"])
inputs = component.inputs(component.case_type(kv_lengths=(2,), window=1))
with load_target("sim", None).activate():
    item(inputs, load_target("sim", None))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "suite.py").write_text(SUITE)
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    return tmp_path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every file that the commands leave, relative to their folder."""
    root = tmp_path_factory.mktemp("written")
    (root / "suite.py").write_text(SUITE)
    for command in COMMANDS.values():
        warm.run(*command, cwd=root)
    files = [path.relative_to(root) for path in (root / ".npudiff").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {
        "finding.json", "tensors.safetensors", "reproduce.py", "finding.html", "picture.json", "junit.xml", "check.xml",
        "npudiff.sarif", "summary.md", "known_issues.draft.toml", "score.json", "score.html", "recorded.json",
        "report.html", "without a mutant.txt",
    } <= names  # fmt: skip
    return files


def told(result):
    """Findings that a run told, in words."""
    return counted(len(re.findall(r"^(?:FINDING|  also) ", result.out, re.MULTILINE)), "finding")


def plant(folder, files, victim):
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(victim)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [pytest.param(one, marks=() if one == "check" else pytest.mark.slow) for one in COMMANDS]
)
def test_no_file_is_written_through_a_planted_link(cli, folder, written, command):
    if command == "report":
        cli(*COMMANDS["check"])
    victim = folder / "victim"
    victim.write_text("precious")
    (folder / ".npudiff" / "report.html").unlink(missing_ok=True)
    plant(folder, [path for path in written if not (folder / path).exists()], victim)
    result = cli(*COMMANDS[command])
    assert result.code in (ExitCode.CLEAN, ExitCode.FINDINGS), result
    assert victim.read_text() == "precious"
    replaced = {path.name for path in written if not (folder / path).is_symlink()}
    assert len(replaced) >= 1


@pytest.mark.few(6)
@pytest.mark.parametrize("command", ["check", "gate", "score", "suite"])
@pytest.mark.parametrize("place", ["", *FOLDERS])
def test_no_command_writes_into_a_linked_folder(cli, folder, command, place):
    (folder / "elsewhere").mkdir()
    (folder / ".npudiff" / place).parent.mkdir(exist_ok=True)
    (folder / ".npudiff" / place).symlink_to(folder / "elsewhere")
    result = cli(*COMMANDS[command])
    assert result.code == ExitCode.USAGE
    assert result.err.startswith("npudiff: .npudiff")
    assert "a link, which is not followed" in result.err
    assert result.err.count("\n") == 1
    assert not list((folder / "elsewhere").iterdir())


@pytest.mark.slow
def test_the_folder_of_a_finding_may_not_be_a_link_either(cli, folder):
    (folder / "elsewhere").mkdir()
    cli(*COMMANDS["check"])
    for path in {path.parent for path in folder.rglob("finding.json")}:
        shutil.rmtree(path)
        path.symlink_to(folder / "elsewhere")
    result = cli(*COMMANDS["check"])
    assert result.code == ExitCode.FINDINGS
    assert "FINDING swa_mask.mask_left_context_512" in result.out
    assert (
        result.err == f"npudiff: could not be written: {told(result)}: a folder of its path is a link, or no folder\n"
    )
    assert not list((folder / "elsewhere").iterdir())


@pytest.mark.slow
def test_memory_of_hypothesis_behind_a_link_is_left_alone(cli, folder):
    (folder / "elsewhere" / "key").mkdir(parents=True)
    (folder / ".npudiff" / "examples").mkdir(parents=True)
    for name in ("equivalence", "wide_window_equals_none"):
        (folder / ".npudiff" / "examples" / f"swa_mask.mask_left_context_512.{name}").symlink_to(folder / "elsewhere")
    assert cli("check", *FOUND).code == ExitCode.FINDINGS
    assert [path.name for path in (folder / "elsewhere").iterdir()] == ["key"]


ABSURD = ("../../../../tmp/npudiff-escaped", "x" * 5000, "\x1b]0;owned\x07\x1b[2J", "a/b", "-rf", "", "x\ny")


@pytest.mark.parametrize("name", ABSURD, ids=range(len(ABSURD)))
@pytest.mark.parametrize("command", [("check", "swa_mask"), ("gate", "swa_mask"), ("list", "swa_mask")])
def test_an_absurd_name_is_one_usage_line(cli, kernel, folder, command, name):
    path = kernel("wrong")
    path.write_text(path.read_text().replace('name="mine"', f"name={name!r}"))
    before = set(folder.rglob("*"))
    result = cli(*command, "--impl", path)
    assert result.code == ExitCode.USAGE
    assert result.err.count("\n") == 1
    assert result.err[:-1].isprintable()
    assert len(result.err) < 500
    assert "cannot be the name of an implementation" in result.err
    assert {one for one in set(folder.rglob("*")) - before if "__pycache__" not in str(one)} == set()


def test_words_of_a_kernel_cannot_steer_the_terminal(cli, kernel):
    hostile = "My \\x1b]0;owned\\x07kernel\\x1b[2J\\x9b31m [red]x[/]:smile:"
    path = kernel("wrong")
    path.write_text(path.read_text().replace("My kernel.", hostile).replace("import npudiff\n", "import npudiff\n"))
    path.write_text(path.read_text() + f'\nraise_it = "{hostile}"\n')
    result = cli("list", "swa_mask", "--impl", path)
    assert result.code == ExitCode.CLEAN
    assert "My ?]0;owned?kernel?[2J?31m [red]x[/]:smile:" in result.out
    assert not {"\x1b", "\x07", "\x9b"} & set(result.out)
    path.write_text(f'raise ValueError("{hostile}")')
    result = cli("list", "swa_mask", "--impl", path)
    assert result.code == ExitCode.USAGE
    assert "fails to import: ValueError: My ?]0;owned" in result.err
    assert not {"\x1b", "\x07", "\x9b"} & set(result.err)


@pytest.fixture
def full_disk(monkeypatch):
    """No file can be made, by any process of the run."""
    opened = os.open

    def full(path, flags, *more, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return opened(path, flags, *more, **options)

    monkeypatch.setattr(writing.os, "open", full)


NO_SPACE = ": No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("isolated", [(), ("--isolate",)])
def test_findings_that_cannot_be_written_are_told(cli, folder, full_disk, workers, isolated):
    result = cli(*COMMANDS["check"], "--workers", workers, *isolated)
    assert result.code == ExitCode.FINDINGS
    assert "FINDING swa_mask.mask_left_context_512 · equivalence · wrong value" in result.out
    assert "case       kv2 · window 1" in result.out
    assert ": No space left on device\n" in result.out
    assert '  as JSON    {"kv_lengths":[2],"window":1,' in result.out
    assert "replay " not in result.out
    assert result.err == (
        f"npudiff: could not be written: the record of the run, .npudiff/check.xml, {told(result)}{NO_SPACE}"
    )
    assert not [path for path in (folder / ".npudiff").rglob("*") if path.is_file() and "examples" not in path.parts]


@pytest.mark.slow
def test_a_gate_that_cannot_write_is_closed_by_what_it_found(cli, folder, full_disk):
    result = cli(*COMMANDS["gate"])
    assert result.code == ExitCode.FINDINGS
    assert "FINDING swa_mask.mask_left_context_512" in result.out
    assert f"closed: {told(result)}" in result.out
    assert result.err.splitlines()[-1] + "\n" == (
        "npudiff: could not be written: the record of the run, junit.xml, npudiff.sarif, summary.md, "
        f"known_issues.draft.toml, {told(result)}{NO_SPACE}"
    )
    assert result.err.count("No space") == 1


def test_a_clean_run_without_the_file_that_was_asked_for_is_not_clean(cli, full_disk):
    assert cli("check", *CLEAN, "--junit", "x.xml").code == ExitCode.USAGE
    assert cli("gate", *CLEAN, "--budget", "30s", "--rotating", "off").code == ExitCode.USAGE
    result = cli("check", *CLEAN)
    assert result.code == ExitCode.CLEAN
    assert result.err == "npudiff: could not be written: the record of the run" + NO_SPACE


class _Small(io.BufferedWriter):
    """A file on a disk that has room for all but a page."""

    def write(self, data):
        if b"<html" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.slow
def test_a_finding_without_room_for_tensors_is_kept_without(cli, folder, monkeypatch):
    with monkeypatch.context() as patch:
        opened = os.fdopen
        patch.setattr(writing.os, "fdopen", lambda file, mode, **options: (
            _Small(io.FileIO(file, mode)) if mode == "wb" else opened(file, mode, **options)
        ))  # fmt: skip
        result = cli(*COMMANDS["check"])
    assert result.code == ExitCode.FINDINGS
    assert f"tensors and pages of {told(result)}: No space" in result.err
    for found in (folder / ".npudiff" / "findings").iterdir():
        assert [path.name for path in found.iterdir()] == ["finding.json"]
        assert "no script: it could not be written" in (found / "finding.json").read_text()
        assert cli("replay", found).out.startswith("FAILED")


@pytest.mark.parametrize("command", ["score", "suite"])
def test_a_score_that_cannot_be_written_is_told(cli, full_disk, command):
    result = cli(*COMMANDS[command])
    if command == "suite":  # what the suite says has no place
        assert result.code != ExitCode.CLEAN
        assert "No space left on device" in result.err
        return
    assert "1 mutants" in result.out
    assert result.code == ExitCode.USAGE
    assert result.err == "npudiff: could not be written: score.json, score.html, .npudiff/recorded.json" + NO_SPACE


@pytest.mark.slow
def test_a_report_that_cannot_be_written_is_one_line(cli, folder, monkeypatch):
    cli(*COMMANDS["check"])

    def refused(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(writing.os, "replace", refused)
    result = cli("report")
    assert (result.code, result.err) == (ExitCode.USAGE, "npudiff: .npudiff/report.html: Read-only file system\n")


@pytest.mark.slow
def test_pytest_tells_findings_that_cannot_be_written(folder, full_disk, monkeypatch):
    script = """
import errno, os, sys
opened = os.open
def full(path, flags, *more, **options):
    if flags & os.O_CREAT and "dir_fd" in options:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    return opened(path, flags, *more, **options)
os.open = full
import pytest
sys.exit(pytest.main(["--pyargs", "npudiff.properties", "-p", "no:cacheprovider", "-q", "-k", "swa_mask",
    "--target", "sim", "--impl", "mask_left_context_512", "--examples", "30"]))
"""
    monkeypatch.undo()
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "swa_mask.mask_left_context_512: equivalence: wrong value" in result.stdout
    assert "not kept" in result.stdout
    assert "INTERNALERROR" not in result.stdout
    assert "npudiff: could not be written: the record of the run: No space left on device" in result.stderr


@pytest.mark.slow
def test_pytest_refuses_a_linked_output_folder(folder):
    (folder / "elsewhere").mkdir()
    (folder / ".npudiff").symlink_to(folder / "elsewhere")
    command = ["--pyargs", "npudiff.properties", "-p", "no:cacheprovider", "-q", "-k", "swa_mask"]
    result = warm.run_pytest(*command, "--target", "sim", "--impl", "eager", cwd=folder)
    assert result.returncode == ExitCode.USAGE
    assert "a link, which is not followed" in result.stdout + result.stderr
    assert not list((folder / "elsewhere").iterdir())


def program(folder, *arguments, **more):
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **more.pop("env", {})}
    options = {"capture_output": True, **more}
    return subprocess.run(
        [sys.executable, "-m", "npudiff", *arguments], cwd=folder, env=environment, check=False, **options
    )


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("arguments", [COMMANDS["check"], COMMANDS["gate"], COMMANDS["score"], ("list",)])
def test_a_terminal_of_few_letters_gets_question_marks(folder, arguments):
    result = program(folder, *arguments, env={"PYTHONIOENCODING": "ascii"})
    assert result.stdout.isascii()
    assert b"?" in result.stdout or arguments[0] == "list"
    assert b"Traceback" not in result.stderr
    assert result.returncode == (0 if arguments[0] in ("score", "list") else 1), result.stderr


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (COMMANDS["check"], ExitCode.FINDINGS),
        (COMMANDS["gate"], ExitCode.FINDINGS),
        (("check", *CLEAN), ExitCode.USAGE),
        (("list",), ExitCode.USAGE),
        (("report", "there"), ExitCode.USAGE),
    ],
)
def test_a_full_disk_under_standard_output_takes_nothing_away(folder, arguments, code):
    if arguments[0] == "report":
        program(folder, "check", *CLEAN, "--output", "there")
    with Path("/dev/full").open("wb") as full:
        result = program(folder, *arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == code, result.stderr
    assert b"Traceback" not in result.stderr
    assert b"npudiff: standard output: No space left on device" in result.stderr
    if code is ExitCode.FINDINGS:
        assert list((folder / ".npudiff" / "findings").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_nobody_has_to_listen_to_errors(folder):
    with Path("/dev/full").open("wb") as full:
        result = program(folder, "check", *CLEAN, "--junit", "suite.py/x.xml", capture_output=False, stderr=full,
                         stdout=subprocess.PIPE)  # fmt: skip
    assert result.returncode == ExitCode.USAGE
    assert b"0 findings" in result.stdout


@pytest.mark.slow
def test_a_score_that_is_interrupted_keeps_and_tells_what_it_has(cli, folder, monkeypatch):
    real = trials_module._trial
    seen = []

    def interrupted(task, outcome):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(task)
        return real(task, outcome)

    monkeypatch.setattr(trials_module, "_trial", interrupted)
    result = cli("score", "swa_mask", "--target", "sim", "--mutant", "mask_left_context_512", "--method", "npudiff",
                 "--seeds", "5", "--examples", "30", "--workers", "1", "--record", "recorded.json")  # fmt: skip
    assert result.code == ExitCode.INTERRUPTED
    assert "interrupted" in result.err
    assert "written: .npudiff/score.json" in result.out
    kept = json.loads((folder / ".npudiff" / "score.json").read_text())
    assert kept["ended"] == "interrupted"
    assert [trial["seed"] for trial in kept["trials"]] == [1, 2]
    assert all(trial["found"] for trial in kept["trials"])
    assert (folder / ".npudiff" / "score.html").exists()
    assert not (folder / "recorded.json").exists()  # a part is no measure for --expect


@pytest.mark.slow
def test_a_score_is_saved_while_it_runs(cli, folder, monkeypatch):
    monkeypatch.setattr(score_module, "SAVED_EVERY", 0.0)
    saved, real = [], score_module.write_file

    def watch(path, content, **options):
        real(path, content, **options)
        if path.name == "score.json":
            saved.append(len(json.loads(path.read_text())["trials"]))

    monkeypatch.setattr(score_module, "write_file", watch)
    arguments = [*COMMANDS["score"]]
    arguments[arguments.index("--seeds") + 1] = "3"
    assert cli(*arguments).code == ExitCode.CLEAN
    assert saved == [1, 2, 3, 3]


@pytest.mark.slow
def test_a_killed_score_leaves_what_it_had(folder):
    program = "import sys, npudiff.cli, npudiff.commands.score as score\nscore.SAVED_EVERY = 0.0\nnpudiff.cli.main()"
    command = [sys.executable, "-c", program, "score", "swa_mask", "--target", "sim",
               "--method", "npudiff", "--seeds", "1000", "--examples", "20", "--workers", "1"]  # fmt: skip
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    with (folder / "out").open("wb") as out:
        run = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)
        file = folder / ".npudiff" / "score.json"
        until = time.monotonic() + 120
        while not file.exists() and time.monotonic() < until and run.poll() is None:
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert json.loads(file.read_text())["trials"], (folder / "out").read_text()


def test_a_hostile_list_of_known_issues_is_one_line(cli, folder):
    entry = (
        '[[issue]]\ncomponent = "swa_mask"\nimplementation = "mask_left_context_512"\n'
        f'link = "https://example.org/issues/7"\nexpires = {datetime.now(timezone.utc).date() + timedelta(days=30)}\n'
    )
    for text in (
        "x" * 900_000 + " = 1",
        "a." * 400_000 + "a = 1",
        entry + f'where = ["window={"9" * 5000}"]',
        entry + f'where = ["window=0..{"9" * 5000}"]',
        entry + f'case = "{"[" * 100_000}"',
        entry.replace("https://example.org/issues/7", "https://[::1"),
        entry + f'cann = "==8.5rc{"1" * 8000}"',
        entry + 'reason = "\\u001b]0;owned\\u0007"\nx = "\\u001b[2J"',
    ):
        (folder / "known_issues.toml").write_text(text)
        began = time.monotonic()
        result = cli("gate", *CLEAN)
        assert result.code == ExitCode.USAGE
        assert result.err.count("\n") == 1
        assert result.err[:-1].isprintable()
        assert len(result.err) < 5000
        assert time.monotonic() - began < 10
