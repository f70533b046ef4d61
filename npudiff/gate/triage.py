"""Triage of known issues: which ones concern this run, which cases they exclude, and what became of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from npudiff.errors import UsageError, unknown
from npudiff.findings.finding import Finding
from npudiff.gate.known import NOT_JUDGED, KnownIssue
from npudiff.gate.result import KnownStatus, State
from npudiff.gate.versions import Machine
from npudiff.judge.judge import CALL_INDEPENDENCE, EQUIVALENCE, properties_of
from npudiff.judge.others import WAYS_AGREE
from npudiff.model.backend import EVERY, wished
from npudiff.model.case import loads
from npudiff.model.component import Component
from npudiff.model.constraints import Axis, Box, Constraints, Exclusion, allows
from npudiff.model.instead import Instead
from npudiff.model.job import Job, Outcome
from npudiff.run.discovery import component_names, load_component
from npudiff.run.plan import Plan


@dataclass(frozen=True)
class Triage:
    """Known issues, sorted by what this run does with them."""

    jobs: tuple[Job, ...]
    """The jobs of the plan, each without the cases that are known to fail; those of which nothing is left are not among
    them."""
    again: tuple[tuple[KnownIssue, tuple[Job, ...]], ...]
    """Issues that apply here, and jobs that draw only the cases that each says fail."""
    settled: tuple[KnownStatus, ...]
    """Issues that this run does not check, and why."""


def triage(plan: Plan, issues: Sequence[KnownIssue], here: Machine, today: date, place: str) -> Triage:
    """Sort known issues.

    Parameters
    ----------
    plan : Plan
        What is run.
    issues : sequence of KnownIssue
        From the file.
    here : Machine
        What it is run on.
    today : datetime.date
        What has expired is an ordinary finding again.
    place : str
        The file, for errors.

    Raises
    ------
    UsageError
        If an issue names a component, property or axis that there is not.
    """
    jobs = list(plan.jobs)
    again: list[tuple[KnownIssue, tuple[Job, ...]]] = []
    settled: list[KnownStatus] = []
    for issue in issues:
        if (missing := _left_out(issue, plan)) is not None:
            settled.append(KnownStatus(issue, State.ELSEWHERE, missing))
            continue
        if issue.implementation == EVERY:
            settled.append(KnownStatus(issue, State.STALE, f"{issue.component} imports: remove the entry"))
            continue
        if wished(plan.request.implementations) and (status := _not_asked_for(issue, plan)) is not None:
            settled.append(status)  # what options a function of a backend has is known where it is run
            continue
        checked = _checked(issue, plan, f"{place}:{issue.line}")
        status = _set_aside(plan, checked, here, today)
        mine = [] if status is not None else [job for job in plan.jobs if _concerns(checked, job)]
        within = [replace(job, constraints=job.constraints.within(checked.where)) for job in mine]
        drawing = tuple(job for job in within if job.applies)
        if status is None and not drawing:
            status = KnownStatus(checked, State.UNMATCHED, _why_unmatched(checked, mine))
        if status is not None:
            settled.append(status)
            continue
        again.append((checked, drawing))
        jobs = [_knowing(checked, job) if _concerns(checked, job) else _without_other(checked, job) for job in jobs]
    return Triage(tuple(job for job in jobs if not _leaves_nothing(job)), tuple(again), tuple(settled))


def _left_out(issue: KnownIssue, plan: Plan) -> str | None:
    """Why the implementation of an issue is left out of this run; None if it is not. Its options are not known then."""
    whole = plan.left_out.get((issue.component, EVERY))
    return plan.left_out.get((issue.component, issue.implementation), whole)


def only(sorted_out: Triage, names: Collection[tuple[str, str]]) -> Triage:
    """Return what is left of a triage where only some implementations are run, by component and name."""
    looked_at = [pair for pair in sorted_out.again if (pair[0].component, pair[0].implementation) in names]
    others = [issue for issue, _ in sorted_out.again if (issue.component, issue.implementation) not in names]
    not_run = (KnownStatus(issue, State.NOT_RUN, "the change does not touch it") for issue in others)
    jobs = tuple(job for job in sorted_out.jobs if job.subject.names in names)
    return Triage(jobs, tuple(looked_at), (*sorted_out.settled, *not_run))


def _checked(issue: KnownIssue, plan: Plan, place: str) -> KnownIssue:
    """The issue with the values of its condition in the form of the axes, those of the implementation's options too."""
    if issue.component not in component_names():
        raise UsageError(f"{place}: {unknown('component', issue.component, component_names())}")
    with_its_options = (job.subject.component for job in plan.jobs if _concerns(issue, job))
    component = next(with_its_options, None) or load_component(issue.component)
    where = issue.where.checked(component.axes, place)
    names = [prop.name for prop in (*properties_of(component), WAYS_AGREE)]
    if issue.prop and issue.prop not in names:
        raise UsageError(f"{place}: {unknown('property', issue.prop, names)}")
    if issue.case:
        _check_case(issue, component, where, place)
    return replace(issue, where=where)


def _check_case(issue: KnownIssue, component: Component, where: Constraints, place: str) -> None:
    try:
        case = loads(component.case_type, issue.case)
        component.check_case(case)
    except ValueError as error:
        raise UsageError(f"{place}: case: {error}") from None
    if not where.touches(component.values(case)):
        raise UsageError(f"{place}: case: no part of it lies within 'where'")
    if not issue.instead:
        return
    if component.history is not None:
        raise UsageError(f"{place}: instead: {component.name} has a history, and its answers are of no inputs alone")
    try:
        component.reference(Instead(where, issue.instead).of(component.inputs(case)))
    except Exception as error:  # noqa: BLE001 - whatever a reference says of inputs that are none
        raise UsageError(f"{place}: instead: {error}") from None


def _set_aside(plan: Plan, issue: KnownIssue, here: Machine, today: date) -> KnownStatus | None:
    """The status of an issue that is not looked at, or None."""
    if issue.expires < today:
        return KnownStatus(issue, State.EXPIRED, f"on {issue.expires}: mend it, or look at {issue.link} again")
    if (status := _not_asked_for(issue, plan)) is not None:
        return status
    if issue.targets and here.target not in issue.targets:
        return KnownStatus(issue, State.ELSEWHERE, f"target {here.target}, the issue is of {', '.join(issue.targets)}")
    reason = issue.versions.reason_against(here)
    return None if reason is None else KnownStatus(issue, State.ELSEWHERE, reason)


def _not_asked_for(issue: KnownIssue, plan: Plan) -> KnownStatus | None:
    """The status of an issue of a component that nobody asked for, or None."""
    asked = plan.request.components
    if not asked or issue.component in asked:
        return None
    return KnownStatus(issue, State.NOT_RUN, f"this run is of {', '.join(asked)}")


def _concerns(issue: KnownIssue, job: Job) -> bool:
    subject = job.subject
    return (
        subject.component.name == issue.component
        and subject.implementation.name == issue.implementation
        and issue.prop in ("", job.prop.name)
    )


def _why_unmatched(issue: KnownIssue, jobs: Collection[Job]) -> str:
    if jobs:
        return "the implementation supports no case of the condition"
    what = f"property {issue.prop}" if issue.prop else "such implementation"
    return f"this run has no {what}: correct the entry, or remove it"


def _knowing(issue: KnownIssue, job: Job) -> Job:
    """The job without the cases of an issue, or with what is known to be computed in them.

    What is the right answer to other inputs does not depend on the calls before, either; of a component's own relations
    nobody knows what becomes of them.
    """
    if not issue.instead or job.prop not in (EQUIVALENCE, CALL_INDEPENDENCE):
        return _without(Exclusion(issue.where, f"known: {issue.link}"), job)
    known = Instead(issue.where, issue.instead, issue.link)
    return replace(job, subject=replace(job.subject, instead=(*job.subject.instead, known)))


def _without(exclusion: Exclusion, job: Job) -> Job:
    return replace(job, subject=replace(job.subject, excluded=(*job.subject.excluded, exclusion)))


def _without_other(issue: KnownIssue, job: Job) -> Job:
    """The job without cases in which another way of its backend is known to be wrong, if it compares with that one."""
    subject = job.subject
    mine = subject.implementation.others if job.prop is WAYS_AGREE and subject.component.name == issue.component else ()
    other = next((one for one in mine if one.name == issue.implementation), None)
    if other is None:
        return job
    boxes = [_without_foreign(box, other.options, subject.component.axes) for box in issue.where.boxes]
    where = Constraints(tuple(box for box in boxes if box is not None))
    return _without(Exclusion(where, f"known of {other.name}: {issue.link}"), job) if where else job


def _without_foreign(box: Box, options: Mapping[str, tuple[str, ...]], axes: Mapping[str, Axis]) -> Box | None:
    """A box without options that the cases at hand lack: the other way has their usual values then. None if outside."""
    foreign = [name for name in box if name not in axes]
    if any(name not in options or not allows(box[name], options[name][0]) for name in foreign):
        return None
    return {name: allowed for name, allowed in box.items() if name not in foreign}


def _leaves_nothing(job: Job) -> bool:
    """Whether an issue without a condition leaves out every case."""
    return any(not box for exclusion in job.subject.excluded for box in exclusion.where.boxes)


def judged(issue: KnownIssue, seen: Sequence[tuple[Outcome, Sequence[Finding]]]) -> KnownStatus:
    """Return the status of an issue whose cases were run.

    Parameters
    ----------
    issue : KnownIssue
        The entry.
    seen : sequence of (Outcome, sequence of Finding)
        What the jobs of its cases came to; empty if there was no time.
    """
    findings = [finding for _, found in seen for finding in found]
    if any(is_known(issue, finding) for finding in findings):
        return KnownStatus(issue, State.SEEN, issue.link)
    cases = sum(outcome.cases for outcome, _ in seen)
    if not seen:
        return KnownStatus(issue, State.NOT_RUN, "there was no time")
    if not cases and issue.verdict == NOT_JUDGED:
        return KnownStatus(issue, State.SEEN, issue.link)
    if not cases:
        return KnownStatus(issue, State.UNMATCHED, "no case of the condition could be run")
    if issue.intermittent:
        return KnownStatus(issue, State.QUIET, f"{cases} cases hold")
    other = f", but for {findings[0].verdict}" if findings else ""
    return KnownStatus(issue, State.STALE, f"{cases} cases of the condition hold{other}: remove the entry")


def is_known(issue: KnownIssue, finding: Finding) -> bool:
    """Whether a finding in the cases of an issue has the verdict of the issue."""
    return issue.verdict in ("", finding.verdict)
