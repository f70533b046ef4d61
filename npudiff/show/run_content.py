"""What the document of a run says: implementations, their properties, findings by cause, and how cases were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from npudiff.findings.causes import by_cause
from npudiff.findings.finding import plain_finding
from npudiff.findings.log import LoggedFinding
from npudiff.findings.replay import Replay
from npudiff.model.job import Outcome
from npudiff.model.operators import doubts
from npudiff.run.plan import Plan
from npudiff.run.timing import TimedCase, ratio_of
from npudiff.show.finding import finding_lines
from npudiff.show.report import Group
from npudiff.show.run_page.record_file import plain
from npudiff.show.run_page.write import RunSummary, record_of

Timings = Mapping[tuple[str, str], Sequence[TimedCase]]

_OF_RUN = ("started", "seconds", "ended", "problem", "profile", "seed", "examples", "budget", "scope")


def run_content(
    summary: RunSummary,
    findings: Sequence[LoggedFinding],
    unjudged: Mapping[tuple[str, str], str],
    unwritten: Sequence[str] = (),
    timings: Timings | None = None,
) -> dict[str, Any]:
    """Return what there is to say of a run, so far.

    Parameters
    ----------
    summary : RunSummary
        The run.
    findings : sequence of LoggedFinding
        Its findings, those included that have no folder.
    unjudged : mapping
        Component and name of implementations that were to be judged and were not, and why.
    unwritten : sequence of str
        What could not be written, and why.
    timings : mapping
        Component and name of implementations that were timed, and how long they took.
    """
    run = plain(record_of(summary))
    outcomes: dict[str, list[Outcome]] = {}
    for outcome in summary.outcomes:
        outcomes.setdefault(outcome.job.name, []).append(outcome)
    jobs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job in run["jobs"]:
        jobs.setdefault((job["component"], job["implementation"]), []).append(job)
    how = {name: run[name] for name in _OF_RUN}
    return {
        "run": {**how, "problem": how["problem"] or None, "workers": summary.plan.workers},
        "target": {name: run[key] for name, key in (("name", "target"), ("device", "device"), ("cann", "cann"))},
        "environment": {one["name"]: one["text"] for one in run["environment"]},
        "cases": sum(outcome.cases for outcome in (*summary.outcomes, *summary.mutants)),
        "implementations": [
            {**_implementation(names, rows, outcomes), "timing": _timing((timings or {}).get(names))}
            for names, rows in jobs.items()
        ],
        "findings": _findings(findings),
        "mutants": run["mutants"],
        "mutants_must_be_found": run["judged"],
        "model": _model(summary.plan),
        "left_out": [_named(names, why) for names, why in summary.plan.left_out.items()],
        "not_judged": [_named(names, why) for names, why in unjudged.items()],
        "unwritten": list(unwritten),
    }


def _model(plan: Plan) -> dict[str, Any] | None:
    """The sizes that come of a model, and which components it has none for."""
    if plan.request.model is None:
        return None
    return {
        "name": plan.request.model,
        "sizes": {name: list(kinds) for name, kinds in plan.model_sizes.items()},
        "nothing_for": dict(plan.without_sizes),
    }


def _named(names: tuple[str, str], why: str) -> dict[str, str]:
    component, implementation = names
    return {"component": component, "implementation": implementation, "why": why}


def _implementation(
    names: tuple[str, str], jobs: Sequence[dict[str, Any]], outcomes: Mapping[str, Sequence[Outcome]]
) -> dict[str, Any]:
    """All that was seen of an implementation."""
    component, implementation = names
    properties = [_property(job, outcomes.get(".".join((*names, job["property_name"])), ())) for job in jobs]
    own = [one for job in jobs for one in outcomes.get(".".join((*names, job["property_name"])), ())]
    group = Group(implementation, tuple(own))
    missing = group.never_returned
    failed = [one["failed_error_over_bound"] for one in properties if one["failed_error_over_bound"] is not None]
    held = [one["error_over_bound"] for one in properties if one["error_over_bound"] is not None]
    operators = next((one.operators for one in own if one.operators is not None), None)
    verdict = "findings" if group.findings else "holds" if group.cases else "not judged"
    outputs = own[0].job.subject.component.outputs if own else ()
    return {
        "component": component,
        "implementation": implementation,
        "verdict": verdict,
        "cases": group.cases,
        "seconds": round(group.seconds, 3),
        "error_over_bound": max(held, default=None),
        "failed_error_over_bound": max(failed, default=None),
        "compared": [name for name in outputs if name not in missing] if group.cases else [],
        "not_returned": missing,
        "operators": operators,
        "doubts": doubts(own[0].job.subject.implementation, operators) if own else [],
        "properties": properties,
    }


def _timing(cases: Sequence[TimedCase] | None) -> dict[str, Any] | None:
    if not cases:
        return None
    return {"ratio": ratio_of(cases), "cases": [{**asdict(one), "ratio": one.ratio} for one in cases]}


def _property(job: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What was seen of a property, whose job may have run several times."""
    ratios = [one.failed_ratio for one in outcomes if one.failed_ratio]
    return {
        "property": job["property_name"],
        "verdict": job["verdict"],
        "cases": job["cases"],
        "steps": job["steps"],
        "seconds": job["seconds"],
        "error_over_bound": job["worst"] if job["held"] else None,
        "error_over_bound_case": job["worst_case"],
        "failed_error_over_bound": max(ratios, default=None),
        "exact": job["exact"],
        "not_applicable": {one["name"]: one["number"] for one in job["reasons"]},
        "regions": {one["name"]: one["number"] for one in job["features"]},
        "flaky": job["flaky"],
        "without_known_issues": list(job["without"]),
    }


def _findings(findings: Sequence[LoggedFinding]) -> list[dict[str, Any]]:
    """Findings, those of one cause beside each other."""
    groups = by_cause(findings)
    return [_finding(one, number) for number, group in enumerate(groups) for one in group]


def _finding(one: LoggedFinding, cause: int) -> dict[str, Any]:
    content = plain_finding(one.finding)
    content["property"] = content.pop("property_name")
    del content["command"]
    return {
        **content,
        "cause": cause,
        "key": one.finding.key,
        "folder": str(one.folder) if one.written else None,
        "replay": one.finding.replay_command(one.folder) if one.written else None,
        "text": finding_text(one),
    }


def finding_text(one: LoggedFinding) -> str:
    """Return a finding as the console shows it."""
    finding = one.finding
    title = f"{finding.component}.{finding.implementation} · {finding.property_name} · {finding.verdict}"
    lines = finding_lines(finding, one.folder, unwritten=one.unwritten)
    return "\n".join((title, *(f"  {label:10} {text}" for label, text in lines)))


def replay_content(one: Replay) -> dict[str, Any]:
    """Return what became of one finding."""
    failure = None if one.outcome is None else one.outcome.failure
    comparison = None if failure is None else failure.comparison
    error, *places = one.raised or ("",)
    return {
        "folder": str(one.path),
        "verdict": one.verdict.value,
        "text": one.line,
        "error_over_bound": None if comparison is None else comparison.worst,
        "raised": error or None,
        "frames": places,
    }
