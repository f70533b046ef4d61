"""Files are named and written here: whole or not at all, and never through a link.

An output folder may come from a checkout, with links in it that somebody planted. A link in the place of a file is
replaced, and what it leads to stays as it is; a link in the place of a folder is an error.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from npudiff.errors import UsageError

USUAL_ROOT = ".npudiff"
"""Output folder where nobody names one."""

FINDINGS, EXAMPLES, JOURNALS, RUNS = "findings", "examples", "journal", "runs"
KNOWN, SUITE, CAMPAIGN = "known", "suite", "campaign"
FOLDERS = (FINDINGS, EXAMPLES, JOURNALS, RUNS, KNOWN, SUITE, CAMPAIGN)
"""Folders below an output folder."""

_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_GROWING = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_STREAMS = ("/dev/", "/proc/")
_PIECE = 2**16
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_DIGITS = 10


def file_name(text: str, most: int = 200) -> str:
    """Return a text as one part of a path: as it is where that is plain, else what is plain of it, and a digest.

    Parameters
    ----------
    text : str
        Anything.
    most : int
        Characters, all of them ASCII, that the name has at most.
    """
    if len(text) <= most and _PLAIN.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:_DIGITS]
    plain = re.sub(r"[^A-Za-z0-9_.\-]", "_", text)[: most - _DIGITS - 1].lstrip(".-")
    return f"{plain}-{digest}" if plain else digest


def check_output(root: Path) -> None:
    """Refuse an output folder that leads elsewhere, before anything is run.

    Raises
    ------
    UsageError
        If it, or a folder of ours in it, is a link, or something else than a folder.
    """
    for path in (root, *(root / name for name in FOLDERS)):
        if path.is_symlink():
            raise UsageError(f"{path}: a link, which is not followed: remove it, or name the folder that it leads to")
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path}: not a folder")


def begin_output(root: Path) -> None:
    """Check an output folder; a new one of the usual name is kept out of its owner's repository.

    Raises
    ------
    UsageError
        As ``check_output``.
    """
    check_output(root)
    if root.name == USUAL_ROOT and not root.exists():
        with contextlib.suppress(OSError):  # what cannot be written is told when there is more to write
            write_file(root / ".gitignore", "*\n", within=root)


def write_file(path: Path, content: str | bytes, *, within: Path | None = None) -> None:
    """Write a file as a whole, in folders that are made where they are missing.

    Parameters
    ----------
    path : pathlib.Path
        The file; a link of this name is replaced.
    content : str or bytes
        What it holds; text is written as UTF-8.
    within : pathlib.Path, optional
        The first folder that is ours: neither it nor a folder below it may be a link. Without one, the folders are the
        user's own, and so are devices and pipes.

    Raises
    ------
    OSError
        If that cannot be done; whatever was there is as it was.
    """
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    if within is None and _is_stream(path):
        path.write_bytes(data)
        return
    with _named(path), _opened(path.parent, within) as folder:
        partial = f".{secrets.token_hex(8)}.partial"
        try:
            with os.fdopen(os.open(partial, _NEW, 0o666, dir_fd=folder), "wb") as file:
                file.write(data)
            os.replace(partial, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial, dir_fd=folder)
            raise


def _is_stream(path: Path) -> bool:
    """Whether there is nothing to replace: a device, a pipe, or what a shell made of ``>(...)``."""
    if str(path.absolute()).startswith(_STREAMS):
        return True
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def new_file(path: Path, *, within: Path) -> BinaryIO:
    """Return a file that was not there before, open for writing.

    Raises
    ------
    FileExistsError
        If there is something of this name.
    OSError
        As of ``write_file``.
    """
    with _named(path), _opened(path.parent, within) as folder:
        return os.fdopen(os.open(path.name, _NEW, 0o666, dir_fd=folder), "wb")


class AppendedFile:
    """A file of lines that only grows; each line is in it whole or not at all, also after the power has failed.

    Parameters
    ----------
    path : pathlib.Path
        The file, which is made where it is missing; what follows its last line break is cut off.
    within : pathlib.Path
        The first folder that is ours, as of ``write_file``.

    Raises
    ------
    BlockingIOError
        If another process has it open.
    OSError
        As of ``write_file``.
    """

    def __init__(self, path: Path, *, within: Path) -> None:
        with _named(path), _opened(path.parent, within) as folder:
            self._file = os.open(path.name, _GROWING, 0o666, dir_fd=folder)
            try:
                _check_plain(self._file)
                _lock(self._file)
                self._size = self._whole()
                os.ftruncate(self._file, self._size)
            except BaseException:
                os.close(self._file)
                raise

    def _whole(self) -> int:
        """Bytes up to the last line break."""
        end = os.fstat(self._file).st_size
        while end:
            start = max(0, end - _PIECE)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def lines(self) -> Iterator[bytes]:
        """Yield what is in the file, line by line."""
        with open(self._file, "rb", closefd=False) as file:  # to close any descriptor of it would give up the lock
            file.seek(0)
            yield from file

    def append(self, line: str) -> None:
        """Add a line, which is on the disk when this returns; raises ``OSError`` if that cannot be done."""
        data = line.encode("utf-8", errors="replace") + b"\n"
        try:
            _write_whole(self._file, data)
            os.fsync(self._file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Let others have it."""
        os.close(self._file)


def _check_plain(file: int) -> None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(errno.EINVAL, "not a plain file")


def _write_whole(file: int, data: bytes) -> None:
    if os.write(file, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lock(file: int) -> None:
    """Have a file for this process alone, and for none that is forked from it."""
    import fcntl  # noqa: PLC0415 - not on every system

    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_file(path: Path, *, within: Path) -> None:
    """Remove a file, or a link, if there is one; raises ``OSError`` if that cannot be done."""
    with contextlib.suppress(FileNotFoundError), _named(path), _opened(path.parent, within, made=False) as folder:
        os.unlink(path.name, dir_fd=folder)


def make_folder(path: Path, *, within: Path) -> None:
    """Make a folder, and those above it; raises ``OSError`` if that cannot be done, or one of ours is a link."""
    with _named(path), _opened(path, within):
        pass


def reason(error: OSError) -> str:
    """Return why something could not be written, as the end of a line."""
    return error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let errors name the file that was to be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _opened(folder: Path, within: Path | None, *, made: bool = True) -> Iterator[int]:
    """Give a descriptor of a folder, which is opened part by part from ``within`` on, and without following links."""
    folder = folder.absolute()
    first = folder if within is None else within.absolute()
    inner = folder.relative_to(first).parts
    if os.pardir in inner:
        raise OSError(errno.EINVAL, "a path that leads out of its folder")
    start, parts = (first, inner) if within is None else (first.parent, (first.name, *inner))
    if made:
        start.mkdir(parents=True, exist_ok=True)
    at = os.open(start, _FOLDER)
    try:
        for name in filter(None, parts):
            below = _below(name, at, made=made)
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


def _below(name: str, at: int, *, made: bool) -> int:
    """Open a folder in a folder."""
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
    except FileNotFoundError:
        if not made:
            raise
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.mkdir(name, dir_fd=at)
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise OSError(errno.ELOOP, "a folder of its path is a link, or no folder") from None
        raise
