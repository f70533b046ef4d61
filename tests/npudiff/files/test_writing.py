"""One writer for all files: whole or not at all, and never through a link."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from npudiff.errors import UsageError
from npudiff.files import writing
from npudiff.files.writing import FOLDERS, begin_output, check_output, make_folder, new_file, remove_file, write_file


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "outside" / "victim"
    path.parent.mkdir()
    path.write_text("precious")
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def test_folders_are_made_and_nothing_else_is_left(root):
    write_file(root / "a" / "b" / "file", "text ü \ud800", within=root)
    assert (root / "a" / "b" / "file").read_text(encoding="utf-8") == "text ü ?"
    write_file(root / "a" / "b" / "file", b"bytes", within=root)
    assert [path.name for path in (root / "a" / "b").iterdir()] == ["file"]
    assert (root / "a" / "b" / "file").read_bytes() == b"bytes"


def test_a_file_has_the_rights_of_any_new_file(root):
    before = os.umask(0o027)
    try:
        write_file(root / "file", "x", within=root)
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("kind", ["link", "hard link", "dangling", "circle"])
def test_a_link_in_the_place_of_a_file_is_replaced(root, victim, within, kind):
    root.mkdir()
    path = root / "file"
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "hard link":
        path.hardlink_to(victim)
    else:
        path.symlink_to(victim.parent / "new" if kind == "dangling" else path)
    write_file(path, "mine", within=root if within else None)
    assert path.read_text() == "mine"
    assert not path.is_symlink()
    assert victim.read_text() == "precious"
    assert [one.name for one in victim.parent.iterdir()] == ["victim"]


WRITERS = {
    "write_file": lambda path, root: write_file(path, "mine", within=root),
    "new_file": lambda path, root: new_file(path, within=root),
    "make_folder": lambda path, root: make_folder(path, within=root),
    "remove_file": lambda path, root: remove_file(path.parent / "victim", within=root),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", ["", "a", "a/b"])
def test_a_link_in_the_place_of_a_folder_is_an_error(root, victim, writer, place):
    link = root / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim.parent, target_is_directory=True)
    with pytest.raises(OSError, match="is a link, or no folder") as told:
        WRITERS[writer](root / "a" / "b" / "c", root)
    assert told.value.errno == errno.ELOOP
    assert str(root) in str(told.value)
    assert [one.name for one in victim.parent.iterdir()] == ["victim"]
    assert victim.read_text() == "precious"


def test_links_above_what_is_ours_are_the_users_own(tmp_path, victim):
    (tmp_path / "scratch").symlink_to(victim.parent, target_is_directory=True)
    root = tmp_path / "scratch" / "out"
    write_file(root / "file", "mine", within=root)
    assert (victim.parent / "out" / "file").read_text() == "mine"
    write_file(tmp_path / "scratch" / "report", "mine")
    assert (victim.parent / "report").read_text() == "mine"


@pytest.mark.parametrize("root", [".", "..", "out", "./out"])
def test_relative_folders(tmp_path, monkeypatch, root):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_file(Path(root) / "a" / "file", "mine", within=Path(root))
    assert (tmp_path / "here" / root / "a" / "file").read_text() == "mine"


@pytest.mark.parametrize("path", ["../file", "a/../../file", "a/../file"])
def test_no_path_leads_out_of_its_folder(root, path):
    root.mkdir()
    with pytest.raises((OSError, ValueError)):
        write_file(root / path, "x", within=root)
    assert not list(root.parent.glob("file"))


@pytest.fixture(params=["open", "write", "replace"])
def full_disk(request, monkeypatch):
    """A disk on which nothing can be written, as the writer sees it."""

    def full(*arguments, **options):
        if request.param != "open" or arguments[1] & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(*arguments, **options)

    opened, fdopen = os.open, os.fdopen

    class Full:
        def __init__(self, *arguments):
            self._file = fdopen(*arguments)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

        write = staticmethod(full)

    if request.param == "write":
        monkeypatch.setattr(writing.os, "fdopen", Full)
    else:
        monkeypatch.setattr(writing.os, request.param, full)


def test_on_a_full_disk_all_is_as_it_was(root, full_disk):
    root.mkdir()
    (root / "file").write_text("before")
    with pytest.raises(OSError, match="No space left on device") as told:
        write_file(root / "file", "after", within=root)
    assert told.value.filename == str(root / "file")
    assert [(path.name, path.read_text()) for path in root.iterdir()] == [("file", "before")]


def test_what_is_a_folder_stays_one(root):
    (root / "file").mkdir(parents=True)
    with pytest.raises(OSError):
        write_file(root / "file", "x", within=root)
    assert [path.name for path in root.iterdir()] == ["file"]


def test_a_reader_never_sees_half_a_file(root):
    texts = {name * 200_000 for name in "ab"}
    write_file(root / "file", "a" * 200_000, within=root)
    over = threading.Event()

    def write():
        for number in range(60):
            write_file(root / "file", "ab"[number % 2] * 200_000, within=root)
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not over.is_set():
        seen.add((root / "file").read_text())
    thread.join()
    assert seen <= texts


def test_a_pipe_that_the_user_names_is_written_as_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(pipe, "through")
        assert os.read(read, 100) == b"through"
        assert stat.S_ISFIFO(pipe.lstat().st_mode)
        write_file(Path(f"/dev/fd/{os.open(pipe, os.O_WRONLY)}"), "again")
        assert os.read(read, 100) == b"again"
    finally:
        os.close(read)


def test_a_pipe_in_a_folder_of_ours_is_replaced(root):
    root.mkdir()
    os.mkfifo(root / "file")
    write_file(root / "file", "mine", within=root)
    assert (root / "file").read_text() == "mine"


def test_a_new_file_was_not_there(root):
    with new_file(root / "file", within=root) as file:
        file.write(b"x")
    with pytest.raises(FileExistsError):
        new_file(root / "file", within=root)
    remove_file(root / "file", within=root)
    remove_file(root / "file", within=root)
    remove_file(root / "nowhere" / "file", within=root)
    assert not list(root.iterdir())


@pytest.mark.parametrize("place", ["", *FOLDERS])
@pytest.mark.parametrize("target", ["outside", "nowhere"])
def test_an_output_folder_with_a_link_is_refused(root, victim, place, target):
    check_output(root)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to(root.parent / target)
    with pytest.raises(UsageError, match="a link, which is not followed: remove it, or name the folder") as refused:
        check_output(root)
    assert str(refused.value).startswith(str(root / place))


def test_an_output_folder_that_is_a_file_is_refused(root):
    root.write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        check_output(root)


def test_a_new_output_folder_of_the_usual_name_is_not_committed(tmp_path):
    begin_output(tmp_path / ".npudiff")
    assert (tmp_path / ".npudiff" / ".gitignore").read_text() == "*\n"
    (tmp_path / "there" / ".npudiff").mkdir(parents=True)
    for other in (tmp_path / "there" / ".npudiff", tmp_path / "results"):
        begin_output(other)
        assert not (other / ".gitignore").exists()
    (tmp_path / "there" / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="a link"):
        begin_output(tmp_path / "there" / "link")
