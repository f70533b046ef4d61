"""The workers of a campaign on one machine: forked processes, one per core or card, which run the rounds of a turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from npudiff.campaign.causes import Causes
from npudiff.campaign.rounds import CardLost, Ended, Failed, Round, is_cut, task_of
from npudiff.errors import DeviceLost
from npudiff.run.events import Listener
from npudiff.run.plan import Plan
from npudiff.run.workers import WorkerFailed, run_in_workers

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
"""What CANN reads when a process opens its device: which cards there are for it, in which order."""

Told = Ended | Failed | CardLost


class Team(Protocol):
    """Who runs the rounds of a campaign."""

    @property
    def size(self) -> int:
        """Rounds that run at the same time; 0 where no card is left."""

    @property
    def where(self) -> str:
        """The workers in words, such as ``2 workers``."""

    def run(self, rounds: Sequence[Round], causes: Causes, until: float | None) -> Iterator[Told]:
        """Run rounds, in about their order, and yield them as they end; those that are lost do not end.

        Parameters
        ----------
        rounds : sequence of Round
            What is run.
        causes : Causes
            Says where findings are written, and which are known.
        until : float or None
            Time of ``time.monotonic()`` after which no other case is begun.
        """


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
        self._plan, self._workers, self._tell = plan, workers, tell
        self._cards = list(cards)
        self._has_cards = bool(cards)

    @property
    def size(self) -> int:
        """As of ``Team``."""
        return len(self._cards) if self._has_cards else self._workers

    @property
    def where(self) -> str:
        """As of ``Team``."""
        noun = "card" if self._has_cards else "worker"
        return f"{self.size} {noun}{'' if self.size == 1 else 's'}"

    def run(self, rounds: Sequence[Round], causes: Causes, until: float | None) -> Iterator[Told]:
        """As of ``Team``; a card that is lost is not used again."""
        keep = causes.keep()
        tasks = [task_of(self._plan, one, keep, until) for one in rounds]
        results = run_in_workers(tasks, self.size, self._tell, begun=self._begun())
        try:
            for index, outcome, kept in results:
                yield Ended(rounds[index], outcome, tuple(kept), is_cut(outcome, until))
        except WorkerFailed as error:
            yield Failed(rounds[error.task], str(error))
        except DeviceLost as error:
            if not self._has_cards:
                raise
            yield CardLost(self._cards.pop(error.worker), str(error))
        finally:
            results.close()

    def _begun(self) -> Callable[[int], None]:
        cards = tuple(self._cards)

        def take_card(number: int) -> None:
            if cards:
                os.environ[VISIBLE] = cards[number]

        return take_card


def cards_named(count: int) -> list[str]:
    """Return the names of so many cards, the first ones of those that are visible to this process."""
    visible = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return (visible or [str(number) for number in range(count)])[:count]
