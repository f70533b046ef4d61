"""What a campaign has learned: of each job its regions, margins and rounds, and what it has found.

It is made of the entries of the log, one after the other, whether they were just written or are read again: a campaign
that is started again knows what it knew.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MEMORY = 0.9
"""What a gain counts after each further round of its job."""

OF_A_REGION, OF_A_PAIR, OF_A_MARGIN, OF_A_CAUSE = 1.0, 0.1, 4.0, 3.0
"""Gains: of a new region or branch, of two regions that were in no case together before, of the largest error/bound per
unit by which it rises, and of a finding of a new cause."""

Regions = tuple[str, ...]


@dataclass
class JobKnowledge:
    """What is known of one job on one target."""

    done: int = 0
    """Rounds before this one are over."""
    ahead: set[int] = field(default_factory=set)
    """Rounds after it that are: others that ran beside them were lost, or have not ended yet."""
    cases: int = 0
    steps: int = 0
    seconds: float = 0.0
    """Of all rounds, cut ones included."""
    worst: float = 0.0
    worst_case: str = ""
    """The largest error over bound of cases that hold, and the case as JSON; empty if there is none."""
    exact: bool = True
    """Whether only equality was asked for."""
    regions: set[str] = field(default_factory=set)
    pairs: set[tuple[str, str]] = field(default_factory=set)
    """Regions that cases were in, and those that one case was in together."""
    corpus: dict[Regions, str] = field(default_factory=dict)
    """Regions of a case that brought something new, to that case as JSON."""
    guides: list[str] = field(default_factory=list)
    """Cases as JSON that took a new branch of the implementation, where that can be seen."""
    taken: set[str] = field(default_factory=set)
    """Digests of cases of a corpus that were run here, and came from others."""
    failures: int = 0
    """Rounds that failed in a row, by no fault of a case."""
    gain: float = 0.0
    """Gains, of which those of earlier rounds count less."""

    @property
    def rounds(self) -> int:
        """Rounds that are over."""
        return self.done + len(self.ahead)

    def left(self) -> Iterator[int]:
        """Yield the numbers of rounds that are not over."""
        return (number for number in itertools.count(self.done) if number not in self.ahead)

    @property
    def seconds_of_a_round(self) -> float:
        """Seconds that a round takes, or is taken to."""
        return self.seconds / self.rounds if self.rounds else 1.0

    def new_in(self, kinds: Mapping[Regions, Any]) -> dict[Regions, Any]:
        """Return those kinds of cases that have a region, or two together, which no case had."""
        regions, pairs = set(self.regions), set(self.pairs)
        new = {}
        for kind, case in kinds.items():
            if not regions.issuperset(kind) or not pairs.issuperset(itertools.combinations(kind, 2)):
                new[kind] = case
                regions.update(kind)
                pairs.update(itertools.combinations(kind, 2))
        return new

    def take(self, entry: Mapping[str, Any]) -> None:
        """Take the entry of a round."""
        before = len(self.regions), len(self.pairs)
        for kind, case in entry["new"]:
            self.regions.update(kind)
            self.pairs.update(itertools.combinations(kind, 2))
            self.corpus[tuple(kind)] = case
        gain = OF_A_REGION * (len(self.regions) - before[0]) + OF_A_PAIR * (len(self.pairs) - before[1])
        self.taken.update(entry.get("taken", ()))
        self.guides += [case for case in entry["guides"] if case not in self.guides]
        gain += OF_A_REGION * len(entry["guides"])
        gain += OF_A_CAUSE * sum(found["new"] for found in entry["found"])
        if entry["worst_case"] and entry["worst"] >= self.worst:
            gain += OF_A_MARGIN * (entry["worst"] - self.worst) * (self.worst > 0)
            self.worst, self.worst_case = entry["worst"], entry["worst_case"]
        self.exact = self.exact and entry["exact"]
        if not entry["cut"]:
            self._count(entry["number"])
        self.cases += entry["cases"]
        self.steps += entry["steps"]
        self.seconds += entry["seconds"]
        self.failures = 0
        self.gain = MEMORY * self.gain + gain

    def _count(self, number: int) -> None:
        if number >= self.done:
            self.ahead.add(number)
        while self.done in self.ahead:
            self.ahead.remove(self.done)
            self.done += 1


@dataclass
class CauseKnowledge:
    """What is known of one cause."""

    folder: str
    """Name of the folder of its finding."""
    job: str
    found: float
    """When, as ``time.time()`` says it."""
    region: Mapping[str, Sequence[Any]]
    """Where it fails, as far as that is known."""
    times: int = 1
    """Rounds that have seen it."""
    others: set[str] = field(default_factory=set)
    """Other jobs that have."""


@dataclass
class Knowledge:
    """What is known of everything on one target.

    Parameters
    ----------
    place : str
        Target and CANN, of which entries are taken.
    """

    place: str
    name: str = ""
    """Name of the campaign."""
    jobs: dict[str, JobKnowledge] = field(default_factory=dict)
    causes: dict[str, CauseKnowledge] = field(default_factory=dict)
    """By the name of the folder."""
    fixed: list[str] = field(default_factory=list)
    """Folders of findings whose case has held since."""
    lost: list[tuple[str, str]] = field(default_factory=list)
    """Cards that were lost, and what was seen."""
    restarted: list[tuple[str, str]] = field(default_factory=list)
    """Workers that were gone, and what was seen; what they ran was run again."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Jobs of which a round failed by no fault of a case, and why."""
    sessions: int = 0
    """How often the campaign was started."""

    def of(self, job: str) -> JobKnowledge:
        """Return what is known of a job."""
        return self.jobs.setdefault(job, JobKnowledge())

    def regions_of(self, names: Sequence[str]) -> Iterator[Mapping[str, Sequence[Any]]]:
        """Yield where jobs are known to fail."""
        yield from (cause.region for cause in self.causes.values() if cause.job in names)

    def take(self, entry: Mapping[str, Any]) -> None:
        """Take an entry of the log."""
        if "campaign" in entry:
            self.name = entry["campaign"]
        if entry.get("place") != self.place:
            return
        kind = entry["kind"]
        if kind == "session":
            self.sessions += 1
        elif kind == "round":
            self._take_round(entry)
        elif kind == "again":
            self._take_again(entry)
        elif kind == "lost":
            self.lost.append((entry["card"], entry["why"]))
        elif kind == "restarted":
            self.restarted.append((entry["worker"], entry["why"]))
        elif kind == "failed":
            self.failed.append((entry["job"], entry["why"]))
            self.of(entry["job"]).failures += 1

    def _take_round(self, entry: Mapping[str, Any]) -> None:
        self.of(entry["job"]).take(entry)
        for found in entry["found"]:
            cause = self.causes.get(found["of"])
            if cause is None:
                self.causes[found["of"]] = CauseKnowledge(found["of"], entry["job"], entry["at"], found["region"])
            else:
                cause.times += 1
                cause.others |= {entry["job"]} - {cause.job}

    def _take_again(self, entry: Mapping[str, Any]) -> None:
        """Forget a cause whose case holds by now; what it hid may be drawn again."""
        if not entry["fails"] and self.causes.pop(entry["folder"], None) is not None:
            self.fixed.append(entry["folder"])
