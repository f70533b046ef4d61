"""The summary of trials: how many mutants each method finds, how reliably, and how soon."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npudiff.errors import UsageError
from npudiff.score.methods import METHODS
from npudiff.score.trials import Trial

SCHEMA = 2
RELIABLE = 0.9
"""Share of seeds from which a mutant must be found to count as found reliably."""


@dataclass(frozen=True)
class MethodScore:
    """The score of one method."""

    method: str
    """Its name."""
    mutants: int
    """Mutants for which it has a case."""
    found: int
    reliable: int
    """Mutants that it finds from at least one seed, and from nine of ten."""
    accused: int
    right: int
    """Correct implementations that it accuses from some seed, of how many."""
    cases: float | None
    seconds: float | None
    """Median up to the first finding, of the trials that find something; None where none does, or nobody knows."""
    missed: tuple[str, ...]
    """Mutants that it does not find reliably."""


def by_mutant(trials: Iterable[Trial], *, right: bool = False) -> dict[str, dict[str, list[Trial]]]:
    """Return trials by method and mutant, or by method and correct implementation."""
    table: dict[str, dict[str, list[Trial]]] = {method.name: {} for method in METHODS}
    for trial in trials:
        if trial.right is not right:
            continue
        table.setdefault(trial.method, {}).setdefault(trial.mutant, []).append(trial)
    return table


def share_found(trials: Sequence[Trial]) -> float:
    """Return the share of trials that find something."""
    return sum(trial.found for trial in trials) / len(trials)


def scores(trials: Sequence[Trial]) -> list[MethodScore]:
    """Return what each method finds, in their order; one without trials is left out."""
    correct = by_mutant(trials, right=True)
    return [
        _score(method, mutants, correct.get(method, {})) for method, mutants in by_mutant(trials).items() if mutants
    ]


def _score(method: str, mutants: Mapping[str, Sequence[Trial]], correct: Mapping[str, Sequence[Trial]]) -> MethodScore:
    hits = [trial for trials in mutants.values() for trial in trials if trial.found]
    counted = [trial.cases for trial in hits if trial.cases]  # of somebody's own suite nobody knows
    return MethodScore(
        method,
        len(mutants),
        sum(any(trial.found for trial in trials) for trials in mutants.values()),
        sum(share_found(trials) >= RELIABLE for trials in mutants.values()),
        sum(any(trial.found for trial in trials) for trials in correct.values()),
        len(correct),
        statistics.median(counted) if counted else None,
        statistics.median(trial.seconds for trial in hits) if hits else None,
        tuple(name for name, trials in mutants.items() if share_found(trials) < RELIABLE),
    )


def document_of(trials: Sequence[Trial], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run was, and what came out, as plain values."""
    return {
        "schema": SCHEMA,
        **about,
        "scores": [asdict(score) for score in scores(trials)],
        "found": {
            method: {
                mutant: [sum(trial.found for trial in several), len(several)] for mutant, several in mutants.items()
            }
            for method, mutants in by_mutant(trials).items()
            if mutants
        },
    }


def encode(trials: Sequence[Trial], about: Mapping[str, Any], *, brief: bool = False) -> str:
    """Return the JSON of a run: what it was, what came out, and unless it has to be brief every trial."""
    document = document_of(trials, about)
    if not brief:
        document["trials"] = [asdict(trial) for trial in trials]
    lines = json.dumps(document, indent=1)
    return re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", lines) + "\n"


def reliably_found(path: Path, method: str = METHODS[0].name) -> set[str]:
    """Return the mutants that a method, by default npudiff, found reliably in a run that was written before.

    Raises
    ------
    UsageError
        If the file is not one that ``npudiff score`` wrote, or says nothing of the method.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise UsageError(f"{path} has schema {document['schema']}, expected {SCHEMA}")
        counts = document["found"][method]
        return {str(name) for name, (found, seeds) in counts.items() if found / seeds >= RELIABLE}
    except KeyError as error:
        raise UsageError(f"{path} is not what npudiff score writes: nothing is said of {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, ZeroDivisionError, RecursionError) as error:
        raise UsageError(f"{path} is not what npudiff score writes: {error}") from None
