"""Groups of ranks as the judge sees them: calls that all ranks make, and whose fault it is when one is not made."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch

from npudiff.model.anything import AnyInputs
from npudiff.model.component import ImplementationRaised, NotApplicable, Subject
from npudiff.model.faults import Faulted, Kind, RemoteError
from npudiff.model.implementation import Implementation, Target
from npudiff.model.ranks import RankAnswer, put_together
from npudiff.run.isolation.ipc import SharedTensors
from npudiff.run.isolation.process import WorkerProcess, await_any
from npudiff.run.ranks.mesh import Mesh, closed, connected
from npudiff.run.ranks.rank import rank_main
from npudiff.run.untrusted.wire import pack

_GRACE = 0.5
"""Seconds that the other ranks get once one has failed: those that wait for it see that by themselves."""

_LATER = 1.0
"""Seconds of a call's time after which ranks have to have given up waiting for each other."""

MOST_RANKS = 24
"""Processes that live on between calls, of groups of different sizes; one group may have more."""


class RankGroups:
    """The ranks of a target: groups of processes that are made when a case needs them, and live on.

    Parameters
    ----------
    target : Target
        Where ranks run.
    seconds : float
        That a call may take.
    installed : callable
        As of ``with_ranks``.
    """

    def __init__(self, target: Target, seconds: float, installed: Callable[[], Sequence[Implementation]]) -> None:
        self._target, self._seconds, self._installed = target, seconds, installed
        self._groups: dict[int, _Group] = {}
        self._owner = os.getpid()
        weakref.finalize(self, _end_all, self._groups, self._owner)

    def begin(self, subject: Subject, inputs: AnyInputs) -> Callable[[], Mapping[str, torch.Tensor]]:
        """Begin a call on all ranks, and return what waits for the outputs of all.

        Raises
        ------
        NotApplicable
            If there are not as many devices as ranks.
        """
        ranks = subject.component.ranks
        assert ranks is not None  # noqa: S101 - the caller has looked
        count = ranks.count(inputs)
        devices = None if self._target.devices is None else self._target.devices()
        if devices is not None and count > devices:
            raise NotApplicable(f"{count} ranks need as many devices, and {devices} are here")
        group = self._group(count, subject)
        group.begin(subject, [ranks.part(inputs, rank) for rank in range(count)])

        def outputs() -> Mapping[str, torch.Tensor]:
            try:
                return put_together(ranks, inputs, group.answers())
            except (RemoteError, RankAnswer) as error:
                self._forget(count)
                raise ImplementationRaised(f"{type(error).__name__}: {error}") from error
            except BaseException:
                self._forget(count)
                raise

        return outputs

    def close(self) -> None:
        """End all ranks."""
        for count in list(self._groups):
            self._forget(count)

    def _group(self, count: int, subject: Subject) -> _Group:
        """The group of so many ranks, with ranks that know the implementation."""
        if self._owner != os.getpid():  # a fork of who made them has ranks of its own
            self._groups, self._owner = {}, os.getpid()
            weakref.finalize(self, _end_all, self._groups, self._owner)
        group = self._groups.pop(count, None)
        if group is not None and (group.calls or not group.knows(subject)):
            group.end()
            group = None
        if group is None:
            while self._groups and sum(self._groups) + count > MOST_RANKS:
                self._forget(next(iter(self._groups)))  # what was not used for longest
            group = _Group(count, self._known(subject), self._seconds)
        self._groups[count] = group
        return group

    def _known(self, subject: Subject) -> list[Subject]:
        """The subject, and others of its component that are installed."""
        others = [item for item in self._installed() if item.component == subject.component.name]
        mine = replace(subject, target=self._target)  # without what makes ranks: these are some
        return [mine, *(Subject(subject.component, item, self._target) for item in others)]

    def _forget(self, count: int) -> None:
        group = self._groups.pop(count, None)
        if group is not None:
            group.end()


def _end_all(groups: dict[int, _Group], owner: int) -> None:
    """End the ranks of somebody who is gone, in the process that made them."""
    if owner == os.getpid():
        while groups:
            groups.popitem()[1].end()


@dataclass(frozen=True)
class _End:
    """How a rank ended a call without an answer."""

    error: RemoteError
    waited: bool = False
    """Whether it gave up for another one."""
    differs: bool = False
    """Whether ranks did not call the same."""


class _Rank(WorkerProcess):
    """A rank, and the file in which it is given tensors."""

    def __init__(self, subjects: Sequence[Subject], lines: Sequence[Mapping[int, Any]], rank: int, meeting: int,
                 seconds: float) -> None:  # fmt: skip
        self.given = os.memfd_create("npudiff-inputs", os.MFD_CLOEXEC)

        def life(connection: Connection, shared: SharedTensors) -> NoReturn:
            closed([of_rank for number, of_rank in enumerate(lines) if number != rank])
            mesh = Mesh(rank, lines[rank])
            rank_main(subjects, mesh, len(lines), self.given, meeting, seconds, connection, shared)

        super().__init__(life)

    def _release(self) -> None:
        super()._release()
        os.close(self.given)


class _Group:
    """Ranks that make calls together.

    Parameters
    ----------
    count : int
        How many.
    subjects : sequence of Subject
        Whose implementations they may be asked for.
    seconds : float
        That a call may take.
    """

    def __init__(self, count: int, subjects: Sequence[Subject], seconds: float) -> None:
        self._functions = [one.implementation.function for one in subjects]
        self._seconds = seconds
        self._meeting = os.memfd_create("npudiff-meeting", os.MFD_CLOEXEC)  # no name, so that nothing outlives a kill
        waits = max(seconds - _LATER, seconds / 2)
        lines = connected(count)
        self._ranks: list[_Rank] = []
        try:
            for rank in range(count):
                self._ranks.append(_Rank(subjects, lines, rank, self._meeting, waits))
        finally:
            closed(lines)
        self._call, self.calls, self._until = 0, False, 0.0

    def knows(self, subject: Subject) -> bool:
        """Whether its ranks can call an implementation."""
        return any(function is subject.implementation.function for function in self._functions)

    def begin(self, subject: Subject, parts: Sequence[AnyInputs]) -> None:
        """Have each rank make its part of a call."""
        place = next(at for at, function in enumerate(self._functions) if function is subject.implementation.function)
        self._call += 1
        self.calls, self._until = True, time.monotonic() + self._seconds
        for rank, part in zip(self._ranks, parts, strict=True):
            rank.tell({"call": self._call, "subject": place, "inputs": pack(part, rank.given, trusted=True)})

    def answers(self) -> list[dict[str, torch.Tensor]]:
        """Wait for the outputs of all ranks.

        Raises
        ------
        RemoteError
            If a rank raises, dies, does not come back, or does not call what the others do.
        NotApplicable
            If one raises what says that a backend is not here.
        """
        replies, ends = self._collected()
        absent = next((reply["text"] for reply in replies.values() if reply["verdict"] == "not applicable"), None)
        if absent is not None and all(end.waited for end in ends.values()):
            raise NotApplicable(absent)
        if ends:
            raise self._blamed(ends)
        self.calls = False
        return [
            dict(zip(replies[rank]["names"], one.shared.read(replies[rank]["tensors"]), strict=True))
            for rank, one in enumerate(self._ranks)
        ]

    def _collected(self) -> tuple[dict[int, dict[str, Any]], dict[int, _End]]:
        """What each rank answers, and how those ended that have no answer."""
        replies: dict[int, dict[str, Any]] = {}
        ends: dict[int, _End] = {}
        until = self._until
        while waiting := [rank for rank in range(len(self._ranks)) if rank not in replies and rank not in ends]:
            ready = await_any([self._ranks[rank] for rank in waiting], until - time.monotonic())
            for place in ready:
                rank = waiting[place]
                end = self._heard(rank, replies)
                if end is not None:
                    ends[rank] = end
                    until = min(until, time.monotonic() + _GRACE)
            if not ready:
                ends |= self._silent(waiting, by_itself=all(end.waited for end in ends.values()))
        return replies, ends

    def _heard(self, rank: int, replies: dict[int, dict[str, Any]]) -> _End | None:
        """Take a rank's answer; return how it ended if it has none."""
        try:
            reply = self._ranks[rank].hear()
        except Faulted as fault:
            return _End(RemoteError(fault.kind.value, str(fault), fault.kind, fault.frames))
        if reply["verdict"] != "raised":
            replies[rank] = reply
            return None
        error = RemoteError(reply["name"], reply["text"], Kind[reply["kind"]], tuple(reply["frames"]))
        return _End(error, reply["waited"], reply["differs"])

    def _silent(self, ranks: Sequence[int], *, by_itself: bool) -> dict[int, _End]:
        """End ranks that do not answer; unless another one failed by itself, they are what is wrong."""
        ends = {}
        for rank in ranks:
            fault = self._ranks[rank].hangs(f"no answer within {self._seconds:g} s")
            ends[rank] = _End(RemoteError(fault.kind.value, str(fault), fault.kind, fault.frames), not by_itself)
        return ends

    def _blamed(self, ends: Mapping[int, _End]) -> RemoteError:
        """The error of the rank that is the reason: not of one that gave up for another."""

        def order(rank: int) -> tuple[bool, bool, bool, int]:
            end = ends[rank]
            return end.waited, end.differs, end.error.kind is Kind.TIMED_OUT, rank

        rank = min(ends, key=order)
        error = ends[rank].error
        said = ends[rank].differs or ends[rank].waited  # it says which ranks it is about
        where = "" if said else f"rank {rank} of {len(self._ranks)}: "
        return RemoteError(error.name, where + error.text, error.kind, error.frames)

    def end(self) -> None:
        """End all ranks."""
        for rank in self._ranks:
            rank.begin_to_end()  # each takes milliseconds to go: all at once
        for rank in self._ranks:
            rank.kill()
        os.close(self._meeting)
