"""The log of a campaign: its folder, with a line of JSON for all that has happened.

Entries are only added, each whole or not at all, and are on the disk before anything follows from them. Whoever reads
the log trusts it as far as a finding: nothing in it is executed, and what does not fit is left out and told.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from npudiff.campaign.known import Knowledge
from npudiff.errors import UsageError
from npudiff.files.writing import CAMPAIGN, AppendedFile, reason
from npudiff.model.version import VERSION
from npudiff.show.document import finite

LOG_FILE = "log.jsonl"

FORMAT = 1

LOCKED_SECONDS = 10.0
"""How long the log of a campaign that was killed may still be locked: a moment, until the system has ended it."""


class CampaignLog:
    """The log in an output folder; a context manager, during which no other process has it.

    Parameters
    ----------
    root : pathlib.Path
        The output folder.
    knowledge : Knowledge
        Takes each entry: those that are there, and those that are added.
    name : str or None
        Name of a campaign that is new; None for one that nobody had.

    Raises
    ------
    UsageError
        If another process has it, if it is of a newer version, or cannot be read.
    """

    def __init__(self, root: Path, knowledge: Knowledge, name: str | None = None) -> None:
        self.path = root / CAMPAIGN / LOG_FILE
        self._knowledge = knowledge
        self._file = _opened(self.path, root)
        self.unread = 0
        """Lines that were not read."""
        try:
            for entry in self._entries():
                knowledge.take(entry)
            if not knowledge.name:
                self._append(
                    {"kind": "campaign", "format": FORMAT, "npudiff": VERSION, "campaign": name or secrets.token_hex(8)}
                )
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> CampaignLog:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let others have it."""
        self._file.close()

    def add(self, kind: str, **entry: Any) -> None:  # noqa: ANN401 - plain values
        """Write an entry down; raises ``OSError`` if that cannot be done, and nothing has happened then."""
        self._append({"kind": kind, "place": self._knowledge.place, "at": round(time.time(), 3), **entry})

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._file.append(json.dumps(finite(entry), separators=(",", ":"), allow_nan=False))
        self._knowledge.take(entry)

    def _entries(self) -> Iterator[Mapping[str, Any]]:
        for line in self._file.lines():
            entry = _entry(line)
            if entry is None:
                self.unread += 1
                continue
            if entry["kind"] == "campaign" and entry["format"] > FORMAT:
                raise UsageError(f"{self.path}: written by a newer npudiff: upgrade")
            yield entry


def _opened(path: Path, root: Path) -> AppendedFile:
    until = time.monotonic() + LOCKED_SECONDS
    while True:
        try:
            return AppendedFile(path, within=root)
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() > until or not isinstance(error, BlockingIOError):
                raise UsageError(f"{path}: {_locked(error)}") from None
        except OSError as error:
            raise UsageError(f"{path}: {reason(error)}") from None
        time.sleep(0.05)


def _locked(error: OSError) -> str:
    return "another campaign runs in this folder" if isinstance(error, BlockingIOError) else reason(error)


_SHAPES: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "campaign": {"campaign": str, "format": int},
    "session": {},
    "round": {
        "job": str, "number": int, "cases": int, "steps": int, "seconds": (int, float), "worst": (int, float),
        "worst_case": str, "exact": bool, "cut": bool, "new": list, "found": list, "guides": list,
        "at": (int, float),
    },
    "again": {"folder": str, "fails": bool},
    "lost": {"card": str, "why": str},
    "restarted": {"worker": str, "why": str},
    "failed": {"job": str, "why": str},
}  # fmt: skip


def _entry(line: bytes) -> Mapping[str, Any] | None:
    """Return an entry, or None if the line is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    shape = _SHAPES.get(str(entry.get("kind"))) if isinstance(entry, dict) else None
    if shape is None or not all(isinstance(entry.get(name), kind) for name, kind in shape.items()):
        return None
    parts: list[tuple[object, Callable[[Any], bool]]] = [(one, _is_kind) for one in entry.get("new", ())]
    parts += [(one, _is_found) for one in entry.get("found", ())]
    if not isinstance(entry.get("taken", []), list):
        return None
    parts += [(one, _is_text) for name in ("guides", "taken") for one in entry.get(name, ())]
    return entry if all(fits(one) for one, fits in parts) else None


def _is_kind(one: Any) -> bool:  # noqa: ANN401 - what was read
    return (
        isinstance(one, list)
        and len(one) == 2
        and isinstance(one[0], list)
        and all(isinstance(name, str) for name in one[0])
        and isinstance(one[1], str)
    )


def _is_text(one: object) -> bool:
    return isinstance(one, str)


def _is_found(one: Any) -> bool:  # noqa: ANN401 - what was read
    names = isinstance(one, dict) and all(isinstance(one.get(name), str) for name in ("folder", "of"))
    if not names or not isinstance(one.get("new"), bool) or not isinstance(one.get("region"), dict):
        return False
    return all(isinstance(values, list) for values in one["region"].values())
