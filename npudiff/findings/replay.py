"""Replaying findings: whether what failed once still fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from npudiff.draw.options import with_options
from npudiff.errors import DeviceLost, UsageError, unknown
from npudiff.findings.finding import AFTER_OTHERS, FINDING_FILE, POISONS, Finding, error_text, frames, read_finding
from npudiff.judge.drift import REPLAY_SCORE
from npudiff.judge.others import properties_with_others
from npudiff.model.anything import AnyCase
from npudiff.model.case import from_plain, loads
from npudiff.model.component import Component, Property, Subject
from npudiff.model.faults import Kind
from npudiff.model.implementation import Implementation, Target, TargetUnavailable
from npudiff.model.instead import Instead
from npudiff.model.job import Isolation, Job, Outcome, Verdict
from npudiff.run.discovery import (
    OtherComponent,
    built_in_implementations,
    each_once,
    load_component,
    load_target,
    select_implementations,
)
from npudiff.run.engine import REPEATED, run_case, run_cases
from npudiff.run.plan import Request, can_isolate, may_end_its_process, untrusted_provider
from npudiff.run.ranks import with_ranks
from npudiff.text import counted


class ReplayVerdict(Enum):
    """What became of a finding."""

    FIXED = "FIXED"
    FAILED = "FAILED"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Replay:
    """One replayed finding."""

    path: Path
    """Its folder."""
    verdict: ReplayVerdict
    """FIXED if the property holds now, FAILED if it does not, ERROR if it could not be replayed."""
    line: str
    """What to say about it."""
    outcome: Outcome | None = field(default=None, repr=False)
    """The run."""

    def __str__(self) -> str:
        """Return the line of the command."""
        return f"{self.verdict.value} {self.line}"

    @property
    def raised(self) -> tuple[str, ...]:
        """What the implementation raised this time, and where; empty if it did not."""
        failure = None if self.outcome is None else self.outcome.failure
        return () if failure is None or failure.error is None else (error_text(failure.error), *frames(failure.error))


def finding_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the finding folders that the paths name: a folder itself, its ``finding.json``, or all folders in it."""
    folders: list[Path] = []
    for path in paths:
        if path.name == FINDING_FILE:
            folders.append(path.parent)
        elif path.is_dir() and not (path / FINDING_FILE).exists():
            children = (child for child in path.iterdir() if not child.is_symlink())
            inner = sorted(child for child in children if (child / FINDING_FILE).exists())
            folders.extend(inner or [path])
        else:
            folders.append(path)
    return folders


def replay(
    folder: Path,
    implementations: Sequence[str],
    target: str | None,
    cann: str | None,
    *,
    isolation: Isolation | None = None,
    isolate: bool | None = None,
    untrusted: bool = False,
    given: Sequence[Implementation] = (),
) -> Replay:
    """Run the case of a finding again.

    Parameters
    ----------
    folder : pathlib.Path
        The finding.
    implementations : sequence of str
        Modules or files that provide implementations besides the built-in ones; a finding never names what is
        imported.
    target, cann : str or None
        Where to run, instead of where it was found.
    isolation : Isolation or None
        How to run what may kill the process.
    isolate : bool or None
        Whether to; None for on a device, for what is not built in, and for what killed one before.
    untrusted : bool
        Whether what ``implementations`` names may deceive.
    given : sequence of Implementation
        Implementations as objects, which are looked at first.
    """
    try:
        finding = read_finding(folder)
        request = Request(
            implementations=tuple(implementations),
            given=tuple(given),
            target=target or finding.target,
            cann=cann or (finding.cann if finding.target == "sim" and not target else None),
            isolate=isolate,
            untrusted=untrusted,
            timeout=(isolation or Isolation()).run,
        )
        job, case = job_of_finding(finding, request)
        outcome = _run(finding, job, case, isolation or Isolation(), isolate)
    except (UsageError, TargetUnavailable) as error:
        text = str(error)
        return Replay(folder, ReplayVerdict.ERROR, text if text.startswith(str(folder)) else f"{folder}: {text}")
    except DeviceLost:
        raise
    except Exception as error:  # noqa: BLE001 - a finding from elsewhere may hold a case that no strategy would draw
        text = f"{folder}: the case cannot be run: {type(error).__name__}: {error}"
        return Replay(folder, ReplayVerdict.ERROR, text)
    return _told(folder, finding, outcome, case)


def _told(folder: Path, finding: Finding, outcome: Outcome, case: AnyCase) -> Replay:
    """What became of a finding whose case was run again."""
    described = f"{outcome.job.name}: {outcome.job.subject.component.describe(case)}"
    if outcome.poisonings:
        return Replay(folder, ReplayVerdict.FAILED, f"{described}, and then another one", outcome)
    if outcome.verdict is Verdict.NOT_APPLICABLE:
        reason = next(iter(outcome.not_applicable), "the property says nothing about the case")
        return Replay(folder, ReplayVerdict.ERROR, f"{described}: not applicable: {reason}", outcome)
    if finding.verdict == Verdict.DRIFT.value and outcome.failure is None:
        return _told_of_drift(folder, finding, outcome)
    if outcome.verdict is not Verdict.HOLDS:
        return Replay(folder, ReplayVerdict.FAILED, described, outcome)
    if finding.verdict == AFTER_OTHERS:
        line = f"{described}: cannot be replayed: it holds by itself, and failed after cases that are not known"
        return Replay(folder, ReplayVerdict.ERROR, line, outcome)
    line = f"{described} (error {outcome.worst_ratio:.2g} of the bound)"
    return Replay(folder, ReplayVerdict.FIXED, line, outcome)


def _told_of_drift(folder: Path, finding: Finding, outcome: Outcome) -> Replay:
    """What became of a drift, over the cases that were remembered."""
    names = output, direction = str(finding.detail.get("output")), finding.detail["drift"]["direction"]
    described = f"{outcome.job.name}: {output}, {direction}, over {counted(outcome.cases, 'case')}"
    again = next((drift for drift in outcome.drifts if (drift.output, drift.direction) == names), None)
    if again is None:
        line = f"{described}: none of them says anything of it"
        return Replay(folder, ReplayVerdict.ERROR, line, outcome)
    line = f"{described}: {again.size:+.2g} of the bound in the mean, {again.score:.1f} standard errors beyond the most"
    return Replay(folder, ReplayVerdict.FAILED if again.score >= REPLAY_SCORE else ReplayVerdict.FIXED, line, outcome)


def _remembered(finding: Finding, component: Component) -> list[AnyCase]:
    """Return the cases that show a drift.

    Raises
    ------
    UsageError
        If they are damaged.
    """
    drift, texts = finding.detail.get("drift"), finding.detail.get("remembered")
    if not isinstance(drift, dict) or not isinstance(drift.get("direction"), str):
        raise UsageError("the figures of the drift are damaged")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError("the cases that show the drift are damaged")
    try:
        cases = [loads(component.case_type, text) for text in texts]
        for case in cases:
            component.check_case(case)
    except ValueError as error:
        raise UsageError(f"a case that shows the drift is damaged: {error}") from None
    return cases


def _run(finding: Finding, job: Job, case: AnyCase, isolation: Isolation, isolate: bool | None) -> Outcome:
    """Run the case; one that poisons is run before the case in which that was seen."""
    poisons = finding.verdict == POISONS
    kills = poisons or finding.verdict in {kind.value for kind in Kind if kind is not Kind.RAISED}
    may_end = can_isolate() and may_end_its_process(job.subject)
    wanted = kills or may_end if isolate is None else isolate or poisons
    if wanted and not can_isolate():
        raise UsageError("--isolate needs Linux" + ("" if poisons else "; --no-isolate runs the case in this process"))
    if poisons:
        victim = _case(job.subject.component, finding.detail.get("victim"), "victim")
        outcome = run_cases(job, (case, victim), isolation)
    elif finding.verdict == Verdict.DRIFT.value:
        outcome = run_cases(job, _remembered(finding, job.subject.component), isolation if wanted else None)
    else:
        outcome = run_case(job, case, isolation if wanted else None)
        for _ in range(REPEATED - 1 if kills else 0):  # what writes beyond its memory does not die of it each time
            if outcome.verdict is not Verdict.HOLDS or outcome.poisonings:
                break
            outcome = run_case(job, case, isolation if wanted else None)
    outcome.settle()
    return outcome


def _case(component: Component, plain: object, which: str) -> AnyCase:
    """A case of a finding, which may be a stranger's."""
    try:
        case = from_plain(component.case_type, plain)
        component.check_case(case)
    except ValueError as error:
        raise UsageError(f"the {which} is damaged: {error}") from None
    return case


def job_of_finding(finding: Finding, request: Request) -> tuple[Job, AnyCase]:
    """Return the job of a finding, and its case.

    Raises
    ------
    UsageError, TargetUnavailable
        If its implementation is not among those of the request, or not here, or the case is damaged.
    """
    component = load_component(finding.component)
    where = load_target(request.target or finding.target, request.cann)
    where = with_ranks(where, request.timeout, built_in_implementations, load_component)
    given = [item for item in request.given if item.component == component.name]
    available = [*given, *_provided(component, request, where), *select_implementations([component], [])]
    chosen = [item for item in available if item.name == finding.implementation]
    if not chosen:
        names = [item.name for item in available]
        raise UsageError(f"{unknown('implementation', finding.implementation, names)}; give its file with --impl")
    component = with_options(component, chosen[0].options)
    case = _case(component, dict(finding.case), "case")
    subject = Subject(component, chosen[0], where, instead=_known_answers(finding))
    return Job(subject, _property(subject, finding.property_name), chosen[0].constraints), case


def _known_answers(finding: Finding) -> tuple[Instead, ...]:
    """What was known to be computed in the case of a finding, which was judged by that too."""
    known = finding.detail.get("known_answers", [])
    if not isinstance(known, list):
        raise UsageError("what is known to be computed in the case of a finding is damaged")
    return tuple(map(Instead.of_plain, known))


def _provided(component: Component, request: Request, target: Target) -> list[Implementation]:
    """Return the implementations of a component that selectors name; several findings may need different ones.

    Raises
    ------
    UsageError
        If none of them provides any, or one of them names nothing.
    """
    provide = untrusted_provider(request, target) if request.untrusted else None
    provided, others = [], []
    for selector in request.implementations:
        try:
            provided.append(select_implementations([component], [selector], provide))
        except OtherComponent as refusal:
            others.append(refusal)
    if others and not provided:
        raise others[0]
    return each_once([item for items in provided for item in items])


def _property(subject: Subject, name: str) -> Property:
    properties = {item.name: item for item in properties_with_others(subject.component, subject.implementation)}
    if name not in properties:
        raise unknown("property", name, properties)
    return properties[name]
