"""``npudiff gate``: run the gate of a CI job, and tell everybody who wants to know."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from npudiff.commands.check import note_findings, request_of
from npudiff.errors import ExitCode, UsageError
from npudiff.files.unwritten import Unwritten
from npudiff.files.writing import FINDINGS, JOURNALS, KNOWN, begin_output, check_output, write_file
from npudiff.findings.causes import by_cause
from npudiff.findings.log import NotEnded
from npudiff.findings.shared import plan_with_shared
from npudiff.gate.changes import changed_since, touched_by
from npudiff.gate.github import summary, workflow_commands
from npudiff.gate.host import machine_of
from npudiff.gate.known import FILE, KnownIssue, read_known
from npudiff.gate.known_issue_template import draft
from npudiff.gate.problems import problems_of
from npudiff.gate.result import GateResult, KnownStatus, Part
from npudiff.gate.rotation import rotation_of
from npudiff.gate.run import GateConfig, run_gate
from npudiff.gate.sarif import sarif
from npudiff.gate.triage import Triage, only, triage
from npudiff.model.backend import wished
from npudiff.run.events import Event, JobEnded, RunEnded
from npudiff.run.isolation.journal import left_behind
from npudiff.run.plan import Plan
from npudiff.show.console import Console
from npudiff.show.junit import junit
from npudiff.show.problems import Level, Problem
from npudiff.show.progress import RunProgress
from npudiff.show.run_content import run_content
from npudiff.show.run_page.record import KnownRecord
from npudiff.show.run_page.write import RecordKeeper, RunSummary, known_record
from npudiff.show.source_location import root_of_files
from npudiff.text import clipped, listed, printable, say

JUNIT, SARIF, SUMMARY, DRAFT = "junit.xml", "npudiff.sarif", "summary.md", "known_issues.draft.toml"
"""Files that each gate leaves in its output folder."""


def gate(options: argparse.Namespace) -> int:
    """Run ``npudiff gate`` and return its exit code."""
    check_output(options.output)
    today = dt.datetime.now(dt.timezone.utc).date()
    plan = plan_with_shared(replace(request_of(options, options.budget), hypothesis_profile="ci"))
    file, issues = _known(options.known, today)
    sorted_out = triage(plan, issues, machine_of(plan.target, issues), today, str(file))
    result = GateResult(plan, rotation_of(options.rotation), options.budget, file)
    touched = _touched(plan, options, result)
    if options.only_touched and touched:
        sorted_out = only(sorted_out, touched)
        result.notes.append("nothing else is run")
    console = Console(verbose=options.verbose)
    console.header(plan)
    console.left_behind(left_behind(options.output / JOURNALS))
    console.lines([f"budget {options.budget:.0f} s · rotation {result.rotation}", *result.notes])
    begin_output(options.output)
    told = _Told(result, sorted_out, options.output)
    if options.json is not None:
        options.json.content = told.content
    config = GateConfig(
        sorted_out,
        touched,
        options.rotating,
        options.output / FINDINGS,
        options.output / KNOWN,
        [told, RunProgress(console.rich, seconds=options.budget)],
    )
    try:
        run_gate(result, config)
    finally:  # what was seen before is not lost, whatever ended the run
        told.close(console)
    return told.unwritten.code(result.code)


class _Told:
    """Keeps the files of a gate up to date while it runs, so that one that is killed leaves none that is green.

    It is a listener, after the gate itself.
    """

    def __init__(self, result: GateResult, sorted_out: Triage, folder: Path) -> None:
        self._result, self._sorted_out, self._folder = result, sorted_out, folder
        self._began = time.time()
        self._error: BaseException | None = NotEnded()
        self.unwritten = Unwritten()
        self._record = RecordKeeper(self._summary, folder, self.unwritten)
        _write_reports(result, folder, Unwritten())  # what cannot be written is told at the end, if it is still so

    def __call__(self, event: Event) -> None:
        """Write what there is so far, if there is a new finding."""
        self._record(event)
        if isinstance(event, RunEnded):
            self._error = event.error
        elif isinstance(event, JobEnded) and event.kept and event.stage != Part.KNOWN.value:  # those change nothing yet
            _write_reports(self._result, self._folder, Unwritten())

    def close(self, console: Console) -> None:
        """Tell everybody what came of it."""
        self._record.close()
        try:
            _tell(self._result, console, self._folder, self.unwritten)
        finally:
            note_findings(self._result.findings, self.unwritten)
            self.unwritten.tell()

    def content(self) -> dict[str, Any]:
        """Return what the document of a gate says, so far."""
        result = self._result
        said = run_content(self._summary(), result.findings, dict(result.unjudged), self.unwritten.lines)
        parts = {one.finding.key: (one.stage, one.warns) for one in result.findings}
        for finding in said["findings"]:
            finding["part"], finding["warns"] = parts[finding["key"]]
        known = [
            {**asdict(_known_record(status)), "state": status.state.value, "why": status.why} for status in result.known
        ]
        return {
            **said,
            "gate": {
                "verdict": result.verdict,
                "open": result.code is ExitCode.CLEAN,
                "known_issues": known,
                "unfinished": list(result.unfinished),
                "notes": list(result.notes),
                "rotation": result.rotation,
                "turns": result.turns,
                "files": [str(self._folder / name) for name in (JUNIT, SARIF, SUMMARY, DRAFT)],
            },
        }

    def _summary(self) -> RunSummary:
        """What a record is made of, from which ``npudiff report`` makes a page."""
        result, without = self._result, dict[str, list[str]]()
        for issue, jobs in self._sorted_out.again:
            for job in jobs:
                without.setdefault(job.name, []).append(issue.name)
        return RunSummary(
            result.plan,
            [outcome for _, outcome in result.outcomes],
            (),
            [(told.finding, told.folder) for told in result.findings],
            self._began,
            time.time() - self._began,
            self._error,
            command="gate",
            without=without,
            known=[_known_record(one) for one in result.known],
            gate=result.verdict,
        )


def _known(given: Path | None, today: dt.date) -> tuple[Path | None, list[KnownIssue]]:
    """The file of known issues and what it says; where none is named, that of the usual name if it is there."""
    path = given or Path(FILE)
    if given is None and not path.exists():
        return None, []
    return path, read_known(path, today)


def _touched(plan: Plan, options: argparse.Namespace, result: GateResult) -> frozenset[tuple[str, str]]:
    """Implementations that come first, since a change touches them; what is said of it goes to the notes."""
    if options.since is None:
        if options.touches or options.only_touched:
            name = (
                "--touches says what changed files touch" if options.touches else "--only-touched runs what they touch"
            )
            raise UsageError(f"{name}, and needs --since")
        return frozenset()
    checkouts = [wish.checkout for wish in wished(options.impl) if wish.checkout is not None]
    change = changed_since(options.since, checkouts[0] if checkouts else Path.cwd())
    touched = touched_by(change, plan, options.touches)
    names = [".".join(name) for name in sorted(touched.implementations)]
    first = f"first {listed(names, 'implementation')}" if names else "nothing that comes first"
    result.notes.append(f"since {printable(options.since)}: {len(change.files)} files have changed; {first}")
    if touched.unknown:
        unknown = printable(listed(touched.unknown, "file"))
        result.notes.append(clipped(f"no implementation is known to use {unknown} (--touches says which do)"))
    return touched.implementations


def _tell(result: GateResult, console: Console, folder: Path, unwritten: Unwritten) -> None:
    """Tell what was seen: on the console, in files, and to GitHub where this is a step of a job of it."""
    problems, text = _write_reports(result, folder, unwritten)
    with unwritten.trying(DRAFT, asked=True):
        write_file(folder / DRAFT, draft([told.finding for told in result.findings]), within=folder)
    _show(result, problems, console, folder)
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        step = Path(os.environ["GITHUB_STEP_SUMMARY"])  # of GitHub's runner, where others of this step may have written
        with unwritten.trying(str(step)), step.open("a", encoding="utf-8") as file:
            file.write(text)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in workflow_commands(problems):
            say(line)


def _write_reports(result: GateResult, folder: Path, unwritten: Unwritten) -> tuple[Sequence[Problem], str]:
    """Write the files of a gate; return its problems, and its summary as Markdown."""
    root = root_of_files()
    problems = problems_of(result, root)
    text = summary(result, problems)
    for name, content in ((JUNIT, _junit(result, problems, root)), (SARIF, sarif(result, problems)), (SUMMARY, text)):
        with unwritten.trying(name, asked=True):
            write_file(folder / name, content, within=folder)
    return problems, text


def _junit(result: GateResult, problems: Sequence[Problem], root: Path) -> str:
    return junit(result.plan.jobs, (one for _, one in result.outcomes), problems, root, result.seconds)


def _known_record(status: KnownStatus) -> KnownRecord:
    issue, why = status.issue, "" if status.why == status.issue.link else status.why
    said = f"{status.state.value}: {why}" if why else status.state.value
    return known_record(issue.name, said, closes=status.state.closes, link=issue.link, expires=str(issue.expires))


def _show(result: GateResult, problems: Sequence[Problem], console: Console, folder: Path) -> None:
    console.table([outcome for outcomes in result.by_implementation().values() for outcome in outcomes])
    for told, *rest in by_cause(result.findings):
        console.finding(told.finding, told.folder, unwritten=told.unwritten)
        console.lines([f"  part       {told.stage}" + (", told only" if told.warns else "")])
        console.findings_again(told.finding, rest)
    rules = ("known-issue", "unfinished", "not-judged")
    others = [one for one in problems if one.rule in rules or one.level is Level.NOTE]
    console.lines(["", *(f"{one.level.value:8} {clipped(one.title)}" for one in others)])
    if result.turns:
        console.lines([f"{result.turns} turns of rotation {result.rotation}; --rotation repeats them"])
    if result.findings:
        console.lines([f"to accept findings for a while, complete the entries of {folder / DRAFT}"])
    style = "green" if result.code is ExitCode.CLEAN else "red"
    console.verdict(f"{result.cases} cases in {result.seconds:.1f} s · gate {printable(result.verdict)}", style)
