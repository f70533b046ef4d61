"""What several runs together say now: of each job the latest word, and what was said before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from npudiff.show.run_page.read import Kept
from npudiff.show.run_page.record import FindingRecord, JobRecord, KnownRecord, MutantRecord

TARGETS = ("npu", "virtual", "sim")
"""Targets in the order of what a reader trusts most."""


@dataclass(frozen=True, order=True)
class TargetColumn:
    """A column of the matrix: a target and its CANN."""

    order: int
    target: str
    cann: str

    @classmethod
    def of(cls, kept: Kept) -> TargetColumn:
        """Return where a run ran."""
        target = kept.record.target
        order = TARGETS.index(target) if target in TARGETS else len(TARGETS)
        return cls(order, target, kept.record.cann)

    @property
    def text(self) -> str:
        """The place in words."""
        return f"{self.target}, CANN {self.cann}"


@dataclass(frozen=True)
class LatestResult:
    """A job that no later run has done again."""

    job: JobRecord
    kept: Kept
    place: TargetColumn


@dataclass(frozen=True)
class LatestFinding:
    """A finding, and the run that has it."""

    finding: FindingRecord
    kept: Kept
    place: TargetColumn


@dataclass(frozen=True)
class MutantNow:
    """A mutant that no later run has looked for again."""

    mutant: MutantRecord
    kept: Kept
    place: TargetColumn


@dataclass(frozen=True)
class KnownNow:
    """A known issue, as the latest gate at a place saw it."""

    known: KnownRecord
    place: TargetColumn


Subject = tuple[str, str]
"""Component and implementation."""


@dataclass(frozen=True)
class State:
    """What all runs say."""

    kept: Sequence[Kept]
    """The runs, the earliest first."""

    @cached_property
    def jobs(self) -> list[LatestResult]:
        """Of each property of each implementation at each place: the latest run, in the order of first mention.

        A run that was narrowed, or that left out cases of known issues, is no later word on a whole run, nor on one
        that was narrowed otherwise. A whole run is one on all before it.
        A job that a run did not get to says nothing where another run did.
        """
        latest: dict[tuple[object, ...], dict[tuple[str, ...], LatestResult]] = {}
        for kept in self.kept:
            place = TargetColumn.of(kept)
            for job in kept.record.jobs:
                scope = (*kept.record.scope, *job.without)
                key = (job.component, job.implementation, job.property_name, place)
                scopes = latest.setdefault(key, {})
                if job.verdict == "not run" and scopes:
                    continue
                if not scope or all(one.job.verdict == "not run" for one in scopes.values()):
                    scopes.clear()
                scopes[scope] = LatestResult(job, kept, place)
        return [now for scopes in latest.values() for now in scopes.values()]

    @cached_property
    def mutants(self) -> list[MutantNow]:
        """Of each mutant at each place: the latest run that judges it, or the latest if none does."""
        latest: dict[tuple[object, ...], MutantNow] = {}
        for kept in self.kept:
            place = TargetColumn.of(kept)
            for mutant in kept.record.mutants:
                key = (mutant.component, mutant.implementation, place)
                before = latest.get(key)
                weaker = before is not None and before.kept.record.judged and not kept.record.judged
                if not weaker or mutant.found:
                    latest[key] = MutantNow(mutant, kept, place)
        return list(latest.values())

    @cached_property
    def known(self) -> list[KnownNow]:
        """Known issues of the latest gate at each place; those that close it first."""
        latest = {TargetColumn.of(kept): kept.record.known for kept in self.kept if kept.record.gate}
        ones = [KnownNow(known, place) for place, some in sorted(latest.items()) for known in some]
        return sorted(ones, key=lambda one: not one.known.closes)

    @cached_property
    def findings(self) -> list[LatestFinding]:
        """Findings of the jobs that are the latest word."""
        found = []
        for kept, names in self._names_now():
            by_name = {finding.folder: finding for finding in kept.record.findings}
            found += [LatestFinding(by_name[name], kept, TargetColumn.of(kept)) for name in names if name in by_name]
        return found

    def _names_now(self) -> Iterable[tuple[Kept, list[str]]]:
        """The runs with the names of their findings that still count; a name that two runs have is the later one's."""
        owner: dict[tuple[str, str], Kept] = {}
        for now in self.jobs:
            for name in now.job.findings:
                key = (str(now.kept.root), name)
                if key not in owner or owner[key].record.started <= now.kept.record.started:
                    owner[key] = now.kept
        for kept in self.kept:
            yield kept, [name for (_, name), one in owner.items() if one is kept]

    @cached_property
    def earlier(self) -> list[LatestFinding]:
        """Findings of runs after which another one had no such finding."""
        now = {(str(one.kept.root), one.finding.folder) for one in self.findings}
        found = {}
        for kept in self.kept:
            for finding in kept.record.findings:
                key = (str(kept.root), finding.folder)
                if key not in now:
                    found[key] = LatestFinding(finding, kept, TargetColumn.of(kept))
        return list(found.values())

    @cached_property
    def places(self) -> list[TargetColumn]:
        """Where something ran, or was to run."""
        places = {now.place for now in self.jobs} | {one.place for one in self.mutants}
        return sorted(places | {one.place for one in self.known})

    @cached_property
    def by_subject(self) -> Mapping[Subject, Mapping[TargetColumn, list[LatestResult]]]:
        """Jobs by component and implementation, and by place; components in the order of the alphabet."""
        table: dict[Subject, dict[TargetColumn, list[LatestResult]]] = {}
        for now in self.jobs:
            cells = table.setdefault((now.job.component, now.job.implementation), {})
            cells.setdefault(now.place, []).append(now)
        return dict(sorted(table.items(), key=lambda item: item[0][0]))

    @cached_property
    def cases(self) -> int:
        """Cases of all these jobs and mutants."""
        return sum(now.job.cases for now in self.jobs) + sum(one.mutant.cases for one in self.mutants)

    @property
    def missed(self) -> list[MutantNow]:
        """Mutants that had to be found, and were not."""
        return [one for one in self.mutants if one.kept.record.judged and not one.mutant.found]


def findings_of(jobs: Sequence[LatestResult]) -> int:
    """Return how many findings jobs have, each folder once; one whose folder the record does not name counts too."""
    named = {(now.kept.root, name) for now in jobs for name in now.job.findings}
    return len(named) + sum(not now.job.findings and now.job.verdict in ("wrong value", "exception") for now in jobs)
