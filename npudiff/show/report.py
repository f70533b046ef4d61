"""Results in words: outcomes grouped by implementation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from npudiff.model.job import Outcome
from npudiff.text import counted

NOT_APPLICABLE_LIMIT = 0.05
"""Share of draws outside what an implementation supports above which the listing says so."""


@dataclass(frozen=True)
class Group:
    """The outcomes of one implementation."""

    name: str
    outcomes: tuple[Outcome, ...]

    @property
    def cases(self) -> int:
        """Cases that were run to a verdict."""
        return sum(outcome.cases for outcome in self.outcomes)

    @property
    def steps(self) -> int:
        """Steps of these cases, for a component with history."""
        return sum(outcome.steps for outcome in self.outcomes)

    @property
    def not_applicable(self) -> int:
        """Draws that were not run."""
        return sum(outcome.not_applicable.total() for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        """Time of all properties."""
        return sum(outcome.seconds for outcome in self.outcomes)

    @property
    def findings(self) -> int:
        """Findings of all properties."""
        return sum(outcome.findings for outcome in self.outcomes)

    @property
    def never_returned(self) -> list[str]:
        """Outputs of the reference that the implementation returned in no case: they are not compared."""
        judged = [outcome for outcome in self.outcomes if outcome.left_out]
        cases = sum(outcome.cases for outcome in judged)
        counts = sum((outcome.left_out for outcome in judged), Counter[str]())
        return [name for name, count in counts.items() if count >= cases]

    def share(self, feature: str) -> float:
        """Share of the cases that are in a region."""
        return sum(outcome.features[feature] for outcome in self.outcomes) / max(1, self.cases)

    def result(self) -> tuple[str, str]:
        """Return the verdict in words, and a colour for it."""
        ran = len({outcome.job.prop.name for outcome in self.outcomes if outcome.cases})
        if self.findings:
            return counted(self.findings, "finding"), "bold red"
        if not ran:
            return "not applicable", "dim"
        held = f"ok, {ran} propert{'ies' if ran > 1 else 'y'}"
        if self.never_returned:
            held += f"; without {', '.join(self.never_returned)}"
        if self.not_applicable > NOT_APPLICABLE_LIMIT * (self.cases + self.not_applicable):
            return f"{held}; many draws n/a", "yellow"
        return held, "green"


def grouped(outcomes: Sequence[Outcome]) -> list[Group]:
    """Group outcomes by component and implementation, in their order."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.job.subject.names, []).append(outcome)
    return [Group(name, tuple(members)) for (_, name), members in groups.items()]


NEARLY = 0.995
"""Ratios from here on have a digit more: 1.00 beside "ok" would look like a limit that is reached."""


def bound_text(group: Group) -> str:
    """The largest error over bound, of cases that fail if any do: ``exact`` where only equality was asked for."""
    failed = [outcome.failed_ratio for outcome in group.outcomes if outcome.failed_ratio]
    if failed:
        finite = [ratio for ratio in failed if math.isfinite(ratio)]
        return f"{max(finite):.3g}" if finite else "differs"
    held = [outcome for outcome in group.outcomes if outcome.cases > (outcome.failure is not None)]
    if not held:
        return "-"
    if all(outcome.exact for outcome in held):
        return "exact"
    worst = max(outcome.worst_ratio for outcome in held)
    return f"{worst:.2f}" if worst < NEARLY else f"{math.floor(worst * 1000) / 1000:.3f}"
