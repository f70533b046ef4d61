"""Writes the folder of a finding, and its page: the words, the pictures, and the command that replays it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npudiff.files.writing import reason, remove_file, write_file
from npudiff.findings.evidence import coordinates_of, findings_of
from npudiff.findings.finding import (
    REPRODUCE_TENSORS,
    SCRIPT_FILE,
    TENSOR_FILE,
    Finding,
    plain_finding,
    write_finding,
)
from npudiff.findings.picture import PICTURE_FILE, Grid, grid_of, write_pictures
from npudiff.findings.reproduce import reproduction
from npudiff.model.comparison import OutputComparison
from npudiff.model.outcome import Failure, Outcome
from npudiff.run.messages import Keep, Kept
from npudiff.show.picture import drawn
from npudiff.show.rendering import SafeHtml, render
from npudiff.show.report import NO_SCRIPT, finding_lines, is_command

PAGE_FILE = "finding.html"


def keep_findings(outcome: Outcome, root: Path) -> list[tuple[Finding, Path]]:
    """Write the findings of an outcome below ``root``, each in a folder with its page; return findings and folders.

    Raises
    ------
    OSError
        If that cannot be done.
    """
    kept = [_write(outcome, finding, failure, root) for finding, failure in findings_of(outcome)]
    outcome.settle()
    return kept


def keeper(root: Path) -> Keep:
    """Return what writes findings below ``root`` as ``keep_findings`` does, for runs to call where the tensors are.

    On a full disk a finding is written without what its case can make again, and told if not even that is possible.
    """

    def keep(outcome: Outcome) -> list[Kept]:
        return [_kept(outcome, finding, failure, root) for finding, failure in findings_of(outcome)]

    return keep


def _kept(outcome: Outcome, original: Finding, failure: Failure | None, root: Path) -> Kept:
    try:
        finding, folder = _write(outcome, original, failure, root)
    except OSError as error:
        bare = replace(original, detail={**original.detail, "script": f"{NO_SCRIPT}it could not be written"})
        folder = root / bare.key
        problem = reason(error)
        try:
            for name in (TENSOR_FILE, SCRIPT_FILE, REPRODUCE_TENSORS, PICTURE_FILE, PAGE_FILE):
                remove_file(folder / name, within=root)
            write_finding(bare, None, root)
        except OSError:
            return Kept(plain_finding(bare), folder, problem, written=False)
        return Kept(_told(bare, folder), folder, problem)
    return Kept(_told(finding, folder), folder)


def _told(finding: Finding, folder: Path) -> dict[str, Any]:
    return plain_finding(replace(finding, command=finding.replay_command(folder)))


def _write(outcome: Outcome, original: Finding, failure: Failure | None, root: Path) -> tuple[Finding, Path]:
    """Write the folder of a finding, with all that belongs there."""
    script = reproduction(outcome, original, failure)
    why_not = "" if script.text else f"{NO_SCRIPT}{script.why_not}"
    finding = replace(original, detail={**original.detail, "script": why_not})
    folder = write_finding(finding, failure, root, script)
    pictures, defects = _pictures(outcome, failure)
    write_pictures(folder, [(caption, grid) for caption, grid, _ in pictures])
    drawings = [(caption, drawing) for caption, _, drawing in pictures]
    write_file(folder / PAGE_FILE, finding_page(finding, folder, drawings, defects), within=root)
    return finding, folder


Picture = tuple[str, Grid, SafeHtml]
"""Caption, grid and drawing."""


def _pictures(outcome: Outcome, failure: Failure | None) -> tuple[list[Picture], list[str]]:
    """Return the pictures of a finding, and a line for each that could not be drawn: a finding is kept without it."""
    pictures: list[Picture] = []
    defects: list[str] = []
    for caption, pictured in _failures(outcome, failure):
        for output in () if pictured.comparison is None else pictured.comparison.outputs:
            try:
                pictures += _picture(outcome, pictured, output, caption, len(pictures))
            except Exception as error:  # noqa: BLE001 - whatever it is, the finding is worth more
                text = f"{type(error).__name__}: {error}"
                defects.append(f"{output.name}, {caption}: npudiff could not draw it, please report: {text}")
    return pictures, defects


def _failures(outcome: Outcome, failure: Failure | None) -> list[tuple[str, Failure]]:
    """Return the failures that are drawn: the case as it was found, whose pattern is clearer, and the smallest."""
    if failure is None:
        return []
    first = outcome.first_failure
    return [
        *([] if first is None or first.case == failure.case else [("as it was found", first)]),
        ("the smallest case", failure),
    ]


def _picture(
    outcome: Outcome, failure: Failure, output: OutputComparison, caption: str, number: int
) -> Iterator[Picture]:
    """Yield the picture of an output, if it is wrong and has elements."""
    if output.worst > 1 and output.ratio is not None:
        component = outcome.job.subject.component
        grid = grid_of(output, coordinates_of(component, component.inputs(failure.case), output))
        if grid is not None:
            yield f"{output.name}, {caption}: {component.describe(failure.case)}", grid, drawn(grid, number)


def finding_page(
    finding: Finding, folder: Path, pictures: Sequence[tuple[str, SafeHtml]], defects: Sequence[str] = ()
) -> str:
    """Return the page of a finding.

    Parameters
    ----------
    finding : Finding
        The finding.
    folder : pathlib.Path
        Its folder, as the command that replays it names it.
    pictures : sequence of (str, SafeHtml)
        Captions and drawings.
    defects : sequence of str
        A line for each picture that could not be drawn.
    """
    return render(
        "finding.html",
        title=f"{finding.component}.{finding.implementation}: {finding.property_name}: {finding.verdict}",
        lines=[(label, text, is_command(label, text)) for label, text in finding_lines(finding, folder)],
        pictures=pictures,
        defects=defects,
        case_lines=json.dumps(dict(finding.case), indent=1).splitlines(),
        environment={"target": finding.target, "CANN": finding.cann, **finding.environment},
    )
