"""A gate as SARIF 2.1.0, which code hosts show beside the lines of a change.

The format is OASIS's "Static Analysis Results Interchange Format (SARIF) Version 2.1.0". Known issues are results with
a suppression, so that they are seen and do not count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from npudiff.gate.result import GateResult
from npudiff.model.version import VERSION
from npudiff.show.problems import Problem

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
"""Where the format is described: a name, which nobody here fetches."""

MOST_RESULTS = 5000
"""Results that are written at most: a code host takes no more of a run."""

_OTHER_RULES = {
    "known-issue": "a known issue has expired, or does not fail any more",
    "unfinished": "the time of the gate was too short for what it always runs",
    "not-judged": "no case of an implementation could be run to a verdict",
    "ended-early": "an interrupt or a defect ended the gate before its time",
    "device-lost": "the device gives no known answer any more",
}


def sarif(result: GateResult, problems: Sequence[Problem]) -> str:
    """Return the log, as JSON.

    Parameters
    ----------
    result : GateResult
        What was run.
    problems : sequence of Problem
        What it has to tell, the worst first.
    """
    told = [problem for problem in problems if problem.place is not None][:MOST_RESULTS]
    others = [problem for problem in problems if problem.place is None]
    meanings = {
        f"{job.subject.component.name}/{job.prop.name}": f"{job.subject.component.name}: {job.prop.summary}"
        for job in result.plan.jobs
    }
    rules = list(dict.fromkeys(problem.rule for problem in told))
    target = result.plan.target
    run = {
        "tool": {
            "driver": {
                "name": "npudiff",
                "version": VERSION,
                "rules": [_rule(rule, meanings.get(rule, _OTHER_RULES.get(rule, rule))) for rule in rules],
            }
        },
        "automationDetails": {"id": f"npudiff/{target.name}/CANN {target.cann}/"},
        "invocations": [
            {
                "executionSuccessful": not (result.lost or result.ended),
                "exitCode": int(result.code),
                "toolExecutionNotifications": [
                    {"level": problem.level.value, "message": {"text": problem.title}} for problem in others
                ],
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": [_result(problem, rules.index(problem.rule)) for problem in told],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(name: str, meaning: str) -> dict[str, Any]:
    """A rule with all that GitHub asks for."""
    return {
        "id": name,
        "shortDescription": {"text": meaning},
        "fullDescription": {"text": meaning},
        "help": {"text": f"{meaning}. The line 'replay' of a finding runs its case again."},
    }


def _result(problem: Problem, rule: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": problem.rule,
        "ruleIndex": rule,
        "level": problem.level.value,
        "message": {"text": problem.title + (f"\n\n{problem.text}" if problem.text else "")},
        "partialFingerprints": {"npudiff/v1": problem.fingerprint},
    }
    if problem.place is not None:  # of what has none, the run says it
        place = {
            "artifactLocation": {"uri": _uri(problem.place.path), "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": problem.place.line},
        }
        result["locations"] = [{"physicalLocation": place}]
    if problem.link:
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": problem.link}]
    return result


def _uri(path: str) -> str:
    return quote(path)
