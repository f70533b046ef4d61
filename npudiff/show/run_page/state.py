"""What several runs say together: the latest result of each job, and the findings that are no longer there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from npudiff.show.run_page.read import StoredRun
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
    def of(cls, run: StoredRun) -> TargetColumn:
        """Return the column of a run."""
        target = run.record.target
        order = TARGETS.index(target) if target in TARGETS else len(TARGETS)
        return cls(order, target, run.record.cann)

    @property
    def text(self) -> str:
        """Target and CANN in words."""
        return f"{self.target}, CANN {self.cann}"


@dataclass(frozen=True)
class LatestResult:
    """A job that no later run has done again."""

    job: JobRecord
    run: StoredRun
    column: TargetColumn


@dataclass(frozen=True)
class LatestFinding:
    """A finding, and the run that has it."""

    finding: FindingRecord
    run: StoredRun
    column: TargetColumn


@dataclass(frozen=True)
class LatestMutant:
    """A mutant that no later run has looked for again."""

    mutant: MutantRecord
    run: StoredRun
    column: TargetColumn


@dataclass(frozen=True)
class LatestKnownIssue:
    """A known issue, as the latest gate on a target saw it."""

    known: KnownRecord
    column: TargetColumn


Subject = tuple[str, str]
"""Component and implementation."""


@dataclass(frozen=True)
class State:
    """What all runs say."""

    runs: Sequence[StoredRun]
    """The runs, the earliest first."""

    @cached_property
    def jobs(self) -> list[LatestResult]:
        """The latest result of each property of each implementation on each target, in the order of first mention.

        A run that was narrowed, or that left out cases of known issues, replaces neither a whole run nor one that was
        narrowed otherwise. A whole run replaces all before it.
        A job that a run did not get to says nothing where another run did.
        """
        latest: dict[tuple[object, ...], dict[tuple[str, ...], LatestResult]] = {}
        for run in self.runs:
            column = TargetColumn.of(run)
            for job in run.record.jobs:
                scope = (*run.record.scope, *job.without)
                key = (job.component, job.implementation, job.property_name, column)
                scopes = latest.setdefault(key, {})
                if job.verdict == "not run" and scopes:
                    continue
                if not scope or all(result.job.verdict == "not run" for result in scopes.values()):
                    scopes.clear()
                scopes[scope] = LatestResult(job, run, column)
        return [result for scopes in latest.values() for result in scopes.values()]

    @cached_property
    def mutants(self) -> list[LatestMutant]:
        """The latest run that judges each mutant on each target, or the latest if none does."""
        latest: dict[tuple[object, ...], LatestMutant] = {}
        for run in self.runs:
            column = TargetColumn.of(run)
            for mutant in run.record.mutants:
                key = (mutant.component, mutant.implementation, column)
                before = latest.get(key)
                weaker = before is not None and before.run.record.judged and not run.record.judged
                if not weaker or mutant.found:
                    latest[key] = LatestMutant(mutant, run, column)
        return list(latest.values())

    @cached_property
    def known(self) -> list[LatestKnownIssue]:
        """Known issues of the latest gate on each target; those that close it first."""
        latest = {TargetColumn.of(run): run.record.known for run in self.runs if run.record.gate}
        issues = [LatestKnownIssue(known, column) for column, some in sorted(latest.items()) for known in some]
        return sorted(issues, key=lambda issue: not issue.known.closes)

    @cached_property
    def findings(self) -> list[LatestFinding]:
        """Findings of the latest results."""
        found = []
        for run, names in self._latest_names():
            by_name = {finding.folder: finding for finding in run.record.findings}
            found += [LatestFinding(by_name[name], run, TargetColumn.of(run)) for name in names if name in by_name]
        return found

    def _latest_names(self) -> Iterable[tuple[StoredRun, list[str]]]:
        """The runs with the folders of their findings that still count; the later of two runs owns a shared one."""
        owner: dict[tuple[str, str], StoredRun] = {}
        for result in self.jobs:
            for name in result.job.findings:
                key = (str(result.run.root), name)
                if key not in owner or owner[key].record.started <= result.run.record.started:
                    owner[key] = result.run
        for run in self.runs:
            yield run, [name for (_, name), of in owner.items() if of is run]

    @cached_property
    def earlier(self) -> list[LatestFinding]:
        """Findings that a later run of the same job did not have."""
        latest = {(str(found.run.root), found.finding.folder) for found in self.findings}
        earlier = {}
        for run in self.runs:
            for finding in run.record.findings:
                key = (str(run.root), finding.folder)
                if key not in latest:
                    earlier[key] = LatestFinding(finding, run, TargetColumn.of(run))
        return list(earlier.values())

    @cached_property
    def columns(self) -> list[TargetColumn]:
        """Targets on which something ran, or was to run."""
        columns = {result.column for result in self.jobs} | {mutant.column for mutant in self.mutants}
        return sorted(columns | {issue.column for issue in self.known})

    @cached_property
    def by_subject(self) -> Mapping[Subject, Mapping[TargetColumn, list[LatestResult]]]:
        """Results by component and implementation, and by target; components in the order of the alphabet."""
        table: dict[Subject, dict[TargetColumn, list[LatestResult]]] = {}
        for result in self.jobs:
            cells = table.setdefault((result.job.component, result.job.implementation), {})
            cells.setdefault(result.column, []).append(result)
        return dict(sorted(table.items(), key=lambda item: item[0][0]))

    @cached_property
    def anchors(self) -> Mapping[Subject, str]:
        """The id of the part of the page that has the findings of an implementation."""
        subjects = dict.fromkeys((found.finding.component, found.finding.implementation) for found in self.findings)
        return {subject: f"impl-{number}" for number, subject in enumerate(subjects, 1)}

    @cached_property
    def cases(self) -> int:
        """Cases of all these jobs and mutants."""
        return sum(result.job.cases for result in self.jobs) + sum(found.mutant.cases for found in self.mutants)

    @property
    def missed(self) -> list[LatestMutant]:
        """Mutants that had to be found, and were not."""
        return [latest for latest in self.mutants if latest.run.record.judged and not latest.mutant.found]


def count_findings(results: Sequence[LatestResult]) -> int:
    """Return how many findings jobs have, each folder once; one whose folder the record does not name counts too."""
    named = {(result.run.root, name) for result in results for name in result.job.findings}
    unnamed = [result for result in results if not result.job.findings]
    return len(named) + sum(result.job.verdict in ("wrong value", "drift", "exception") for result in unnamed)
