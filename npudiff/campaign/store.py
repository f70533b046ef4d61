"""Where a corpus lies: a folder, or what fsspec opens. Objects are written once, whole, and never changed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from npudiff.errors import UsageError
from npudiff.files.reading import read_plain_file
from npudiff.files.writing import check_output, write_file

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(://|::)")
_SECRETS = re.compile(r"//[^/@\s]*@")

AT_ONCE = 256
"""Objects that are asked for together: file systems on a network fetch these side by side."""


class Store(Protocol):
    """Objects with names, in one place."""

    @property
    def where(self) -> str:
        """The place as it is told: without a password."""

    def sizes(self) -> Mapping[str, int]:
        """Return the names of objects and their bytes; raises ``OSError`` if that cannot be done."""

    def read(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes | None]]:
        """Yield the bytes of objects; None of those that cannot be read now."""

    def write(self, name: str, data: bytes) -> None:
        """Write an object, which nobody sees before it is whole; raises ``OSError`` if that cannot be done."""


def store_of(place: str) -> Store:
    """Return the store of a folder, or of a URL.

    Raises
    ------
    UsageError
        If it is a URL that cannot be opened, since fsspec or what it needs for it is missing, or a link.
    """
    return UrlStore(place) if _URL.match(place) else FolderStore(Path(place))


class FolderStore:
    """Files of a folder, which is made where it is missing; links in it are not followed."""

    def __init__(self, root: Path) -> None:
        check_output(root)
        self._root = root

    @property
    def where(self) -> str:
        """As of ``Store``."""
        return str(self._root)

    def sizes(self) -> Mapping[str, int]:
        """As of ``Store``."""
        if not self._root.is_dir():
            return {}
        with os.scandir(self._root) as entries:
            return {
                one.name: one.stat(follow_symlinks=False).st_size
                for one in entries
                if one.is_file(follow_symlinks=False)
            }

    def read(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes | None]]:
        """As of ``Store``."""
        for name, size in sizes.items():
            try:
                yield name, read_plain_file(self._root / name, size)
            except (UsageError, OSError):
                yield name, None

    def write(self, name: str, data: bytes) -> None:
        """As of ``Store``."""
        write_file(self._root / name, data, within=self._root)


class UrlStore:
    """Objects below a URL of fsspec, such as ``s3://bucket/folder`` or ``sftp://host/folder``.

    Parameters
    ----------
    url : str
        The folder; also a chain of fsspec, ``dir::file:///folder``.
    """

    def __init__(self, url: str) -> None:
        self.where = _SECRETS.sub("//", url)
        try:
            import fsspec  # noqa: PLC0415 - an extra
        except ImportError:
            raise UsageError(f"--corpus {self.where} needs fsspec: pip install 'npudiff[fsspec]'") from None
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except Exception as error:  # noqa: BLE001 - of whatever file system: one that is not there, or its own
            raise UsageError(f"--corpus {self.where}: {_said(error)}") from None

    def sizes(self) -> Mapping[str, int]:
        """As of ``Store``."""
        with self._told():
            self._files.invalidate_cache()
            try:
                entries: Sequence[Mapping[str, Any]] = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return {}
            return {_last(one["name"]): int(one["size"] or 0) for one in entries if one["type"] == "file"}

    def read(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes | None]]:
        """As of ``Store``."""
        names = list(sizes)
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            with self._told():
                paths, ends = [self._path(name) for name in some], [sizes[name] for name in some]
                found = self._files.cat_ranges(paths, [0] * len(some), ends, on_error="return")
            for name, data in zip(some, found, strict=True):
                yield name, bytes(data) if isinstance(data, (bytes, bytearray, memoryview)) else None

    def write(self, name: str, data: bytes) -> None:
        """As of ``Store``: under another name first, since not every file system writes an object as a whole."""
        partial = self._path(f".{secrets.token_hex(8)}.partial")
        with self._told():
            self._files.makedirs(self._root, exist_ok=True)
            try:
                self._files.pipe_file(partial, data)
                self._files.mv(partial, self._path(name))
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(partial)
                raise

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if self._root else name

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Raise ``OSError``, with the place, for whatever a file system raises."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of whatever library stands behind it
            raise OSError(f"{self.where}: {_said(error)}") from None


def _said(error: Exception) -> str:
    return _SECRETS.sub("//", " ".join(f"{type(error).__name__}: {error}".split()))[:500]


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
