"""From the outcomes of a run to its record, and the record to a file."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from npudiff.errors import DeviceLost
from npudiff.findings.evidence import environment
from npudiff.findings.finding import Finding, read_finding
from npudiff.findings.log import RunLog
from npudiff.findings.shared import FINDINGS
from npudiff.model.job import Job
from npudiff.model.outcome import Outcome
from npudiff.model.version import VERSION
from npudiff.run.plan import Plan
from npudiff.show.run_page import record
from npudiff.show.run_page.record import (
    Count,
    Ended,
    FindingRecord,
    JobRecord,
    KnownRecord,
    MutantRecord,
    RunRecord,
    Said,
)
from npudiff.show.run_page.record_file import plain, write_record
from npudiff.text import clipped


@dataclass(frozen=True)
class RunSummary:
    """What there is to say of a run."""

    plan: Plan
    """What was to be run."""
    outcomes: Sequence[Outcome]
    mutants: Sequence[Outcome]
    """What was, so far."""
    findings: Sequence[tuple[Finding, Path]]
    """Findings, and their folders; those that are not in a folder ``findings`` are left out."""
    started: float
    """When it began, as ``time.time()`` says it."""
    seconds: float
    """How long it took."""
    error: BaseException | None = None
    """What ended it too early."""
    case: str | None = None
    """The one case that was run, as JSON."""
    command: str = "check"
    """What ran it."""
    without: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By name of a job: known issues whose cases it did not run."""
    known: Sequence[KnownRecord] = ()
    """Known issues."""
    gate: str = ""
    """What the gate came to."""


def summary_of(log: RunLog, **more: Any) -> RunSummary:  # noqa: ANN401 - the other fields
    """Return what there is to say of a run that was logged."""
    findings = [(one.finding, one.folder) for one in log.findings]
    return RunSummary(log.plan, log.outcomes, log.mutants, findings, log.started, log.seconds, log.error, **more)


def plain_record_of(
    plan: Plan, outcome: Outcome, folders: Sequence[Path], started: float, *, command: str
) -> dict[str, Any]:
    """Return the record of one job, or mutant, of a plan as plain values, as a part of the record of a run."""
    is_mutant = outcome.job in plan.mutants
    one = replace(plan, jobs=() if is_mutant else (outcome.job,), mutants=(outcome.job,) if is_mutant else ())
    outcomes, mutants = ([], [outcome]) if is_mutant else ([outcome], [])
    findings = [(read_finding(folder), folder) for folder in folders]
    ran = RunSummary(one, outcomes, mutants, findings, started, outcome.seconds, command=command)
    return plain(record_of(ran))


def keep_record(ran: RunSummary, root: Path) -> None:
    """Write the record of a run; if that fails, say so: what was found is worth more than the record of it."""
    try:
        write_record(record_of(ran), root)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run's own end must be seen
        print(f"npudiff: the record of the run was not written: {type(error).__name__}: {error}", file=sys.stderr)


def record_of(ran: RunSummary) -> RunRecord:
    """Return the record of a run."""
    target = ran.plan.target
    names: dict[tuple[str, str, str], list[str]] = {}
    findings = [(finding, folder) for finding, folder in ran.findings if folder.parent.name == FINDINGS]
    for finding, folder in findings:
        key = (finding.component, finding.implementation, finding.property_name)
        names.setdefault(key, []).append(folder.name)
    done: dict[str, list[Outcome]] = {}
    for outcome in ran.outcomes:
        done.setdefault(outcome.job.name, []).append(outcome)
    missing = [job for job in ran.plan.jobs if job.name not in done] if ran.case is None else []
    error = ran.error
    jobs = [(name, _job(outcomes, names)) for name, outcomes in done.items()]
    jobs += [(job.name, _not_run(job)) for job in missing]
    without = {name: tuple(_text(one, record.MOST_LINE) for one in known) for name, known in ran.without.items()}
    return RunRecord(
        npudiff=VERSION,
        command=ran.command,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ran.started)),
        seconds=round(ran.seconds, 3),
        ended="complete" if error is None else _ended(error),
        problem="" if error is None else _problem(error),
        environment=tuple(Said(name, _text(text)) for name, text in environment().items()),
        target=_text(target.name),
        device=_text(target.device),
        cann=_text(target.cann),
        **_asked_for(ran),
        jobs=tuple(replace(job, without=without.get(name, ())) for name, job in jobs),
        findings=tuple(_finding(finding, folder) for finding, folder in findings),
        mutants=tuple(_mutant(outcome) for outcome in ran.mutants),
        known=tuple(ran.known),
        gate=_text(ran.gate),
    )


def _asked_for(ran: RunSummary) -> dict[str, Any]:
    """What the user said about the draws, and whether the run looked at a part only."""
    request = ran.plan.request
    model = [f"--model {request.model}"] if request.model else []
    only = [f"--case {ran.case}"] if ran.case is not None else []
    where = [f"--where {one}" for one in request.where]
    return {
        "profile": request.hypothesis_profile,
        "seed": _said(request.seed),
        "examples": _said(request.examples),
        "budget": _said(request.seconds),
        "scope": tuple(_text(one) for one in (*model, *where, *only)),
        "judged": ran.plan.judges_mutants and ran.case is None,
    }


def _problem(error: BaseException) -> str:
    """What ended the run, without the traceback: its first line and its last one."""
    lines = f"{type(error).__name__}: {error}".splitlines()
    return _text(" ... ".join(dict.fromkeys((lines[0].strip(), lines[-1].strip()))))


def _ended(error: BaseException) -> Ended:
    if isinstance(error, DeviceLost):
        return "device lost"
    return "interrupted" if isinstance(error, KeyboardInterrupt | BrokenPipeError) else "defect"


def _said(value: object) -> str:
    return "" if value is None else clipped(str(value), 40)


def _text(text: str, most: int = record.MOST_TEXT) -> str:
    return clipped(str(text), most)


def _counts(counter: Counter[str], most: int) -> tuple[Count, ...]:
    return tuple(Count(_text(name), number) for name, number in counter.most_common(most))


def _job(outcomes: Sequence[Outcome], names: dict[tuple[str, str, str], list[str]]) -> JobRecord:
    """The record of a job, which may have run several times on different cases; a failure is what is told of it."""
    key = _key(outcomes[0].job)
    told = max(outcomes, key=lambda one: (one.failure is not None, one.cases > 0))
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
    """Return the record of a known issue, with texts that are not too long for one."""
    return KnownRecord(_text(name, record.MOST_LINE), _text(state, record.MOST_LINE), closes, _text(link), expires)


def _mutant(outcome: Outcome) -> MutantRecord:
    subject, failure = outcome.job.subject, outcome.failure
    return MutantRecord(
        *_key(outcome.job),
        wrong=_text(subject.implementation.wrong or ""),
        found=failure is not None,
        cases=outcome.cases,
        seconds=round(outcome.seconds if failure is None else outcome.seconds_to_failure, 3),
        smallest="" if failure is None else _text(subject.component.describe(failure.case)),
    )
