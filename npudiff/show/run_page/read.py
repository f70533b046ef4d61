"""Reads records, and trusts nothing in them: they come from other people's machines and pull requests."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npudiff.errors import UsageError
from npudiff.files.reading import read_plain_file
from npudiff.files.writing import FINDINGS, RUNS
from npudiff.model.case import from_plain
from npudiff.show.run_page import record
from npudiff.show.run_page.record import RunRecord
from npudiff.text import clipped, printable

MOST_READ = 200
"""Records that are read from one folder, the latest first."""

MOST_BYTES = 2**26
"""Bytes of all records that are read."""

_LARGEST = 1e15
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,250}")
_STARTED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True)
class StoredRun:
    """The record of a run, and the output folder that it is in."""

    record: RunRecord
    root: Path

    def finding_folder(self, name: str) -> Path | None:
        """Return the folder of a finding, or None where there is none."""
        return finding_folder(self.root, name)


def finding_folder(root: Path, name: str) -> Path | None:
    """Return the folder of a finding below an output folder; None if it is not a plain folder, or named otherwise."""
    findings = root / FINDINGS
    folder = findings / name
    if not is_name(name) or findings.is_symlink() or folder.is_symlink() or not folder.is_dir():
        return None
    return folder


def is_name(name: str) -> bool:
    """Whether a name can be that of a finding's folder: one part of a path, which is not hidden."""
    return _NAME.fullmatch(name) is not None


def read_records(paths: Sequence[Path]) -> tuple[list[StoredRun], list[str]]:
    """Read the records that the paths name: files, or output folders with all records in them.

    Returns
    -------
    list of StoredRun
        The runs, the earliest first.
    list of str
        A line for each that cannot be read, and for what was left out.

    Raises
    ------
    UsageError
        If a path does not exist.
    """
    runs: list[StoredRun] = []
    problems: list[str] = []
    room, left_out = MOST_BYTES, 0
    for path in _files(paths, problems):
        if room < 0:
            left_out += 1
            continue
        try:
            read, size = _read(path)
        except (UsageError, OSError) as error:
            problems.append(clipped(printable(str(error))))
            continue
        runs.append(StoredRun(read, root_of(path)))
        room -= size
    if left_out:
        problems.append(f"{left_out} records were left out, since those before have more than {MOST_BYTES} bytes")
    runs.sort(key=lambda run: run.record.started)
    return runs, problems


def root_of(path: Path) -> Path:
    """Return the output folder that a path belongs to: itself, or the one above its record."""
    if path.is_dir():
        return path.parent if path.name == RUNS else path
    return path.parent.parent if path.absolute().parent.name == RUNS else path.parent


def _files(paths: Sequence[Path], problems: list[str]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        for file in _records_of(root_of(path), problems) if path.is_dir() else [path]:
            if (known := file.absolute()) not in seen:
                seen.add(known)
                yield file


def _records_of(root: Path, problems: list[str]) -> list[Path]:
    folder = root / RUNS
    if folder.is_symlink() or not folder.is_dir():
        return []
    files = sorted((path for path in folder.iterdir() if path.suffix == ".json"), reverse=True)
    if len(files) > MOST_READ:
        problems.append(f"{printable(str(folder))}: {len(files) - MOST_READ} older records were left out")
    return files[:MOST_READ]


def read_record(path: Path) -> RunRecord:
    """Read a record.

    Raises
    ------
    UsageError
        If it is not a record, is damaged, of a newer version, or larger than a record may be.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[RunRecord, int]:
    """Return a record, and how many bytes it has."""
    data = read_plain_file(path, record.MAX_RECORD_BYTES)
    try:
        return _record_of(data.decode("utf-8", errors="replace")), len(data)
    except (ValueError, RecursionError, OverflowError) as error:
        raise UsageError(f"{path}: not read: {clipped(printable(str(error)), 200)}") from None


def _record_of(text: str) -> RunRecord:
    if text.count(",") + text.count("[") + text.count("{") > record.MOST_VALUES:
        raise ValueError(f"more than {record.MOST_VALUES} values")
    plain = json.loads(text)
    if not isinstance(plain, dict):
        raise ValueError("expected an object")
    version = plain.pop("schema_version", None)
    if type(version) is not int or version < 1:
        raise ValueError("no schema_version: not the record of a run")
    if version > record.SCHEMA_VERSION:
        raise ValueError(f"written by a newer npudiff (schema {version:.6g}): upgrade")
    run: RunRecord = from_plain(RunRecord, plain, "record")
    _check(run)
    return run


def _check(run: RunRecord) -> None:
    """Refuse what fits the types, and no run can have written."""
    _check_sizes(run, "record")
    if not _STARTED.fullmatch(run.started):
        raise ValueError("record.started: not a time")
    names = [name for job in run.jobs for name in job.findings] + [finding.folder for finding in run.findings]
    for name in names:
        if not is_name(name):
            raise ValueError(f"record.findings: {name[:40]!r} is not the name of a folder")
    if any(len(job.alone) not in (0, 2) for job in run.jobs):
        raise ValueError("record.jobs: alone must be two numbers")


def _check_sizes(value: Any, path: str) -> None:  # noqa: ANN401 - whatever a record holds
    if isinstance(value, str):
        if len(value) > record.MOST_TEXT:
            raise ValueError(f"{path}: a text of {len(value)} characters")
    elif isinstance(value, tuple):
        if len(value) > record.MOST_ENTRIES:
            raise ValueError(f"{path}: {len(value)} entries")
        for item in value:
            _check_sizes(item, path)
    elif dataclasses.is_dataclass(value):
        for name in value.__dataclass_fields__:
            _check_sizes(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, int | float) and not (math.isfinite(value) and 0 <= value <= _LARGEST):
        raise ValueError(f"{path}: a number that is not between 0 and {_LARGEST:g}")
