"""Faults planted in the cases of a job that is judged in a process of its own, and whether each was told right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from npudiff.model.component import ImplementationRaised
from npudiff.model.faults import Kind, RemoteError
from npudiff.model.job import Isolation, Job, Outcome
from npudiff.run.isolation.judge import IsolatedJudge


@dataclass
class Inspection:
    """What was said of cases that were judged one after the other, by their numbers."""

    outcome: Outcome
    failed: dict[int, Kind | None] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)

    def poisoning(self, name: str) -> list[int]:
        """Return the numbers of cases that poison: their field of this name, or its first entry."""
        found = [json.loads(one.case)[name] for one in self.outcome.poisonings]
        return [value[0] if isinstance(value, list) else value for value in found]


def inspected(job: Job, numbers: Iterable[int], case_of: Callable[[int], Any], isolation: Isolation) -> Inspection:
    """Judge the cases of these numbers; a wrong value is a failure without a kind."""
    judge, seen = IsolatedJudge(job, isolation), Inspection(Outcome(job))
    for number in numbers:
        try:
            verdict = judge.check(case_of(number))
        except ImplementationRaised as error:
            cause = error.__cause__
            seen.failed[number] = cause.kind if isinstance(cause, RemoteError) else None
        else:
            if verdict.holds:
                seen.held.append(number)
            else:
                seen.failed[number] = None
    judge.close(seen.outcome)
    return seen


def places(count: int, faults: Mapping[str, int]) -> tuple[list[int], dict[str, list[int]]]:
    """Return numbers in some order, and which of them have each fault.

    None is next to another: a crash would hide a poisoning before it.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(5)).tolist()
    spots = torch.randperm((count - 4) // 3, generator=torch.Generator().manual_seed(6)).tolist()
    at = iter(order[3 * spot] for spot in spots)
    return order, {fault: [next(at) for _ in range(many)] for fault, many in faults.items()}
