"""Finding folders and journals that somebody damaged: 10,000 of them, and nothing crashes, is executed or is followed.

An audit hook sees what Python is about to do: files that are opened, processes, sockets, what is unpickled or executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from npudiff.cli import main
from npudiff.errors import UsageError
from npudiff.findings.finding import FINDING_FILE, TENSOR_FILE, read_finding
from npudiff.findings.replay import ReplayVerdict, replay
from npudiff.findings.shared import read_shared
from npudiff.run.discovery import load_component
from npudiff.run.isolation.journal import left_behind
from npudiff.run.plan import Request, make_plan

MASK_CASE = {"kv_lengths": [2], "window": 1, "spare": 0, "dtype": "int32", "column": False}
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "pickle.", "ctypes.")
WATCHED: dict[str, Path] = {}
SEEN: list[str] = []


def _audit(event, arguments):
    """While ``WATCHED`` names a folder, note everything that reading a hostile folder there must not do."""
    if "folder" not in WATCHED:
        return
    if event.startswith(FORBIDDEN):
        SEEN.append(f"{event} {arguments}")
    if event == "exec" and not str(getattr(arguments[0], "co_filename", "<")).startswith(("<", str(Path(sys.prefix)))):
        name = Path(arguments[0].co_filename)
        if name.is_relative_to(WATCHED["tmp"]):
            SEEN.append(f"executed {name}")
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = Path(os.fsdecode(arguments[0])).absolute()
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        inside = path.is_relative_to(WATCHED["folder"])
        if path.is_relative_to(WATCHED["tmp"]) and (writes or not inside):
            SEEN.append(f"opened {path}")
        if not path.is_relative_to(WATCHED["tmp"]) and path.name in ("passwd", "evil", "secret"):
            SEEN.append(f"opened {path}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def watched(folder, tmp):
    WATCHED.update(folder=folder, tmp=tmp)
    try:
        yield
    finally:
        WATCHED.clear()
    assert not SEEN, SEEN
    SEEN.clear()


NASTY = (
    None, True, -1, 0, 2**31, 2**63, 10**400, -(10**20), 1e308, float("nan"), float("inf"), "", "../..", "/etc/passwd",
    "evil.py", "\x00", "\x1b]0;x\x07", "\ud800", "a" * 5000, [], {}, [[]], {"a": {}}, [None] * 100, "__import__('os')",
    "<script>alert(1)</script>", "{0.__class__}", "%s%n", {"__class__": "os"}, ["wrong value"], "sliding_attention",
    "equivalence", "npu", "poisons the device", "fails after other cases only", {"kv_lengths": [1]}, "secret",
)  # fmt: skip
"""Values that stand somewhere else in what is read than they should."""


def damaged_value(value, rng):
    """Put something nasty somewhere into plain JSON."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(sorted(value))
        changed = dict(value)
        choice = rng.random()
        if choice < 0.15:
            del changed[name]
        elif choice < 0.25:
            changed[rng.choice([str(one)[:40] for one in NASTY])] = changed[name]
        else:
            changed[name] = damaged_value(changed[name], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], damaged_value(value[place], rng), *value[place + 1 :]]
    return rng.choice(NASTY)


def damaged_bytes(data, rng):
    """Change, cut, repeat or insert bytes."""
    place = rng.randrange(len(data) + 1)
    junk = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 12)))
    choice = rng.randrange(5)
    if choice == 0:
        return data[:place]
    if choice == 1:
        return data[:place] + junk + data[place:]
    if choice == 2:
        return data[:place] + junk + data[place + len(junk) :]
    if choice == 3:
        return data[:place] * rng.randrange(2, 4)
    return (
        data[:place] + rng.choice([b"[", b'{"a":', b'"', b"\\", b"\xff", b"9"]) * rng.randrange(1, 3000) + data[place:]
    )


def damage_file(path, rng, secret):
    """Damage a file, or put something else in its place."""
    choice = rng.random()
    content = None
    if choice < 0.45:
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(path.read_bytes())
    if content is not None:
        for _ in range(rng.randrange(1, 4)):
            content = damaged_value(content, rng)
        path.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
    elif choice < 0.85:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    else:
        path.unlink()
        kind = rng.randrange(6)
        if kind == 0:
            path.symlink_to(secret)
        elif kind == 1:
            path.symlink_to("/etc/passwd")
        elif kind == 2:
            path.symlink_to(path.name)  # a circle
        elif kind == 3:
            os.mkfifo(path)
        elif kind == 4:
            path.mkdir()


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A finding as npudiff writes it."""
    folder = tmp_path_factory.mktemp("valid")
    arguments = ["check", "swa_mask", "--impl", "mask_left_context_512", "--target", "sim"]
    main([*arguments, "--case", json.dumps(MASK_CASE), "--output", str(folder)])
    (found,) = (folder / "findings").iterdir()
    return found


@pytest.fixture
def place(tmp_path):
    """A folder for what is damaged, and beside it a file that nobody may read and one that nobody may run."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    return tmp_path


def strangers(place, valid, rng):
    """Make a damaged copy of a finding."""
    folder = place / "stranger" / "findings" / "one"
    shutil.rmtree(place / "stranger", ignore_errors=True)
    shutil.copytree(valid, folder)
    names = [FINDING_FILE, FINDING_FILE, FINDING_FILE, TENSOR_FILE, *sorted(path.name for path in folder.iterdir())]
    for name in rng.sample(names, rng.randrange(1, 3)):
        if (folder / name).is_file() and not (folder / name).is_symlink():
            damage_file(folder / name, rng, place / "secret")
    return folder


def assert_findings_are_harmless(place, valid, count, seed):
    rng = random.Random(seed)  # noqa: S311 - damage, not secrets
    jobs = make_plan(Request(components=("swa_mask",), implementations=("mask_left_context_512",), target="sim")).jobs
    load_component("swa_mask")
    seen = set()
    for _ in range(count):
        folder = strangers(place, valid, rng)
        with watched(folder, place):
            result = replay(folder, [], "sim", None)
            seen.add(result.verdict)
            assert result.line.splitlines() == [result.line]
            with contextlib.suppress(UsageError):
                read_finding(folder)
            shared = read_shared(place / "stranger", jobs)
        assert sum(map(len, shared.cases.values())) + len(shared.unread) <= 2
    assert sorted(path.name for path in place.iterdir()) == ["evil.py", "secret", "stranger"]
    assert seen >= {ReplayVerdict.FAILED, ReplayVerdict.ERROR}


@pytest.mark.slow
def test_damaged_findings_are_harmless(place, valid):
    assert_findings_are_harmless(place, valid, 150, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(7))
def test_a_thousand_damaged_findings_are_harmless(place, valid, seed):
    assert_findings_are_harmless(place, valid, 1000, seed=100 + seed)


GOOD_JOURNAL = "".join(
    json.dumps(line) + "\n"
    for line in (
        {"n": 1, "job": "swa_mask.mine.equivalence", "case": "{}", "at": 1.5},
        {"n": 1, "verdict": "wrong value"},
        {"n": 2, "job": "swa_mask.mine.equivalence", "case": "{}", "at": 2.5},
    )
).encode()


def assert_journals_are_harmless(place, count, seed):
    rng = random.Random(seed)  # noqa: S311 - damage, not secrets
    told = 0
    for _ in range(count):
        folder = place / "journal"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number in range(rng.randrange(1, 4)):
            path = folder / f"{number}-1{rng.choice(['.journal', '.journal', '.partial', '.json'])}"
            path.write_bytes(GOOD_JOURNAL)
            for _ in range(rng.randrange(3)):
                if path.is_file() and not path.is_symlink():
                    damage_file(path, rng, place / "secret")
        with watched(folder, place):
            left = left_behind(folder)
        told += len(left)
        assert all(isinstance(value, str) for one in left for value in (one.job, one.case, one.verdict))
        assert (place / "secret").read_text() == "secret"
    assert told > count / 4


def test_damaged_journals_are_harmless(place):
    assert_journals_are_harmless(place, 300, seed=1)


@pytest.mark.slow
def test_three_thousand_damaged_journals_are_harmless(place):
    assert_journals_are_harmless(place, 3000, seed=2)


def test_the_audit_sees_what_it_is_there_for(place):
    """A watch that sees nothing would let everything pass."""
    (place / "inside").mkdir()
    (place / "evil.py").write_text("1")
    for act in (
        (place / "secret").read_text,
        lambda: (place / "inside" / "new").write_text("x"),
        Path("/etc/passwd").read_text,
        lambda: runpy.run_path(str(place / "evil.py")),
    ):
        with pytest.raises(AssertionError), watched(place / "inside", place):
            act()
        SEEN.clear()
