"""Known issues: findings that a team accepts for a while, each with a link and an expiry date.

They are read from a file in TOML, strictly: what is not understood is refused, since an entry that says nothing would
hide nothing, and one that says too much would hide everything.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from npudiff.errors import UsageError, did_you_mean, unknown
from npudiff.gate.versions import Range, Versions
from npudiff.model.constraints import Constraints, parse_where
from npudiff.model.instead import Change

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same module under its own name
    import tomli as tomllib

FILE = "known_issues.toml"

MOST_DAYS = 366
"""Most days from now to the expiry of an entry."""

MOST_BYTES = 2**20

MOST_PARTS = 16
"""Parts of a dotted key."""

NOT_JUDGED = "not judged"
"""Verdict of an implementation of which no case could be run: what it calls is not here, say."""

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY = re.compile(rf"\s*\[{{0,2}}\s*{_PART}(?:\s*\.\s*{_PART}){{{MOST_PARTS}}}")

_KEYS: Mapping[str, type] = {
    "component": str,
    "implementation": str,
    "property": str,
    "verdict": str,
    "where": list,
    "instead": list,
    "case": str,
    "link": str,
    "expires": date,
    "reason": str,
    "intermittent": bool,
    "target": list,
    "cann": str,
    "torch_npu": str,
    "soc": str,
}
_NEEDED = ("component", "implementation", "link", "expires")


@dataclass(frozen=True)
class KnownIssue:
    """A finding that is expected."""

    component: str
    implementation: str
    """Component and implementation that fail."""
    link: str
    """Where it is tracked."""
    expires: date
    """The last day on which it is accepted."""
    line: int = 1
    """Where the entry begins in its file."""
    prop: str = ""
    """The property that fails; empty for any."""
    verdict: str = ""
    """``wrong value``, ``exception``, ``time-out``, …, ``not judged`` if no case can be run; empty for any."""
    condition: tuple[str, ...] = ()
    """``axis=values``, as after ``--where``: the cases that fail. Empty for all."""
    where: Constraints = field(default_factory=Constraints)
    """The condition."""
    instead: tuple[Change, ...] = ()
    """What makes inputs those to which the implementation gives the right answer, in cases of the condition: they are
    judged by that. Empty if nobody knows; then they are not judged."""
    case: str = ""
    """A case that fails, as JSON: it is run first to see whether the issue is still there. Empty for none."""
    reason: str = ""
    """Why it is accepted, for people."""
    intermittent: bool = False
    """Whether it fails only sometimes: a run without a failure does not make the entry stale."""
    targets: tuple[str, ...] = ()
    """Targets on which it is known; empty for all."""
    versions: Versions = field(default_factory=Versions)
    """CANN, torch_npu and SoC with which it is known."""

    @property
    def name(self) -> str:
        """The entry in one line."""
        parts = (self.component, self.implementation, *([self.prop] if self.prop else []))
        return ".".join(parts) + (f" where {', '.join(self.condition)}" if self.condition else "")


def read_known(path: Path, today: date) -> list[KnownIssue]:
    """Read a file of known issues.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    today : datetime.date
        Expiry dates lie within ``MOST_DAYS`` from here.

    Raises
    ------
    UsageError
        If the file cannot be read, or an entry is not complete, or says something that there is not.
    """
    text = _text_of(path)
    _refuse_long_keys(path, text)
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    strange = sorted(set(content) - {"issue"})
    entries = content.get("issue", [])
    if strange or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        near = did_you_mean(strange[0], ["issue"]) if strange else ""
        what = f"unknown table or key {strange[0]!r}" if strange else "'issue' is not a list of tables"
        raise UsageError(f"{path}: {what}{near or ';'} each known issue begins with [[issue]]")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.strip().startswith("[[issue]]")]
    places = lines if len(lines) == len(entries) else [1] * len(entries)
    return [_issue(entry, line, f"{path}:{line}", today) for entry, line in zip(entries, places, strict=True)]


def _text_of(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would keep the run waiting
            raise UsageError(f"{path}: cannot be read: " + ("not a file" if path.exists() else "no such file"))
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UsageError(f"{path}: has more than {MOST_BYTES} bytes, which are the most that are read")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None


def _refuse_long_keys(path: Path, text: str) -> None:
    """Refuse keys of many parts, which none of ours has: the parser takes the square of their number in seconds."""
    for number, line in enumerate(text.split("\n"), 1):
        if _KEY.match(line):
            raise UsageError(f"{path}:{number}: a key of more than {MOST_PARTS} parts")


def _issue(entry: Mapping[str, Any], line: int, place: str, today: date) -> KnownIssue:
    _check_keys(entry, place)
    return KnownIssue(
        component=entry["component"],
        implementation=entry["implementation"],
        link=_link(entry["link"], place),
        expires=_expiry(entry["expires"], place, today),
        line=line,
        prop=entry.get("property", ""),
        verdict=entry.get("verdict", ""),
        condition=tuple(_texts(entry, "where", place)),
        where=_where(_texts(entry, "where", place), place),
        instead=_instead(entry, place),
        case=entry.get("case", ""),
        reason=entry.get("reason", ""),
        intermittent=entry.get("intermittent", False),
        targets=tuple(_texts(entry, "target", place)),
        versions=Versions(
            cann=Range.parsed(entry.get("cann", ""), f"{place}: cann"),
            torch_npu=Range.parsed(entry.get("torch_npu", ""), f"{place}: torch_npu"),
            soc=entry.get("soc", ""),
        ),
    )


def _check_keys(entry: Mapping[str, Any], place: str) -> None:
    for name, value in entry.items():
        if name not in _KEYS:
            raise UsageError(f"{place}: {unknown('key', name, _KEYS)}")
        if not isinstance(value, _KEYS[name]):
            plain = "a day without quotes, such as 2027-01-31" if _KEYS[name] is date else f"a {_KEYS[name].__name__}"
            raise UsageError(f"{place}: {name} must be {plain}, got {value!r}")
    missing = [name for name in _NEEDED if not entry.get(name)]
    if missing:
        raise UsageError(f"{place}: a known issue needs {', '.join(_NEEDED)}; missing: {', '.join(missing)}")


def _link(link: str, place: str) -> str:
    try:
        parts = urlsplit(link)
    except ValueError as error:
        raise UsageError(f"{place}: link: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.netloc or not link.isprintable() or " " in link:
        raise UsageError(f"{place}: link must be the address of an issue, such as https://…/issues/7, got {link!r}")
    return link


def _expiry(expires: date, place: str, today: date) -> date:
    if isinstance(expires, datetime):
        expires = expires.date()
    if expires > today + timedelta(days=MOST_DAYS):
        raise UsageError(f"{place}: expires {expires}, more than {MOST_DAYS} days from now: look at it again by then")
    return expires


def _texts(entry: Mapping[str, Any], name: str, place: str) -> list[str]:
    values = entry.get(name, [])
    if not all(isinstance(value, str) for value in values):
        raise UsageError(f"{place}: {name} must be a list of texts, got {values!r}")
    return list(values)


def _instead(entry: Mapping[str, Any], place: str) -> tuple[Change, ...]:
    texts = _texts(entry, "instead", place)
    if texts and not entry.get("case"):
        raise UsageError(f"{place}: instead needs a case, with which it is tried")
    try:
        return tuple(map(Change.parsed, texts))
    except UsageError as error:
        raise UsageError(f"{place}: instead: {error}") from None


def _where(texts: list[str], place: str) -> Constraints:
    try:
        return parse_where(texts)
    except UsageError as error:
        raise UsageError(f"{place}: {str(error).replace('--where', 'where')}") from None
