"""One case of a function of a backend, in this process: what ``backend.py`` in the folder of a finding calls."""

from __future__ import annotations

import json
import sys
from typing import Any

from npudiff.errors import ExitCode
from npudiff.findings.finding import Finding, coordinates_of
from npudiff.findings.replay import job_of_finding
from npudiff.judge.judge import EQUIVALENCE, LocalJudge
from npudiff.judge.pattern import worst_element
from npudiff.model.backend import wish_of
from npudiff.model.component import Comparison, OutputComparison
from npudiff.run.plan import Request


def call(function: str, *, backend: str, case: str, target: str, cann: str = "", prop: str = EQUIVALENCE.name) -> None:
    """Call a function of a backend on one case, print how each output compares, and end with 1 if one is wrong.

    Nothing is isolated, tried again or made smaller, and what the function raises is raised here: breakpoints in its
    code work, and a traceback leads into it.

    Parameters
    ----------
    function : str
        Component and implementation, ``sliding_attention.forward_decode``.
    backend : str
        As ``--backend`` takes it: ``sglang``, or ``sglang=CHECKOUT``.
    case : str
        As JSON.
    target, cann : str
        Where it runs.
    prop : str
        The property that is looked at.

    Raises
    ------
    UsageError
        If there is no such backend, function or case here.
    ImplementationRaised
        If the function raises; what it raised is the cause.
    """
    component, _, implementation = function.partition(".")
    finding = Finding(component, implementation, target, cann, prop, "", json.loads(case), {}, {})
    selectors = (wish_of(backend).selector,)
    job, drawn = job_of_finding(finding, Request(implementations=selectors, target=target, cann=cann or None))
    subject = job.subject
    with subject.target.activate():
        comparison = LocalJudge(job).check(drawn)
    print(f"{job.name}: {subject.component.describe(drawn)}")
    outputs = comparison.outputs if isinstance(comparison, Comparison) else ()
    for output in outputs:
        print(f"{output.name}: {output.problem or f'{output.worst:.3g} times its bound'}")
        if output.worst > 1 and output.problem is None:
            print(f"  {_place(output, coordinates_of(subject.component, subject.component.inputs(drawn), output))}")
    sys.exit(ExitCode.CLEAN if comparison.holds else ExitCode.FINDINGS)


def _place(output: OutputComparison, coordinates: Any) -> str:  # noqa: ANN401 - by name, tensors
    return ", ".join(f"{name} {value}" for name, value in worst_element(output, coordinates).items())
