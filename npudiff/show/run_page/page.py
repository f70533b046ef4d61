"""The page of one or more runs, with what a reader needs first at the top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from npudiff.show.rendering import counted, number, render
from npudiff.show.run_page.findings import PageLinks, findings_by_implementation
from npudiff.show.run_page.margins import margins_of
from npudiff.show.run_page.matrix import matrix_of
from npudiff.show.run_page.read import StoredRun
from npudiff.show.run_page.regions import regions_of
from npudiff.show.run_page.state import State, count_findings


def run_page(runs: Sequence[StoredRun], problems: Sequence[str], strays: Sequence[str], page: Path) -> str:
    """Return the page.

    Parameters
    ----------
    runs : sequence of StoredRun
        The runs, the earliest first.
    problems : sequence of str
        A line for each record that was not read.
    strays : sequence of str
        Folders of findings that no record names.
    page : pathlib.Path
        File of the page: links are relative to it.
    """
    state = State(runs)
    links = PageLinks(page)
    return render(
        "run.html",
        title="npudiff report",
        state=state,
        verdict=verdict_of(state),
        findings=count_findings(state.jobs),
        implementations=findings_by_implementation(state, links),
        matrix=matrix_of(state),
        margins=margins_of(state),
        regions=regions_of(state),
        earlier=links.rows(state.earlier),
        strays=strays,
        problems=problems,
    )


class PageVerdict(NamedTuple):
    """The result of all runs in one sentence, and its CSS class."""

    text: str
    kind: str


def verdict_of(state: State) -> PageVerdict:
    """Return the result of all runs."""
    missed, due = len(state.missed), sum(issue.known.closes for issue in state.known)
    rest = []
    if missed:
        rest.append(f"{counted(missed, 'mutant')} that had to be found {'was' if missed == 1 else 'were'} missed.")
    if due:
        rest.append(f"{counted(due, 'known issue')} {'has' if due == 1 else 'have'} to be looked at.")
    accused = sum(any(count_findings(results) for results in cells.values()) for cells in state.by_subject.values())
    if accused:
        of = f"{number(accused)} of {counted(len(state.by_subject), 'implementation')}"
        return PageVerdict(" ".join((f"{counted(count_findings(state.jobs), 'finding')} in {of}.", *rest)), "no")
    if not state.cases:
        return PageVerdict("Nothing ran: nothing is known.", "few")
    if rest:
        return PageVerdict(f"No findings, but {' '.join(rest)}", "no")
    text = f"Every property held, in {number(sum(result.job.cases for result in state.jobs))} cases"
    without = {name for result in state.jobs for name in result.job.without}
    if without:
        text += f", without those of {counted(len(without), 'known issue')}"
    if any(result.job.verdict == "not run" and not result.job.without for result in state.jobs):
        return PageVerdict(f"{text}; some were not run.", "few")
    return PageVerdict(f"{text}.", "yes")
