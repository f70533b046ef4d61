"""A finding as a page: what is wrong in words, the picture of where, and the line that replays it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path

from npudiff.evidence import coordinates_of, findings_of
from npudiff.findings import Finding, write_finding
from npudiff.html_page import page_of
from npudiff.outcome import Failure, Outcome
from npudiff.picture import picture
from npudiff.report import finding_lines
from npudiff.text import printable

PAGE_FILE = "finding.html"


def keep_findings(outcome: Outcome, root: Path) -> list[tuple[Finding, Path]]:
    """Write all that an outcome has to report below ``root``: a folder per finding, with its page; return both."""
    kept = []
    for finding, failure in findings_of(outcome):
        folder = write_finding(finding, failure, root)
        pictures = list(_pictures(outcome, failure)) if failure is not None else []
        (folder / PAGE_FILE).write_text(finding_page(finding, folder, pictures), encoding="utf-8")
        kept.append((finding, folder))
    outcome.settle()
    return kept


def _pictures(outcome: Outcome, failure: Failure) -> Iterator[tuple[str, str]]:
    """Yield what a picture shows, and the picture: the case as drawn, whose pattern is clearer, and the smallest."""
    component = outcome.job.subject.component
    first = outcome.first_failure
    drawn = [] if first is None or first.case == failure.case else [("as it was found", first)]
    for caption, one in [*drawn, ("the smallest case", failure)]:
        for output in () if one.comparison is None else one.comparison.outputs:
            if output.worst > 1 and output.ratio is not None:
                coordinates = coordinates_of(component, component.inputs(one.case), output)
                yield f"{output.name}, {caption}: {component.describe(one.case)}", picture(output, coordinates)


def finding_page(finding: Finding, folder: Path, pictures: list[tuple[str, str]]) -> str:
    """Return the page of a finding.

    Parameters
    ----------
    finding : Finding
        What it is about.
    folder : pathlib.Path
        Its folder, as the line that replays it names it.
    pictures : list of (str, str)
        Captions, and pictures as SVG.
    """
    title = f"{finding.component}.{finding.implementation}: {finding.property_name}: {finding.verdict}"
    return page_of(printable(title), "".join(_body(finding, folder, pictures)))


def _body(finding: Finding, folder: Path, pictures: list[tuple[str, str]]) -> Iterator[str]:
    yield "<table class=words><tbody>"
    for label, text in finding_lines(finding, folder):
        words = html.escape(printable(text))
        shown = f"<code>{words}</code>" if label == "replay" else words
        yield f"<tr><th scope=row>{html.escape(label)}<td>{shown}</tr>"
    yield "</tbody></table>"
    for caption, drawing in pictures:
        yield f"<h2>Where: {html.escape(printable(caption))}</h2><div class=wide>{drawing}</div>"
    case = json.dumps(dict(finding.case), indent=1)
    yield f"<h2>The case</h2><pre>{html.escape(case)}</pre><h2>Where it ran</h2><table class=words><tbody>"
    for name, value in {"target": finding.target, "CANN": finding.cann, **finding.environment}.items():
        yield f"<tr><th scope=row>{html.escape(str(name))}<td>{html.escape(printable(str(value)))}</tr>"
    yield "</tbody></table>"
