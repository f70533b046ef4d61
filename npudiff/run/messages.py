"""Tasks, and outcomes as JSON messages between processes; tensors stay in the process that wrote the finding."""

from __future__ import annotations

import dataclasses
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from npudiff.model.anything import AnyCase
from npudiff.model.case import dumps, from_plain, loads, to_plain
from npudiff.model.drift import Drift
from npudiff.model.job import Budget, Failure, Job, Outcome, Poisoning, Verdict


@dataclass(frozen=True)
class Kept:
    """A finding as it is told, wherever it was found."""

    content: Mapping[str, Any]
    """The finding, as plain JSON."""
    folder: Path
    """Its folder."""
    problem: str = ""
    """Why it could not be written, or not all of it; empty if it was."""
    written: bool = True
    """Whether the folder is there."""


Keep = Callable[[Outcome], Sequence[Kept]]
"""Writes the findings of an outcome where its tensors are, as far as that can be done, and returns them."""


class Task(NamedTuple):
    """A job to be run."""

    job: Job
    budget: Budget
    keep: Keep | None
    """Writes its findings; None for a mutant, which leaves none."""

    def kept(self, outcome: Outcome) -> list[Kept]:
        """Write the findings of the outcome, and return them; its journal is not needed after that."""
        findings = [] if self.keep is None else list(self.keep(outcome))
        outcome.settle()
        return findings


def with_seed(budget: Budget) -> Budget:
    """Return a budget of a job that may have to be run again: it draws the same cases then."""
    return replace(budget, fallback_seed=secrets.randbits(64) if budget.fallback_seed is None else budget.fallback_seed)


_CASES = ("worst_case", "first_failure", "failure", "worst_failure")


def outcome_to_message(outcome: Outcome, kept: Sequence[Kept]) -> dict[str, Any]:
    """Return an outcome and its findings as plain values."""
    message: dict[str, Any] = {"kept": [{**vars(one), "folder": str(one.folder)} for one in kept]}
    for item in dataclasses.fields(outcome):
        value = getattr(outcome, item.name)
        if item.name in _CASES:
            case = value.case if isinstance(value, Failure) else value
            message[item.name] = None if case is None else dumps(case)
        elif item.name == "verdict":
            message[item.name] = value.name
        elif item.name == "poisonings":
            message[item.name] = [dataclasses.astuple(one) for one in value]
        elif item.name == "drifts":
            message[item.name] = [to_plain(one) for one in value]
        elif item.name == "kinds":
            message[item.name] = [[list(regions), text] for regions, text in value.items()]
        elif item.name == "guides":
            message[item.name] = [dumps(case) for case in value]
        elif item.name not in ("job", "journal"):
            message[item.name] = value
    return message


def outcome_from_message(job: Job, message: dict[str, Any]) -> tuple[Outcome, list[Kept]]:
    """Return the outcome that a message tells of, and its findings.

    Its failures have their cases; the evidence is in the findings.
    """
    kept = [Kept(**{**one, "folder": Path(one["folder"])}) for one in message.pop("kept", [])]
    cases = {
        name: None if message[name] is None else loads(job.subject.component.case_type, message[name])
        for name in _CASES
    }
    values = {
        **message,
        "worst_case": cases["worst_case"],
        "first_failure": _failure(cases["first_failure"]),
        "failure": _failure(cases["failure"]),
        "worst_failure": _failure(cases["worst_failure"]),
        "kinds": {tuple(regions): str(text) for regions, text in message["kinds"]},
        "guides": [loads(job.subject.component.case_type, text) for text in message["guides"]],
        "verdict": Verdict[message["verdict"]],
        "alone": tuple(message["alone"]),
        "repeated": tuple(message["repeated"]),
        "drifts": tuple(from_plain(Drift, one, "drift") for one in message["drifts"]),
        "poisonings": [Poisoning(*one) for one in message["poisonings"]],
        **{name: Counter(message[name]) for name in ("not_applicable", "features", "left_out")},
    }
    return Outcome(job, **values), kept


def _failure(case: AnyCase) -> Failure | None:
    return None if case is None else Failure(case, None, None)
