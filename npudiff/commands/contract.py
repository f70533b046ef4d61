"""``npudiff doctor --contract``: which versions of a backend's package accept the calls as they are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any

from npudiff.errors import ExitCode
from npudiff.model.contract import Contract, Release, Standing
from npudiff.run.discovery import load_contracts
from npudiff.show.console import Console
from npudiff.text import counted

WIDTH = 100
"""Columns within which the table is readable."""

_CELL = 13


def contract(options: argparse.Namespace) -> int:
    """Show the tables of all contracts, and return the exit code: 1 if a judged version does not accept a call."""
    console = Console(verbose=False)
    found = load_contracts(options.contract)
    if options.json is not None:
        options.json.content = lambda: {"contracts": [_content(one) for one in found]}
    for one in found:
        console.lines(list(contract_lines(one)))
    return ExitCode.FINDINGS if any(one.findings for one in found) else ExitCode.CLEAN


def _content(contract: Contract) -> dict[str, Any]:
    """Return what versions make of the calls, as plain values."""
    releases = [
        {
            "release": one.name,
            "source": one.source,
            "judged": one.judged,
            "answers": {
                name: {"answer": answer.standing.value, "reason": answer.reason} for name, answer in one.answers.items()
            },
        }
        for one in contract.releases
    ]
    return {
        "package": contract.package,
        "base": contract.base,
        "forms": contract.forms,
        "releases": releases,
        "notes": list(contract.notes),
    }


def contract_lines(contract: Contract) -> Iterator[str]:
    """Yield the table of one contract as lines of at most 100 columns."""
    operators = sorted({name for release in contract.releases for name in release.answers})
    columns = grouped(contract.releases)
    yield f"{contract.package}: {counted(contract.forms, 'form')} of calls, written for {contract.base}"
    for note in contract.notes:
        yield from wrap(note, WIDTH, initial_indent="  ", subsequent_indent="    ")
    yield ""
    for letter, members in columns.items():
        accepted = sum(one.standing is Standing.ACCEPTED for one in members[0].answers.values())
        text = f"{accepted} of {counted(len(operators), 'operator')} accepted as they are called: "
        yield from wrap(text + ", ".join(_ranges(members, contract.releases)), WIDTH, initial_indent=f"{letter}  ",
                        subsequent_indent="     ")  # fmt: skip
    rows = [name for name in operators if any(not _accepts(members[0], name) for members in columns.values())]
    notes: dict[str, int] = {}
    if rows:
        yield ""
        yield from _rows(rows, columns, notes)
    yield ""
    if rows:
        yield f"{Standing.ACCEPTED.value} everywhere: {counted(len(operators) - len(rows), 'other operator')}"
    for reason, number in notes.items():
        yield from wrap(reason, WIDTH, initial_indent=f"[{number}]  ", subsequent_indent="     ")
    yield from _verdict(contract)


def grouped(releases: Sequence[Release]) -> dict[str, list[Release]]:
    """Put releases with equal answers into one column, and give each a letter, in the order of the releases."""
    columns: list[list[Release]] = []
    for release in releases:
        for members in columns:
            if members[0].answers == release.answers:
                members.append(release)
                break
        else:
            columns.append([release])
    return {_letter(place): members for place, members in enumerate(columns)}


def _letter(place: int) -> str:
    """A, B ... Z, AA, AB ..."""
    rest, last = divmod(place, 26)
    return (_letter(rest - 1) if rest else "") + chr(ord("A") + last)


def _accepts(release: Release, name: str) -> bool:
    return name in release.answers and release.answers[name].standing is Standing.ACCEPTED


def _ranges(members: Sequence[Release], releases: Sequence[Release]) -> Iterator[str]:
    """Write releases that follow each other as ``first to last``; those that are not recorded, by themselves."""
    places = [place for place, release in enumerate(releases) if release in members]
    for _, run in groupby(enumerate(places), key=lambda pair: (pair[1] - pair[0], "(" in releases[pair[1]].name)):
        names = [releases[place].name for _, place in run]
        yield names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" if len(names) > 2 else ", ".join(names)


def _rows(rows: Sequence[str], columns: dict[str, list[Release]], notes: dict[str, int]) -> Iterator[str]:
    """Yield the table, in parts where it is too wide; ``notes`` gets the reasons and their numbers."""
    name_width = max(len("operator"), *map(len, rows)) + 2
    at_once = max(1, (WIDTH - name_width) // _CELL)
    letters = list(columns)
    for start in range(0, len(letters), at_once):
        part = letters[start : start + at_once]
        yield "operator".ljust(name_width) + "".join(letter.ljust(_CELL) for letter in part).rstrip()
        for name in rows:
            cells = (_cell(columns[letter][0], name, notes).ljust(_CELL) for letter in part)
            yield name.ljust(name_width) + "".join(cells).rstrip()


def _cell(release: Release, name: str, notes: dict[str, int]) -> str:
    answer = release.answers.get(name)
    if answer is None:
        return "-"
    if not answer.reason or answer.standing is Standing.MISSING:
        return answer.standing.value
    return f"{answer.standing.value} [{notes.setdefault(answer.reason, len(notes) + 1)}]"


def _verdict(contract: Contract) -> Iterator[str]:
    judged = ", ".join(release.name for release in contract.releases if release.judged)
    if contract.findings:
        yield f"{judged}: {counted(contract.findings, 'operator')} not accepted as called"
    else:
        yield f"{judged}: every call is accepted as it is, as far as it is known"
