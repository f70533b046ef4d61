"""Files from elsewhere: plain ones only, and folders of examples that Hypothesis may read."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from npudiff.draw.presets import hypothesis_settings
from npudiff.errors import UsageError
from npudiff.files import reading
from npudiff.files.reading import read_plain_file, reason_against_examples


@pytest.mark.parametrize("kind", ["nothing", "link", "circle", "pipe", "folder", "device", "large"])
def test_what_is_no_plain_file_is_not_read(tmp_path, kind):
    path = tmp_path / "file"
    (tmp_path / "secret").write_text("secret")
    if kind == "link":
        path.symlink_to(tmp_path / "secret")
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        path.write_bytes(bytes(11))
    files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UsageError, match="file has 11 bytes, at most 10" if kind == "large" else "not a plain file"):
        read_plain_file(path, 10)
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_a_plain_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_plain_file(tmp_path / "file", 10) == b"0123456789"


@pytest.fixture
def examples(tmp_path):
    folder = tmp_path / "examples"
    (folder / "job" / "key").mkdir(parents=True)
    (folder / "job" / "key" / "one").write_bytes(b"bytes")
    return folder


def test_examples_as_hypothesis_writes_them_are_read(examples):
    assert reason_against_examples(examples) == ""
    assert reason_against_examples(examples / "job", depth=2) == ""
    assert reason_against_examples(examples / "nowhere") == ""


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MOST_OF_A_KEY", 3, "more than 3 entries"),
        ("MOST_EXAMPLES", 6, "more than 6 "),
        ("MOST_BYTES", 4, "not a plain file of at most 4 bytes"),
        ("MOST_IN_ALL", 20, "more than 20 bytes in all"),
    ],
)
def test_more_than_hypothesis_can_read_is_not_read(examples, monkeypatch, limit, value, said):
    for number in range(3):
        for key in ("key", "other"):
            (examples / "job" / key).mkdir(exist_ok=True)
            (examples / "job" / key / str(number)).write_bytes(b"bytes")
    assert reason_against_examples(examples) == ""
    monkeypatch.setattr(reading, limit, value)
    assert said in reason_against_examples(examples)


def test_a_folder_deeper_than_examples_is_not_read_however_deep(examples):
    here = Path.cwd()
    try:
        os.chdir(examples)
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        assert reason_against_examples(examples).endswith("a folder too deep")
    finally:
        while Path.cwd() != examples:  # no deeper than what a recursive removal can take away
            os.chdir("..")
            Path("d").rmdir()
        os.chdir(here)


def strange(folder, outside, rng):
    """Put something strange somewhere into a folder of examples; return whether Hypothesis must not see it."""
    levels = [folder, folder / "job", folder / "job" / "key"]
    level = rng.randrange(3)
    place = levels[level] / rng.choice(["x", "one", "job", "key", "\x1b[2J", "a" * 200])
    while os.path.lexists(place):
        place = place.with_name(place.name[:100] + "y")
    kind = rng.choice(["link", "dangling", "pipe", "large", "folder", "file", "files"])
    if kind == "link":
        place.symlink_to(rng.choice([outside, "/dev/zero", "/", folder]))
    elif kind == "dangling":
        place.symlink_to(outside / "new")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "large":
        with place.open("wb") as file:
            file.truncate(2**40)
    elif kind == "folder":
        place.mkdir()
    elif kind == "files":
        place.mkdir()
        for number in range(30):
            (place / str(number)).write_bytes(rng.randbytes(rng.randrange(200)))
    else:
        place.write_bytes(rng.randbytes(rng.randrange(300)))
    return kind in ("link", "dangling", "pipe", "large") or (kind in ("folder", "files") and level == 2)


def assert_strange_examples_are_harmless(tmp_path, count, seed):
    rng = random.Random(seed)  # noqa: S311 - damage, not secrets
    outside = tmp_path / "outside"
    outside.mkdir()
    refused = 0
    began = time.monotonic()
    for number in range(count):
        folder = tmp_path / str(number)
        (folder / "job" / "key").mkdir(parents=True)
        (folder / "job" / "key" / "one").write_bytes(b"bytes")
        bad = [strange(folder, outside, rng) for _ in range(rng.randrange(1, 3))]
        assert bool(reason_against_examples(folder)) == any(bad)
        refused += any(bad)
        inside = reason_against_examples(folder / "job", depth=2)
        for memory, shared in ((folder / "job", None), (None, folder / "job")):
            made = hypothesis_settings(1, deterministic=False, seeded=False, shrink=False, memory=memory, shared=shared)
            assert (made.database is None) == bool(inside)
            if made.database is not None:
                for key in (b"a", b"key"):
                    list(made.database.fetch(key))
                    made.database.save(key, b"value")
    assert not list(outside.iterdir())
    assert count / 4 < refused < count
    assert time.monotonic() - began < 60


def test_strange_examples_are_harmless(tmp_path):
    assert_strange_examples_are_harmless(tmp_path, 300, seed=1)


@pytest.mark.slow
def test_thousands_of_strange_examples_are_harmless(tmp_path):
    assert_strange_examples_are_harmless(tmp_path, 3_000, seed=2)


def test_memory_behind_a_link_is_neither_read_nor_written(examples, tmp_path):
    (tmp_path / "link").symlink_to(examples)
    for memory in (tmp_path / "link" / "job", tmp_path / "link"):
        options = {"deterministic": False, "seeded": False, "shrink": False}
        assert hypothesis_settings(1, memory=memory, **options).database is None
        assert hypothesis_settings(1, memory=None, shared=memory, **options).database is None
