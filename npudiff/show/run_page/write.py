"""Makes the record of a run from its outcomes."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from npudiff.errors import DeviceLost
from npudiff.files.unwritten import Unwritten
from npudiff.files.writing import FINDINGS
from npudiff.findings.finding import Finding, environment, finding_of_plain
from npudiff.findings.log import NotEnded, RunLog
from npudiff.model.job import Job, Outcome
from npudiff.model.version import VERSION
from npudiff.run.events import Event, JobEnded, RunEnded
from npudiff.run.messages import Kept
from npudiff.run.plan import Plan
from npudiff.show.run_page import record
from npudiff.show.run_page.record import (
    Count,
    Ended,
    EnvironmentEntry,
    FindingRecord,
    JobRecord,
    KnownRecord,
    MutantRecord,
    RunRecord,
)
from npudiff.show.run_page.record_file import plain, write_record
from npudiff.text import clipped, complain

WRITTEN_EVERY = 5.0
"""Seconds after which a record that is kept up to date is written again, if there is no finding."""

MOST_OF_A_RUN = 0.01
"""Part of the time of a run that writing its record may take, while it goes on."""


@dataclass(frozen=True)
class RunSummary:
    """What a record is made of."""

    plan: Plan
    """The jobs of the run."""
    outcomes: Sequence[Outcome]
    mutants: Sequence[Outcome]
    """Outcomes of the jobs and mutants that were run, so far."""
    findings: Sequence[tuple[Finding, Path]]
    """Findings, and their folders; those that are not in a folder ``findings`` are left out."""
    started: float
    """When it began, as ``time.time()`` says it."""
    seconds: float
    """How long it took."""
    error: BaseException | None = None
    """The exception that ended the run."""
    case: str | None = None
    """The one case that was run, as JSON."""
    command: str = "check"
    """The command that ran it."""
    without: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Known issues whose cases were left out, by the name of the job."""
    known: Sequence[KnownRecord] = ()
    """Known issues."""
    gate: str = ""
    """Result of the gate."""


def summary_of(log: RunLog, **more: Any) -> RunSummary:  # noqa: ANN401 - the other fields
    """Return the summary of a run that was logged."""
    findings = [(one.finding, one.folder) for one in log.findings]
    return RunSummary(log.plan, log.outcomes, log.mutants, findings, log.started, log.seconds, log.error, **more)


def plain_record_of(
    plan: Plan, outcome: Outcome, kept: Sequence[Kept], started: float, *, command: str
) -> dict[str, Any]:
    """Return the record of one job, or mutant, of a plan as plain values, as a part of the record of a run."""
    is_mutant = plan.is_mutant(outcome.job)
    one = replace(plan, jobs=() if is_mutant else (outcome.job,), mutants=(outcome.job,) if is_mutant else ())
    outcomes, mutants = ([], [outcome]) if is_mutant else ([outcome], [])
    findings = [(finding_of_plain(one.content), one.folder) for one in kept]
    summary = RunSummary(one, outcomes, mutants, findings, started, outcome.seconds, command=command)
    return plain(record_of(summary))


class RecordKeeper:
    """Keeps the record of a run up to date, so that a run that is killed leaves one too: a listener.

    Parameters
    ----------
    summary : callable
        Returns what there is so far.
    root : pathlib.Path
        Output folder.
    unwritten : Unwritten
        Told at the end if the record cannot be written.
    """

    def __init__(self, summary: Callable[[], RunSummary], root: Path, unwritten: Unwritten) -> None:
        self._summary, self._root, self._unwritten = summary, root, unwritten
        self._path: Path | None = None
        self._written, self._took, self._owed = -math.inf, 0.0, False

    def __call__(self, event: Event) -> None:
        """Write the record, at once if there is a finding; with thousands of them that would take most of a run."""
        self._owed = self._owed or (isinstance(event, JobEnded) and bool(event.kept))
        began = time.monotonic()
        wait = max(self._took / MOST_OF_A_RUN, 0.0 if self._owed else WRITTEN_EVERY)
        if not isinstance(event, RunEnded) and began - self._written > wait:
            with contextlib.suppress(OSError):  # told at the end, if it is still so
                self._write()
            self._written = time.monotonic()
            self._took, self._owed = self._written - began, False

    def close(self) -> None:
        """Write the record of a run that is over."""
        with self._unwritten.trying("the record of the run"):
            self._write()

    def _write(self) -> None:
        """Write it, or a line to standard error if something other than the disk fails: the findings are worth more."""
        try:
            self._path = write_record(record_of(self._summary()), self._root, self._path)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the run's own end must be seen
            complain(f"the record of the run was not written: {type(error).__name__}: {error}")


def record_of(summary: RunSummary) -> RunRecord:
    """Return the record of a run."""
    target = summary.plan.target
    names: dict[tuple[str, str, str], list[str]] = {}
    findings = [(finding, folder) for finding, folder in summary.findings if folder.parent.name == FINDINGS]
    for finding, folder in findings:
        key = (finding.component, finding.implementation, finding.property_name)
        names.setdefault(key, []).append(folder.name)
    done: dict[str, list[Outcome]] = {}
    for outcome in summary.outcomes:
        done.setdefault(outcome.job.name, []).append(outcome)
    missing = [job for job in summary.plan.jobs if job.name not in done] if summary.case is None else []
    error = summary.error
    jobs = [(name, _job(outcomes, names)) for name, outcomes in done.items()]
    jobs += [(job.name, _not_run(job)) for job in missing]
    without = {name: tuple(_text(one, record.MOST_LINE) for one in known) for name, known in summary.without.items()}
    return RunRecord(
        npudiff=VERSION,
        command=summary.command,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(summary.started)),
        seconds=round(summary.seconds, 3),
        ended="complete" if error is None else _ended(error),
        problem="" if error is None else _problem(error),
        environment=tuple(EnvironmentEntry(name, _text(text)) for name, text in environment().items()),
        target=_text(target.name),
        device=_text(target.device),
        cann=_text(target.cann),
        **_options(summary),
        jobs=tuple(replace(job, without=without.get(name, ())) for name, job in jobs),
        findings=tuple(_finding(finding, folder) for finding, folder in findings),
        mutants=tuple(_mutant(outcome) for outcome in summary.mutants),
        known=tuple(summary.known),
        gate=_text(summary.gate),
    )


def _options(summary: RunSummary) -> dict[str, Any]:
    """Return the options of the run: how cases were drawn, and what it was narrowed to."""
    request = summary.plan.request
    model = [f"--model {request.model}"] if request.model else []
    only = [f"--case {summary.case}"] if summary.case is not None else []
    where = [f"--where {one}" for one in request.where]
    return {
        "profile": request.hypothesis_profile,
        "seed": _option(request.seed),
        "examples": _option(request.examples),
        "budget": _option(request.seconds),
        "scope": tuple(_text(one) for one in (*model, *where, *only)),
        "judged": summary.plan.judges_mutants and summary.case is None,
    }


def _problem(error: BaseException) -> str:
    """Return the first and the last line of an error."""
    lines = f"{type(error).__name__}: {error}".splitlines()
    return _text(" ... ".join(dict.fromkeys((lines[0].strip(), lines[-1].strip()))))


def _ended(error: BaseException) -> Ended:
    if isinstance(error, DeviceLost):
        return "device lost"
    return "interrupted" if isinstance(error, KeyboardInterrupt | BrokenPipeError | NotEnded) else "defect"


def _option(value: object) -> str:
    return "" if value is None else clipped(str(value), 40)


def _text(text: str, most: int = record.MOST_TEXT) -> str:
    return clipped(str(text), most)


def _counts(counter: Counter[str], most: int) -> tuple[Count, ...]:
    return tuple(Count(_text(name), number) for name, number in counter.most_common(most))


def _job(outcomes: Sequence[Outcome], names: dict[tuple[str, str, str], list[str]]) -> JobRecord:
    """Return the record of a job; of outcomes on different cases, one that failed comes first."""
    key = _key(outcomes[0].job)
    told = max(outcomes, key=lambda one: (one.failure is not None, one.found, one.cases > 0))
    worst = max(outcomes, key=lambda one: one.worst_ratio)
    reasons = sum((one.not_applicable for one in outcomes), Counter[str]())
    features = sum((one.features for one in outcomes), Counter[str]())
    describe = told.job.subject.component.describe
    return JobRecord(
        *key,
        verdict=told.verdict.value,
        cases=sum(one.cases for one in outcomes),
        steps=sum(one.steps for one in outcomes),
        not_applicable=reasons.total(),
        reasons=_counts(reasons, record.MOST_REASONS),
        features=_counts(features, record.MOST_FEATURES),
        worst=float(worst.worst_ratio),
        worst_case="" if worst.worst_case is None else _text(describe(worst.worst_case)),
        held=sum(one.cases - (one.failure is not None) for one in outcomes),
        exact=all(one.exact for one in outcomes if one.cases),
        seconds=round(sum(one.seconds for one in outcomes), 3),
        flaky=told.flaky,
        alone=told.alone,
        findings=tuple(dict.fromkeys(names.get(key, ()))),
    )


def _not_run(job: Job) -> JobRecord:
    return JobRecord(*_key(job), verdict="not run")


def _key(job: Job) -> tuple[str, str, str]:
    return (_text(job.subject.component.name), _text(job.subject.implementation.name), _text(job.prop.name))


def _finding(finding: Finding, folder: Path) -> FindingRecord:
    line = _text(str(finding.detail.get("line", "")), record.MOST_LINE)
    return FindingRecord(
        folder.name,
        _text(finding.component),
        _text(finding.implementation),
        _text(finding.property_name),
        _text(finding.verdict),
        line,
        _text(str(finding.detail.get("error") or line), record.MOST_LINE),
    )


def known_record(name: str, state: str, *, closes: bool, link: str, expires: str) -> KnownRecord:
    """Return the record of a known issue, with texts clipped to their limits."""
    return KnownRecord(_text(name, record.MOST_LINE), _text(state, record.MOST_LINE), closes, _text(link), expires)


def _mutant(outcome: Outcome) -> MutantRecord:
    subject, failure = outcome.job.subject, outcome.failure
    return MutantRecord(
        *_key(outcome.job),
        wrong=_text(subject.implementation.wrong or ""),
        found=outcome.found,
        cases=outcome.cases,
        seconds=round(outcome.seconds if failure is None else outcome.seconds_to_failure, 3),
        smallest="" if failure is None else _text(subject.component.describe(failure.case)),
    )
