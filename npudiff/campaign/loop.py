"""The loop of a campaign: rounds, each written down as it ends, until the time is up or somebody ends it.

Rounds are chosen for a turn at a time, by what is known when those of the turn before are given out. Some of these
still run then, and are neither chosen again nor waited for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npudiff.campaign.causes import Causes
from npudiff.campaign.corpus import Corpus, digest
from npudiff.campaign.known import JobKnowledge, Knowledge
from npudiff.campaign.log import CampaignLog
from npudiff.campaign.rounds import CardLost, Ended, Failed, Restarted, Round, narrowed, round_of
from npudiff.campaign.shares import next_jobs
from npudiff.campaign.team import Team, Told
from npudiff.errors import DeviceLost
from npudiff.findings.finding import Finding
from npudiff.gate.rotation import seed_of
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.case import dumps
from npudiff.model.job import Job, Verdict
from npudiff.run.plan import Plan

TURN_SECONDS, LONGEST_ROUNDS = 20.0, 3.0
"""Seconds of a turn on each worker, or so many of the longest rounds if that is more: what was learned by its end
decides on the next one, which has a process of its own on each worker."""

MOST_FAILURES = 3
"""Rounds of a job that fail in a row, by no fault of a case, after which it is not run any more."""

AGAIN = (Verdict.WRONG.value, Verdict.RAISED.value)
"""Verdicts of findings whose case alone shows whether they are fixed."""


@dataclass
class Campaign:
    """A campaign that runs.

    Attributes
    ----------
    plan : Plan
        What is searched.
    knowledge : Knowledge
        What is known, also of sessions before this one.
    causes : Causes
        Findings.
    log : CampaignLog
        Where all of it is written.
    """

    plan: Plan
    knowledge: Knowledge
    causes: Causes
    log: CampaignLog
    tell: Callable[[], None] = lambda: None
    """Called after each round."""
    corpus: Corpus | None = None
    """What campaigns have in common; None without."""
    started: float = field(default_factory=time.monotonic)
    cases: int = 0
    """Cases of this session."""
    problems: list[str] = field(default_factory=list)
    """What could not be written."""
    flying: dict[int, Round] = field(default_factory=dict)
    """Rounds that are given out and have not ended, by ``id``."""

    @classmethod
    def begun(cls, plan: Plan, root: Path, knowledge: Knowledge, log: CampaignLog) -> Campaign:
        """Return a campaign with the findings that it has."""
        return cls(plan, knowledge, Causes(root, knowledge), log)

    @property
    def seconds(self) -> float:
        """Time of this session."""
        return time.monotonic() - self.started

    @property
    def given_up(self) -> list[str]:
        """Jobs that are not run any more, since their rounds failed by no fault of a case."""
        return [job.name for job in self.plan.jobs if self.knowledge.of(job.name).failures >= MOST_FAILURES]

    def run(self, team: Team, until: float | None) -> None:
        """Search until a time of ``time.monotonic()``, or as long as nobody ends it.

        Raises
        ------
        DeviceLost
            If there is no card left.
        """
        self.log.add("session", workers=team.size, jobs=len(self.plan.jobs))
        for job in self.plan.jobs:
            self.knowledge.of(job.name).failures = 0  # of another session, perhaps of another version
        for told in team.run(self._turns(team, until), self.causes, until):
            self._landed(told)
            self._take(told)
            self.tell()
        if not team.size:
            gone, why = (*self.knowledge.restarted, *self.knowledge.lost)[-1]
            raise DeviceLost(f"nobody is left to run anything; the last one, {gone}: {why}")

    def _turns(self, team: Team, until: float | None) -> Iterator[Sequence[Round]]:
        """Yield the rounds of one turn after the other, and none where that has to wait for those that run."""
        if again := self._again():
            yield self._given_out(again)
        turn = 0
        while team.size and (until is None or time.monotonic() < until):
            rounds = self._next(team.size, turn)
            if not rounds and not self.flying:
                return
            yield self._given_out(rounds)
            turn += bool(rounds)

    def _given_out(self, rounds: Sequence[Round]) -> Sequence[Round]:
        self.flying.update({id(one): one for one in rounds})
        return rounds

    def _landed(self, told: Told) -> None:
        """Take a round as one that runs no more; what a worker or a card was lost with is run elsewhere."""
        if told.round is not None:
            self.flying.pop(id(told.round), None)
            if self.corpus is not None and isinstance(told, CardLost | Restarted):
                self.corpus.give_back(told.round.job.name, told.round.first)

    def _again(self) -> list[Round]:
        """The cases of known findings: whether they still fail comes first."""
        jobs = {job.name: job for job in self.plan.jobs}
        found = [one.finding for one in self.causes.findings.values() if one.finding.job in jobs]
        return [
            Round(jobs[one.job], 0, 0, given=(json.dumps(dict(one.case), separators=(",", ":")),))
            for one in found
            if one.verdict in AGAIN and not one.detail.get("flaky")
        ]

    def _next(self, workers: int, turn: int) -> list[Round]:
        """Return the rounds of a turn: of what has never run everything, and equivalence first."""
        given_up = set(self.given_up)
        jobs = {job.name: job for job in self.plan.jobs if job.name not in given_up}
        known: dict[str, JobKnowledge] = {name: self.knowledge.of(name) for name in jobs}
        if not jobs or (turn and not any(one.cases for one in known.values())):
            return []  # nothing can be drawn, unless what runs shows otherwise
        done = sum(one.rounds for one in known.values())
        offset = seed_of(self.knowledge.name, done, "offset") / 2**63
        out = {(one.job.name, one.number) for one in self.flying.values() if one.given is None}
        numbers = {name: self._left(name, out) for name in known}
        begun = {one.job.name for one in self.flying.values()}
        choice = {name: one for name, one in known.items() if one.rounds or name not in begun} or known
        names = list(next_jobs(choice, seconds_of_a_turn(known) * workers, offset))
        names = [name for name in self._given_by_others(known) if name not in names] + names
        rounds = [self._round(jobs[one], next(numbers[one])) for one in names]
        fresh = [one for one in rounds if not one.number]
        return sorted(rounds, key=lambda one: one.job.prop is not EQUIVALENCE) if fresh else rounds

    def _round(self, job: Job, number: int) -> Round:
        first = () if self.corpus is None else self.corpus.first(job.name)
        guides = self.knowledge.of(job.name).guides
        return round_of(self.knowledge.name, job, number, self._regions(job), guides, first)

    def _given_by_others(self, jobs: Iterable[str]) -> list[str]:
        """Jobs of which others have cases that were not run here."""
        return [] if self.corpus is None else [name for name in jobs if self.corpus.waits(name)]

    def _taken(self, told: Ended) -> list[str]:
        """Digests of the cases of others that a round has run; those that it has not go back.

        A round ends with the first case that fails.
        """
        first, failure = told.round.first, told.outcome.first_failure
        if self.corpus is None or not first:
            return []
        done = 0 if told.cut else len(first)
        if failure is not None and (text := dumps(failure.case)) in first:
            done = first.index(text) + 1
        self.corpus.give_back(told.round.job.name, first[done:])
        self.corpus.taken += done
        return [digest(one) for one in first[:done]]

    def _left(self, job: str, out: Collection[tuple[str, int]]) -> Iterator[int]:
        """Yield the numbers of a job's rounds that are neither over nor given out."""
        return (number for number in self.knowledge.of(job).left() if (job, number) not in out)

    def _regions(self, job: Job) -> list[Any]:
        """Where a job is known to fail, and its subject's equivalence, as far as anything else is left."""
        names = {job.name, ".".join((*job.subject.names, EQUIVALENCE.name))}
        regions = list(self.knowledge.regions_of(sorted(names)))
        return regions if regions and narrowed(job, regions) is not None else []

    def _take(self, told: Told) -> None:
        """Write down what has happened."""
        if isinstance(told, Failed):
            self.log.add("failed", job=told.round.job.name, number=told.round.number, why=told.why[-2000:])
        elif isinstance(told, CardLost):
            self.log.add("lost", card=told.card, why=told.why)
        elif isinstance(told, Restarted):
            self.log.add("restarted", worker=told.worker, why=told.why)
        elif told.round.given is not None:
            self._take_again(told)
        else:
            self._take_round(told)

    def _take_again(self, told: Ended) -> None:
        fails = bool(told.outcome.findings)
        for name, one in list(self.causes.findings.items()):
            if one.finding.job == told.round.job.name and _is_case(one.finding, told.round):
                self.cases += told.outcome.cases
                if told.outcome.cases or fails:
                    self.log.add("again", folder=name, fails=fails)
                if not fails and told.outcome.cases:
                    self.causes.forget(name)

    def _take_round(self, told: Ended) -> None:
        outcome, job = told.outcome, told.round.job
        if told.cut and not outcome.cases:
            self._taken(told)
            return  # its time was up before it began
        before = self.knowledge.of(job.name)
        found = self.causes.told(told.kept, outcome.region)
        self.problems += [one.problem for one in told.kept if one.problem]
        self.cases += outcome.cases
        self.log.add(
            "round",
            job=job.name,
            number=told.round.number,
            seed=told.round.seed,
            cases=outcome.cases,
            steps=outcome.steps,
            seconds=round(outcome.seconds, 4),
            not_applicable=outcome.not_applicable.total(),
            verdict=outcome.verdict.value,
            worst=outcome.worst_ratio,
            worst_case="" if outcome.worst_case is None else dumps(outcome.worst_case),
            exact=outcome.exact,
            new=[[list(kind), text] for kind, text in before.new_in(outcome.kinds).items()],
            guides=[dumps(case) for case in outcome.guides],
            found=found,
            taken=self._taken(told),
            cut=told.cut,
        )


def seconds_of_a_turn(known: Mapping[str, JobKnowledge]) -> float:
    """Return the seconds of a turn on each worker."""
    return max(TURN_SECONDS, LONGEST_ROUNDS * max(one.seconds_of_a_round for one in known.values()))


def _is_case(finding: Finding, one: Round) -> bool:
    return one.given == (json.dumps(dict(finding.case), separators=(",", ":")),)
