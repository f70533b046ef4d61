"""Writes the file of a record as a whole or not at all, and removes the oldest ones.

Nothing here imports torch: the process that collects what several of pytest's workers ran has no other use for it.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npudiff.files.writing import RUNS, file_name, new_file, remove_file, write_file
from npudiff.model.case import to_plain
from npudiff.show.run_page import record
from npudiff.show.run_page.record import RunRecord

MOST_OF_A_NAME = 40
"""Characters of target and CANN in the name of a record."""

_KEPT_NAME = re.compile(r"\d{8}T\d{6}Z-[A-Za-z0-9_.\-]+\.json")


def write_record(run: RunRecord, root: Path, path: Path | None = None) -> Path:
    """Write a record below an output folder, and return the file: a new one, or ``path``, which this run has written.

    The oldest records beyond ``MOST_KEPT`` are removed.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    content = {"schema_version": record.SCHEMA_VERSION, **plain(run)}
    text = json.dumps(content, allow_nan=False) + "\n"
    file = path or _new_file(root, run)
    try:
        write_file(file, text, within=root)
    except BaseException:
        if path is None:
            with contextlib.suppress(OSError):
                remove_file(file, within=root)
        raise
    _forget_the_oldest(root)
    return file


def merged(records: Sequence[RunRecord]) -> RunRecord:
    """Return the record of a run from the records of its parts: the first one, with the jobs of all."""
    first = records[0]
    return replace(
        first,
        started=min(one.started for one in records),
        jobs=tuple(job for one in records for job in one.jobs),
        findings=tuple(dict.fromkeys(finding for one in records for finding in one.findings)),
        mutants=tuple(mutant for one in records for mutant in one.mutants),
    )


def plain(run: RunRecord) -> dict[str, Any]:
    """Return a record as plain values, without infinities: JSON has none, and no case that holds has one."""
    values = to_plain(run)
    assert isinstance(values, dict)  # noqa: S101 - what a dataclass becomes
    for job in values["jobs"]:
        job["worst"] = job["worst"] if math.isfinite(job["worst"]) else 0.0
    return values


def _new_file(root: Path, run: RunRecord) -> Path:
    """Reserve a file that no other run has."""
    folder = root / RUNS
    stamp = re.sub(r"[-:]", "", run.started)
    stem = f"{stamp}-{file_name(run.target, MOST_OF_A_NAME)}-{file_name(run.cann, MOST_OF_A_NAME)}"
    for number in range(1, 10_000):
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        with contextlib.suppress(FileExistsError):
            new_file(path, within=root).close()
            return path
    raise FileExistsError(f"{folder}: 10,000 runs in one second")


def _forget_the_oldest(root: Path) -> None:
    """Remove the oldest records, and no other file."""
    folder = root / RUNS
    names = sorted(path for path in folder.iterdir() if _KEPT_NAME.fullmatch(path.name) and not path.is_symlink())
    for path in names[: -record.MOST_KEPT]:
        with contextlib.suppress(OSError):  # in a folder of somebody else, say
            remove_file(path, within=root)
