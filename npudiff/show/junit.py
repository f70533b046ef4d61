"""A run as JUnit XML, which every CI system shows: a suite per component, a test per property of an implementation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from npudiff.model.job import Job, Outcome
from npudiff.show.problems import Level, Problem
from npudiff.show.source_location import source_location_of
from npudiff.text import printable

OTHERS = "gate"
"""The suite of what is of no job: known issues, a lost device."""


def junit(
    jobs: Sequence[Job], outcomes: Iterable[Outcome], problems: Sequence[Problem], root: Path, seconds: float
) -> str:
    """Return the report.

    Parameters
    ----------
    jobs : sequence of Job
        What was to be run.
    outcomes : iterable of Outcome
        What was run; a job that ran several times has several.
    problems : sequence of Problem
        What there is to tell.
    root : pathlib.Path
        Folder that files are relative to.
    seconds : float
        Time of the whole run.
    """
    runs: dict[str, list[Outcome]] = {job.name: [] for job in jobs}
    for outcome in outcomes:
        runs[outcome.job.name].append(outcome)
    by_job: dict[str, list[Problem]] = {}
    for problem in problems:
        by_job.setdefault(problem.job if problem.job in runs else "", []).append(problem)
    whole = ET.Element("testsuites", name="npudiff", time=f"{seconds:.3f}")
    suites: dict[str, ET.Element] = {}
    for job in jobs:
        component, item = job.subject.component.name, job.subject.implementation
        if component not in suites:
            suites[component] = ET.SubElement(whole, "testsuite", name=component)
        place = source_location_of(item, root)
        where = {} if place is None else {"file": place.path, "line": str(place.line)}
        seconds = sum(outcome.seconds for outcome in runs[job.name])
        test = ET.SubElement(
            suites[component],
            "testcase",
            {"classname": f"npudiff.{component}.{item.name}", "name": job.prop.name, "time": f"{seconds:.3f}", **where},
        )
        _tell(test, by_job.get(job.name, []), runs[job.name])
    _others(whole, by_job.get("", []))
    for suite in whole:
        _count(suite)
    _count(whole)
    ET.indent(whole)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(whole, encoding="unicode") + "\n"


def _tell(test: ET.Element, problems: Sequence[Problem], runs: Sequence[Outcome]) -> None:
    """Add to a test what became of it; at most one element says how it ended, as readers expect."""
    errors = [problem for problem in problems if problem.level is Level.ERROR]
    notes = [problem for problem in problems if problem.level is not Level.ERROR]
    cases = sum(outcome.cases for outcome in runs)
    if errors:
        failure = ET.SubElement(test, "failure", message=errors[0].title, type=errors[0].rule)
        failure.text = _joined(errors)
    elif not cases:
        reason = notes[0].title if notes else "no case could be run" if runs else "not run"
        ET.SubElement(test, "skipped", message=reason)
    if notes or cases:
        said = ET.SubElement(test, "system-out")
        said.text = "\n".join([f"{cases} cases", *([_joined(notes)] if notes else [])])


def _others(whole: ET.Element, problems: Sequence[Problem]) -> None:
    if problems:
        suite = ET.SubElement(whole, "testsuite", name=OTHERS)
    for problem in problems:
        where: Mapping[str, str] = {}
        if problem.place is not None:
            where = {"file": problem.place.path, "line": str(problem.place.line)}
        names = {"classname": f"npudiff.{OTHERS}.{problem.rule}", "name": problem.title, "time": "0"}
        test = ET.SubElement(suite, "testcase", {**names, **where})
        if problem.level is Level.ERROR:
            ET.SubElement(test, "failure", message=problem.title, type=problem.rule).text = problem.text
        else:
            ET.SubElement(test, "skipped", message=problem.title)


def _joined(problems: Sequence[Problem]) -> str:
    return "\n\n".join(printable(problem.title) + "\n" + problem.text for problem in problems)


def _count(element: ET.Element) -> None:
    """Write down how many tests an element has, and how they ended."""
    tests = list(element.iter("testcase"))
    element.set("tests", str(len(tests)))
    element.set("failures", str(sum(test.find("failure") is not None for test in tests)))
    element.set("errors", "0")
    element.set("skipped", str(sum(test.find("skipped") is not None for test in tests)))
