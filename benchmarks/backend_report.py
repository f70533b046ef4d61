"""What is wrong in shipping backends: a page of it, and files of known issues for their gates, from one file each.

``python -m benchmarks.backend_report`` writes ``docs/backends.md`` and ``docs/backends/known_issues_NAME.toml`` from
``docs/backends/NAME.toml``, whose defects were each looked at by hand. ``python -m benchmarks.backend_report FINDINGS``
prints the findings of a folder, by cause, as a draft of entries of that file.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from npudiff.findings.causes import by_cause, contradicted
from npudiff.findings.finding import FINDING_FILE, read_finding
from npudiff.findings.log import LoggedFinding
from npudiff.model.case import dumps

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same module under its own name
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "backends"
PAGE = ROOT / "docs" / "backends.md"

AGAINST = ("documentation", "native path", "itself")
"""What a defect may contradict: the operator's or the model's documentation as the reference has it, the plain form
that the backend keeps of the same function, or another of its own paths."""

_HEAD = """# What is wrong in shipping backends

Found by `npudiff check --backend NAME` on the [virtual NPU](virtual-npu.md), each looked at by hand. Nothing of this
ran on a card. A defect contradicts *documentation* (of the operator, or of the model whose layer it is, as the
reference has it), the backend's own *native path*, or *itself*: another of its paths that serves the same call. What
only a card can decide stands apart.

This page is written by `python -m benchmarks.backend_report` from `docs/backends/NAME.toml`, as are the files of known
issues with which the [gate](gate-your-ci.md) of everything else is green: a change that mends a defect has to remove
its entries.
"""


@dataclass(frozen=True)
class Seen:
    """A function in which a defect shows."""

    implementation: str
    case: str
    """The smallest case, as JSON."""
    line: str
    """The case in words."""
    where: tuple[str, ...] = ()
    """The cases that fail, as after ``--where``."""
    instead: tuple[str, ...] = ()
    """What makes inputs those to which the function gives the right answer, where that is all that is wrong."""
    property: str = ""
    """The property that fails, where not all do."""
    intermittent: bool = False
    """Whether a gate's few cases of the region may miss it."""


@dataclass(frozen=True)
class Defect:
    """A defect of a backend."""

    name: str
    title: str
    component: str
    source: str
    """File and function."""
    contradicts: tuple[str, ...]
    why: str
    """How it was confirmed."""
    fix: str
    """In a sentence."""
    versions: tuple[str, ...]
    """In which it was seen."""
    seen: tuple[Seen, ...]
    card: bool = False
    """Whether only a card can decide."""
    choice: bool = False
    """Whether it is a precision that a backend chose, and another than the contract's."""


@dataclass(frozen=True)
class Report:
    """The defects of a backend."""

    name: str
    title: str
    link: str
    """Address of the sources at the version that was looked at, before the path of a file."""
    expires: str
    """Day up to which its known issues are accepted."""
    defects: tuple[Defect, ...]


def read_report(path: Path) -> Report:
    """Read the defects of a backend.

    Raises
    ------
    ValueError
        If an entry has a key too many or too few, or contradicts something else.
    """
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    defects = []
    for entry in content.pop("defect", ()):
        seen = tuple(_made(Seen, one, f"{path.name}: {entry.get('name')}") for one in entry.pop("seen", ()))
        defect = _made(Defect, {**entry, "seen": seen}, f"{path.name}: {entry.get('name')}")
        if not seen or not defect.contradicts or set(defect.contradicts) - set(AGAINST):
            raise ValueError(f"{path.name}: {defect.name}: seen nowhere, or contradicts nothing of {AGAINST}")
        defects.append(defect)
    report: Report = _made(Report, {**content, "name": path.stem, "defects": tuple(defects)}, path.name)
    return report


def _made(kind: Any, entry: Mapping[str, Any], place: str) -> Any:
    known = {one.name for one in fields(kind)}
    if set(entry) - known:
        raise ValueError(f"{place}: unknown keys {sorted(set(entry) - known)}")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()})
    except TypeError as error:
        raise ValueError(f"{place}: {error}") from None


def reports() -> list[Report]:
    """Return the reports of all backends."""
    return [read_report(path) for path in sorted(FOLDER.glob("*.toml")) if not path.name.startswith("known_issues_")]


def page(all_reports: Sequence[Report]) -> str:
    """Return the page."""
    return _HEAD + "".join(_section(report) for report in all_reports)


def _section(report: Report) -> str:
    defects = [one for one in report.defects if not one.card and not one.choice]
    apart = {
        "what only a card can decide": [one for one in report.defects if one.card],
        "another precision than the contract's": [one for one in report.defects if one.choice],
    }
    parts = [f"\n## {report.title}\n\n{len(defects)} defects.\n", *(_entry(one, report) for one in defects)]
    for title, others in apart.items():
        parts += [f"\n## {report.title}: {title}\n", *(_entry(one, report) for one in others)] if others else []
    return "".join(parts)


def _entry(defect: Defect, report: Report) -> str:
    file, _, function = defect.source.partition(": ")
    lines = [
        f"- contradicts {', '.join(defect.contradicts)}: {defect.why}",
        f"- [{function}]({report.link}/{file}) of {', '.join(defect.versions)}; `{defect.name}`",
        f"- mend: {defect.fix}",
        *(f"- `{defect.component}.{one.implementation}`: {one.line}{_instead(one)}" for one in defect.seen),
    ]
    return f"\n### {defect.title}\n\n" + "\n".join(map(_wrapped, lines)) + "\n"


def _instead(seen: Seen) -> str:
    """What is computed, where that is known."""
    return f"; what it gives is right for inputs with `{', '.join(seen.instead)}`" if seen.instead else ""


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 140, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def known_issues(report: Report) -> str:
    """Return the file of known issues of a backend."""
    head = f"# Known defects of {report.title}: docs/backends.md says what each is.\n"
    head += f"# Written from docs/backends/{report.name}.toml by python -m benchmarks.backend_report.\n"
    return head + "".join(_issue(one, defect, report) for defect in report.defects for one in defect.seen)


def _issue(seen: Seen, defect: Defect, report: Report) -> str:
    file = defect.source.partition(": ")[0]
    values: dict[str, Any] = {"component": defect.component, "implementation": seen.implementation}
    if seen.property:
        values["property"] = seen.property
    if seen.where:
        values["where"] = list(seen.where)
    if seen.instead:
        values["instead"] = list(seen.instead)
    values |= {"case": seen.case, "link": f"{report.link}/{file}", "reason": f"{defect.name}: {defect.title}"}
    if seen.intermittent:
        values["intermittent"] = True
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join(["\n[[issue]]", *lines, f"expires = {report.expires}", ""])


def draft(folder: Path) -> Iterator[str]:
    """Yield the findings of a folder by cause, as entries to complete."""
    found = [
        LoggedFinding(read_finding(path.parent, tensors=False), path.parent, "")
        for path in sorted(folder.glob(f"*/{FINDING_FILE}"))
    ]
    for group in by_cause(found):
        first = group[0].finding
        said = first.detail.get("error") or "; ".join(first.detail.get("pattern") or [])
        yield f"\n# {first.verdict}: {said}\n# contradicts {'; '.join(contradicted(first))}\n"
        yield f'[[defect]]\nname = ""\ntitle = ""\ncomponent = "{first.component}"\nsource = ""\n'
        yield 'contradicts = []\nwhy = ""\nfix = ""\nversions = []\n'
        for one in group:
            yield from _seen(one)


def _seen(one: LoggedFinding) -> Iterator[str]:
    finding = one.finding
    if finding.property_name != "equivalence" and "error" not in finding.detail:
        yield f"# also {finding.implementation} · {finding.property_name}\n"
        return
    yield f'[[defect.seen]]  # {finding.property_name}\nimplementation = "{finding.implementation}"\n'
    yield f"where = {json.dumps(list(finding.detail.get('region') or ()))}\n"
    yield f"case = {json.dumps(dumps(dict(finding.case)), ensure_ascii=False)}\n"
    yield f"line = {json.dumps(finding.detail.get('line', ''), ensure_ascii=False)}\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page and the files of known issues; or print drafts of the findings in folders."""
    if arguments:
        for folder in arguments:
            print("".join(draft(Path(folder))))
        return 0
    every = reports()
    PAGE.write_text(page(every), encoding="utf-8")
    for report in every:
        (FOLDER / f"known_issues_{report.name}.toml").write_text(known_issues(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
