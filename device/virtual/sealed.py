"""The cache of what is built for the virtual NPU: whose it is, and whether it is as it was built.

A library that is loaded runs in this process. A cache in a folder where others may write (``/tmp``, a home that several
share) could hold theirs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from pathlib import Path

from npudiff.files.writing import write_file

SEAL = "sealed.json"
"""File with the checksum of each other file of a folder."""

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_MOST_BYTES = 2**26


def own_folder(path: Path) -> None:
    """Make a folder that only this user can write.

    Raises
    ------
    OSError
        If it cannot be made, is a link, or is somebody else's.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # as the XDG specification asks for
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "a link, or no folder", str(path))
    if status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, f"belongs to another user ({status.st_uid})", str(path))
    if status.st_mode & _OTHERS:  # made by an earlier version
        path.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS)


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files, which others then cannot write."""
    checksums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    write_file(folder / SEAL, json.dumps(checksums), within=folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(stat.S_IMODE(path.lstat().st_mode) & ~_OTHERS)


def is_whole(folder: Path) -> bool:
    """Return whether a folder holds what was sealed in it, and nothing else.

    Raises
    ------
    OSError
        If it, or a file of it, is not this user's own: there is no telling who wrote it.
    """
    if not os.path.lexists(folder):
        return False
    paths = [folder, *(sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else [])]
    for path in paths:
        status = path.lstat()
        if status.st_uid != os.getuid() or (status.st_mode & _OTHERS and not stat.S_ISLNK(status.st_mode)):
            raise PermissionError(errno.EPERM, "others may have written it: remove it", str(path))
    try:
        sealed = json.loads((folder / SEAL).read_bytes())
        found = {path.name: _checksum(path) for path in paths[1:] if path.name != SEAL}
    except (OSError, ValueError, RecursionError):
        return False
    return bool(sealed) and sealed == found


def _checksum(path: Path) -> str:
    """Return the checksum of a plain file; empty for anything else, or for what no library is as large as."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()
