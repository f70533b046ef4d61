"""The workers of a campaign on one machine: forked processes, one per core or card.

A process is forked for each turn, from the one that knows all findings by then. Nobody waits for the end of a turn:
whoever is free when all of its rounds are given out begins with the next one.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from npudiff.campaign.causes import Causes
from npudiff.campaign.rounds import CardLost, Ended, Failed, Restarted, Round, is_cut, task_of
from npudiff.errors import DeviceLost
from npudiff.run.events import CasesJudged, JobStarted, Listener
from npudiff.run.messages import Keep, Task, outcome_from_message
from npudiff.run.plan import Plan
from npudiff.run.workers import WorkerFailed, WorkerProcess
from npudiff.text import counted

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
"""What CANN reads when a process opens its device: which cards there are for it, in which order."""

Told = Ended | Failed | CardLost | Restarted

Turns = Iterator[Sequence[Round]]
"""Rounds of one turn after the other. A turn is asked for when all rounds of the one before are given out; an empty one
says that there is nothing to do until a round ends."""


class Team(Protocol):
    """Who runs the rounds of a campaign."""

    @property
    def size(self) -> int:
        """Rounds that run at the same time; 0 where no card is left."""

    @property
    def where(self) -> str:
        """The workers in words, such as ``2 workers``."""

    def run(self, turns: Turns, causes: Causes, until: float | None) -> Iterator[Told]:
        """Run rounds, in about their order, and yield what comes of them; those that are lost are not run again.

        Parameters
        ----------
        turns : iterator of sequences of Round
            What is run.
        causes : Causes
            Says where findings are written, and which are known.
        until : float or None
            Time of ``time.monotonic()`` after which no other case is begun.
        """


@dataclass
class _Turn:
    """The rounds of a turn, and which of them nobody has yet."""

    rounds: Sequence[Round] = ()
    tasks: Sequence[Task] = ()
    waiting: deque[int] = field(default_factory=deque)


@dataclass
class _Worker:
    """A place for a process: a core or a card. Its process is another one in each turn."""

    number: int
    card: str
    process: WorkerProcess | None = None
    turn: _Turn = field(default_factory=_Turn)
    index: int = 0
    """The round of the turn that it runs, or has run last."""

    @property
    def round(self) -> Round:
        """The round that it runs, or has run last."""
        return self.turn.rounds[self.index]

    def take_card(self, _: int) -> None:
        """Have a process that has just begun use this card and no other."""
        if self.card:
            os.environ[VISIBLE] = self.card

    def close(self) -> None:
        """Have the process end by itself."""
        if self.process is not None:
            self.process.close()
            self.process = None

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.end()
            self.process = None


class LocalTeam:
    """Processes of this machine.

    Parameters
    ----------
    plan : Plan
        What the rounds are of.
    workers : int
        Processes, where there are no cards.
    cards : sequence of str
        Cards, each of which gets a process; empty where all share what is visible.
    tell : callable
        Told of each event of a run but the end of a job.
    """

    def __init__(self, plan: Plan, workers: int, cards: Sequence[str] = (), tell: Listener = lambda _: None) -> None:
        self._plan, self._tell = plan, tell
        self._has_cards = bool(cards)
        self._workers = [_Worker(number, card) for number, card in enumerate(cards or [""] * workers)]
        self._turn = _Turn()

    @property
    def size(self) -> int:
        """As of ``Team``."""
        return len(self._workers)

    @property
    def where(self) -> str:
        """As of ``Team``."""
        return counted(self.size, "card" if self._has_cards else "worker")

    def run(self, turns: Turns, causes: Causes, until: float | None) -> Iterator[Told]:
        """As of ``Team``; a card that is lost is not used again."""
        self._turn, free = _Turn(), list(self._workers)
        busy: dict[Connection, _Worker] = {}
        try:
            while True:
                while free and self._begun(turns, causes, until):
                    self._give(free.pop(0), busy)
                if not busy:
                    for worker in self._workers:
                        worker.close()
                    return
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)  # noqa: S101 - what wait was given
                    worker = busy[ready]
                    told = self._told(worker, until)
                    if told is None:
                        continue
                    del busy[ready]
                    if isinstance(told, CardLost):
                        self._workers.remove(worker)
                    elif self._turn.waiting:
                        self._give(worker, busy)
                    else:
                        free.append(worker)
                    yield told
        finally:
            for worker in self._workers:
                worker.end()

    def _begun(self, turns: Turns, causes: Causes, until: float | None) -> bool:
        """Whether there is a round to give, of this turn or of the next one."""
        if not self._turn.waiting and (rounds := next(turns, ())):
            keep: Keep = causes.keep()
            tasks = [task_of(self._plan, one, keep, until) for one in rounds]
            self._turn = _Turn(rounds, tasks, deque(range(len(rounds))))
        return bool(self._turn.waiting)

    def _give(self, worker: _Worker, busy: dict[Connection, _Worker]) -> None:
        """Give a worker the next round; its process is one of this turn."""
        if worker.process is None or worker.turn is not self._turn:
            worker.close()
            held = [one.process.connection for one in self._workers if one.process is not None]
            worker.process = WorkerProcess(worker.number, self._turn.tasks, held, worker.take_card)
            worker.turn = self._turn
        worker.index = self._turn.waiting.popleft()
        with contextlib.suppress(ConnectionError):  # it is dead, which is seen when it is listened to
            worker.process.give([worker.index])
        self._tell(JobStarted(worker.round.job, ""))
        busy[worker.process.connection] = worker

    def _told(self, worker: _Worker, until: float | None) -> Told | None:
        """Return what comes of the round of a worker; None if that only says how far it is."""
        assert worker.process is not None  # noqa: S101 - it has a round
        one = worker.round
        try:
            message: Mapping[str, Any] = worker.process.received(worker.turn.tasks[worker.index].job)
        except WorkerFailed as error:
            worker.end()
            return Failed(one, str(error))
        except DeviceLost as error:
            worker.end()
            if not self._has_cards:
                raise
            return CardLost(worker.card, str(error), one)
        if "judged" in message:
            self._tell(CasesJudged(one.job, message["judged"], ""))
            return None
        outcome, kept = outcome_from_message(one.job, dict(message))
        return Ended(one, outcome, tuple(kept), is_cut(outcome, until))


def cards_named(count: int) -> list[str]:
    """Return the names of so many cards, the first ones of those that are visible to this process."""
    visible = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return (visible or [str(number) for number in range(count)])[:count]
