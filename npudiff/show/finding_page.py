"""A finding as a page: what is wrong in words, the picture of where, and the line that replays it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from npudiff.findings.evidence import coordinates_of, findings_of
from npudiff.findings.finding import Finding, write_finding
from npudiff.findings.picture import Grid, grid_of, write_pictures
from npudiff.findings.reproduce import reproduction
from npudiff.model.comparison import OutputComparison
from npudiff.model.outcome import Failure, Outcome
from npudiff.run.messages import Keep
from npudiff.show.html_page import page_of
from npudiff.show.picture import drawn
from npudiff.show.report import NO_SCRIPT, finding_lines, is_command
from npudiff.text import printable

PAGE_FILE = "finding.html"


def keep_findings(outcome: Outcome, root: Path) -> list[tuple[Finding, Path]]:
    """Write all that an outcome has to report below ``root``: a folder per finding, with its page; return both."""
    kept = []
    for finding, failure in findings_of(outcome):
        script = reproduction(outcome, finding, failure)
        said = replace(finding, detail={**finding.detail, "script": f"{NO_SCRIPT}{script.why_not}" * (not script.text)})
        folder = write_finding(said, failure, root, script)
        pictures, defects = _pictures(outcome, failure)
        write_pictures(folder, [(caption, grid) for caption, grid, _ in pictures])
        drawings = [(caption, drawing) for caption, _, drawing in pictures]
        (folder / PAGE_FILE).write_text(finding_page(said, folder, drawings, defects), encoding="utf-8")
        kept.append((said, folder))
    outcome.settle()
    return kept


def keeper(root: Path) -> Keep:
    """Return what writes findings below ``root`` as ``keep_findings`` does, for runs to call where the tensors are."""
    return lambda outcome: [folder for _, folder in keep_findings(outcome, root)]


Picture = tuple[str, Grid, str]
"""A caption, what is drawn, and the drawing."""


def _pictures(outcome: Outcome, failure: Failure | None) -> tuple[list[Picture], list[str]]:
    """Return pictures, and what went wrong in drawing: a defect there costs a picture, and no finding."""
    pictures: list[Picture] = []
    defects: list[str] = []
    for caption, one in _pictured(outcome, failure):
        for output in () if one.comparison is None else one.comparison.outputs:
            try:
                pictures += _picture(outcome, one, output, caption, len(pictures))
            except Exception as error:  # noqa: BLE001 - whatever it is, the finding is worth more
                seen = f"{type(error).__name__}: {error}"
                defects.append(f"{output.name}, {caption}: npudiff could not draw it, please report: {seen}")
    return pictures, defects


def _pictured(outcome: Outcome, failure: Failure | None) -> list[tuple[str, Failure]]:
    """The case as drawn, whose pattern is clearer, and the smallest."""
    if failure is None:
        return []
    first = outcome.first_failure
    return [
        *([] if first is None or first.case == failure.case else [("as it was found", first)]),
        ("the smallest case", failure),
    ]


def _picture(outcome: Outcome, one: Failure, output: OutputComparison, caption: str, number: int) -> Iterator[Picture]:
    """Yield the picture of an output, if it is wrong and has anything to draw."""
    if output.worst > 1 and output.ratio is not None:
        component = outcome.job.subject.component
        grid = grid_of(output, coordinates_of(component, component.inputs(one.case), output))
        if grid is not None:
            yield f"{output.name}, {caption}: {component.describe(one.case)}", grid, drawn(grid, number)


def finding_page(finding: Finding, folder: Path, pictures: list[tuple[str, str]], defects: Sequence[str] = ()) -> str:
    """Return the page of a finding.

    Parameters
    ----------
    finding : Finding
        What it is about.
    folder : pathlib.Path
        Its folder, as the line that replays it names it.
    pictures : list of (str, str)
        Captions, and pictures as SVG.
    defects : sequence of str
        Why there are no other pictures.
    """
    title = f"{finding.component}.{finding.implementation}: {finding.property_name}: {finding.verdict}"
    return page_of(printable(title), "".join(_body(finding, folder, pictures, defects)))


def _body(finding: Finding, folder: Path, pictures: list[tuple[str, str]], defects: Sequence[str]) -> Iterator[str]:
    yield "<table class=words><tbody>"
    for label, text in finding_lines(finding, folder):
        words = html.escape(printable(text))
        shown = f"<code>{words}</code>" if is_command(label, text) else words
        yield f"<tr><th scope=row>{html.escape(label)}<td>{shown}</tr>"
    yield "</tbody></table>"
    for caption, drawing in pictures:
        yield f"<h2>Where: {html.escape(printable(caption))}</h2><div class=wide>{drawing}</div>"
    for defect in defects:
        yield f"<p>{html.escape(printable(defect))}</p>"
    case = json.dumps(dict(finding.case), indent=1)
    yield f"<h2>The case</h2><pre>{html.escape(case)}</pre><h2>Where it ran</h2><table class=words><tbody>"
    for name, value in {"target": finding.target, "CANN": finding.cann, **finding.environment}.items():
        yield f"<tr><th scope=row>{html.escape(str(name))}<td>{html.escape(printable(str(value)))}</tr>"
    yield "</tbody></table>"
