"""The verdict on one candidate, in a process of its own that is forked from one which has everything imported."""

from __future__ import annotations

import contextlib
import functools
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npudiff.errors import ExitCode, UsageError
from npudiff.files.writing import write_file
from npudiff.findings.log import RunLog
from npudiff.model.constraints import Box, parse_where
from npudiff.model.implementation import Implementation, TargetUnavailable
from npudiff.model.job import Outcome
from npudiff.run.engine import run_case
from npudiff.run.messages import Keep, Task
from npudiff.run.plan import Request, make_plan
from npudiff.run.run import Run
from npudiff.run.timing import built_in_beside, timed_beside
from npudiff.run.untrusted.remote import Limits, Nursery, untrusted_implementations
from npudiff.serve.requests import CheckRequest
from npudiff.show.document import document
from npudiff.show.finding import told_only
from npudiff.show.run_content import run_content
from npudiff.show.run_page.write import summary_of

COMMAND = "serve"

CANDIDATE = "candidate"
"""Name of an implementation that is made of an undecorated function, and of the file of all."""

NOT_KEPT = "this judge keeps no findings"


def verdict_on(
    request: CheckRequest, nursery: Nursery, folder: Path, begun: Callable[[int], None], *, workers: int = 1
) -> dict[str, Any]:
    """Judge a candidate, and return the document of it.

    Parameters
    ----------
    request : CheckRequest
        The candidate.
    nursery : Nursery
        Which forks its processes.
    folder : pathlib.Path
        A folder for its file.
    begun : callable
        Told the number of each of its processes.
    workers : int
        Properties that are judged at a time, each with a process of the candidate.
    """
    try:
        return _verdict_on(request, nursery, folder, begun, workers)
    except UsageError as error:
        return document(COMMAND, ExitCode.USAGE, str(error), {})
    except TargetUnavailable as error:
        return document(COMMAND, ExitCode.DEVICE_LOST, str(error), {})


def _verdict_on(
    request: CheckRequest, nursery: Nursery, folder: Path, begun: Callable[[int], None], workers: int
) -> dict[str, Any]:
    until = time.monotonic() + request.seconds
    file = folder / f"{CANDIDATE}.py"
    write_file(file, source_of(request), within=folder)
    limits = Limits(min(request.call_seconds, request.seconds), request.memory, begun)
    provide = functools.partial(untrusted_implementations, nursery, limits=limits)
    plan = make_plan(_request_of(request, nursery, file, workers), provide)
    log = RunLog(plan)
    tasks = [_until(task, until) for task in plan.tasks(_keep(provide))]
    with Run(workers, [log]) as run:
        run.run(tasks, enough=lambda outcome: outcome.found and not request.thorough)
    code, problem = log.code, ""
    if not log.findings and time.monotonic() >= until:
        code, problem = ExitCode.INTERRUPTED, f"no verdict within {request.seconds:g} s"
    timings = {}
    if request.timed and code is ExitCode.CLEAN:
        others = _built_in(request.component, nursery, folder, limits)
        subject = plan.jobs[0].subject
        timings[subject.names] = timed_beside(plan.jobs[0], others, seed=secrets.randbits(32), until=until)
    content = run_content(summary_of(log), log.findings, log.unjudged, timings=timings)
    return document(COMMAND, code, problem, content)


_BUILT_IN = """import importlib

import npudiff
from npudiff.run.defined import implementations_in

for module, name in {places!r}:
    item = next(one for one in implementations_in(importlib.import_module(module)) if one.name == name)
    npudiff.implementation({component!r}, name=name)(lambda inputs, target, item=item: item(inputs, target))
"""
"""A candidate's file with what is built in, which is timed in a process as the candidate has one."""


def _built_in(component: str, nursery: Nursery, folder: Path, limits: Limits) -> list[Implementation]:
    """Return what is built in of a component, each with calls in a process of its own."""
    here = {item.name: item for item in built_in_beside(component)}
    file = folder / "built_in.py"
    places = [(item.origin, item.name) for item in here.values()]
    write_file(file, _BUILT_IN.format(places=places, component=component), within=folder)
    there = {item.name: item for item in untrusted_implementations(nursery, str(file), limits=limits)}
    return [replace(there[name], constraints=item.constraints) for name, item in here.items()]


def source_of(request: CheckRequest) -> str:
    """Return the text of the candidate's file; a function that is not decorated is, behind its last line."""
    if not request.function:
        return request.source
    box = parse_where(request.supports).boxes[0] if request.supports else None
    supports = "" if box is None else f", supports={_python(box)}"
    decorator = f"__import__('npudiff').implementation({request.component!r}, name={CANDIDATE!r}{supports})"
    return f"{request.source}\n\n{CANDIDATE} = {decorator}({request.function})\n"


def _python(box: Box) -> str:
    """Return a box of numbers, texts and ranges as Python has it."""
    return "{" + ", ".join(f"{axis!r}: {allowed!r}" for axis, allowed in box.items()) + "}"


def _request_of(request: CheckRequest, nursery: Nursery, file: Path, workers: int) -> Request:
    return Request(
        components=(request.component,),
        implementations=(str(file),),
        target=nursery.target.name,
        cann=None if nursery.target.name == "npu" else nursery.target.cann,
        examples=request.examples,
        seed=secrets.randbits(32) if request.seed is None else request.seed,
        model=request.model,
        where=request.where,
        workers=workers,
        isolate=False,  # this process is one already, and the candidate has another
        untrusted=True,
    )


def _until(task: Task, until: float) -> Task:
    return task._replace(budget=replace(task.budget, until=until))


def _keep(provide: Callable[[str], Sequence[Implementation]]) -> Keep:
    """Return what tells findings, after their case was run in a process of the candidate that has run nothing."""
    tell = told_only(NOT_KEPT)

    def keep(outcome: Outcome) -> Any:  # noqa: ANN401 - as a Keep
        if outcome.failure is not None:
            with contextlib.suppress(OSError, EOFError):  # it has killed what would begin another process of it
                outcome.alone = (int(_fails_alone(outcome, provide)), 1)
        return tell(outcome)

    return keep


def _fails_alone(outcome: Outcome, provide: Callable[[str], Sequence[Implementation]]) -> bool:
    job = outcome.job
    own = job.subject.implementation
    assert outcome.failure is not None  # noqa: S101 - it is why somebody asks
    fresh = next(item for item in provide(own.selector) if item.name == own.name)
    subject = replace(job.subject, implementation=replace(fresh, constraints=own.constraints))
    return run_case(replace(job, subject=subject), outcome.failure.case).failure is not None


def text_of(said: Mapping[str, Any]) -> str:
    """Return a verdict in words, for whoever writes the next candidate: a person, or a program that reads text."""
    if said["problem"]:
        return str(said["problem"])
    cases = said["cases"]
    told: dict[int, str] = {}
    for one in said["findings"]:
        told.setdefault(one["cause"], one["text"])
    return "\n".join((f"{said['verdict']}: {cases} cases in {said['run']['seconds']:.1f} s", *told.values()))
