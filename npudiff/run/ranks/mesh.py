"""The lines between the ranks of one host: messages to each other, and what happens when somebody does not send one."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_FRAME = struct.Struct("<IIQ")  # number of the call, bytes of what is said, bytes of what is sent
_READ = 2**20

_LEFT = "left"
"""What a rank says last in a call."""

_ALL_SAID = 0.5
"""Seconds that others get to say what they call, once two do not call the same."""


class RankMissing(RuntimeError):
    """A rank gives up, since another one is not there, or does something else: it is not the reason itself."""


class RanksDiffer(RuntimeError):
    """Ranks do not call the same; the message says who calls what."""


class Message(NamedTuple):
    """What one rank sends to another."""

    said: str
    """What it is for: the call and its shape."""
    content: bytes
    """Elements."""


class Mesh:
    """Lines of one rank to all others.

    Sending never waits: what a line does not take yet is sent while this rank waits for something, or ends its call.

    Parameters
    ----------
    rank : int
        The number of this rank.
    lines : mapping
        The number of another rank to a connected socket.
    """

    def __init__(self, rank: int, lines: Mapping[int, socket.socket]) -> None:
        self.rank = rank
        self._lines = dict(lines)
        for line in self._lines.values():
            line.setblocking(False)
        self._peers = {line.fileno(): peer for peer, line in self._lines.items()}
        self._unsent: dict[int, bytearray] = {peer: bytearray() for peer in self._lines}
        self._unread: dict[int, bytearray] = {peer: bytearray() for peer in self._lines}
        self._poll = select.poll()
        for line in self._lines.values():
            self._poll.register(line, select.POLLIN)
        self._call, self._until = 0, 0.0
        self._gone: set[int] = set()
        self._left: set[int] = set()
        self._inbox: dict[tuple[int, str], deque[Message]] = defaultdict(deque)
        self._later: list[tuple[int, int, list[str], bytes]] = []

    def begin(self, call: int, until: float) -> None:
        """Begin a call: whatever is left of earlier ones is nobody's.

        Parameters
        ----------
        call : int
            Its number, the same on all ranks.
        until : float
            By ``time.monotonic``: when this rank gives up waiting for another one.
        """
        self._call, self._until = call, until
        self._left.clear()
        self._inbox.clear()
        later, self._later = self._later, []
        for message in later:
            self._sort(*message)
        while self._pump(0.0):  # what others have said in calls in which nobody listened fills the lines
            pass

    def post(self, peer: int, channel: str, said: str, content: bytes) -> None:
        """Send a message on a channel to a rank, or to this one itself."""
        if peer == self.rank:
            self._inbox[peer, channel].append(Message(said, content))
        else:
            self._send(peer, [channel, said], content)

    def take(self, peer: int, channel: str, what: str) -> Message:
        """Return the next message of a rank on a channel.

        Raises
        ------
        RankMissing
            If the rank is gone or has ended its call, or sends nothing in time. ``what`` says what this one waits in.
        """
        inbox = self._inbox[peer, channel]
        while not inbox:
            if peer in self._gone:
                raise RankMissing(f"rank {peer} is gone, and rank {self.rank} waits for it in {what}")
            if peer in self._left:
                raise RankMissing(f"rank {peer} has ended its call, and rank {self.rank} waits for it in {what}")
            if not self._pump(self._until - time.monotonic()) and time.monotonic() >= self._until:
                raise RankMissing(f"rank {self.rank} has waited for rank {peer} in {what}, and it did not come")
        return inbox.popleft()

    def exchange(self, ranks: Sequence[int], channel: str, what: str, contents: Sequence[bytes]) -> list[bytes]:
        """Give each rank of a group its content, and return what each of them gives this one.

        Parameters
        ----------
        ranks : sequence of int
            The group, this rank included.
        channel : str
            Of the group.
        what : str
            What is called, with everything that has to be the same on all ranks.
        contents : sequence of bytes
            One for each rank of the group.

        Raises
        ------
        RanksDiffer
            If they do not call the same.
        RankMissing
            As of ``take``.
        """
        for peer, content in zip(ranks, contents, strict=True):
            self.post(peer, channel, what, content)
        messages: dict[int, Message] = {}
        for peer in ranks:
            try:
                messages[peer] = self.take(peer, channel, what)
            except RankMissing:
                if all(message.said == what for message in messages.values()):
                    raise
                continue
            if messages[peer].said != what:
                self._until = min(self._until, time.monotonic() + _ALL_SAID)
        if any(message.said != what for message in messages.values()):
            raise RanksDiffer(_who_calls_what({peer: message.said for peer, message in messages.items()}))
        return [messages[peer].content for peer in ranks]

    def end(self) -> None:
        """Tell the others that this rank takes no further part, and send what was not sent."""
        for peer in self._lines:
            self._send(peer, [_LEFT], b"")
        while any(self._unsent[peer] for peer in self._lines if peer not in self._gone):
            if not self._pump(self._until - time.monotonic()) and time.monotonic() >= self._until:
                return

    def _send(self, peer: int, said: list[str], content: bytes) -> None:
        text = json.dumps(said).encode()
        self._unsent[peer] += _FRAME.pack(self._call, len(text), len(content)) + text + content
        self._flush(peer)

    def _flush(self, peer: int) -> None:
        unsent = self._unsent[peer]
        with contextlib.suppress(BlockingIOError):
            try:
                while unsent:
                    del unsent[: self._lines[peer].send(memoryview(unsent)[:_READ].tobytes())]
            except (BrokenPipeError, ConnectionResetError):
                self._lose(peer)
                unsent.clear()
        if peer not in self._gone:
            self._poll.modify(self._lines[peer], select.POLLIN | (select.POLLOUT if unsent else 0))

    def _pump(self, seconds: float) -> bool:
        """Wait until a line can be read or written; whether one could."""
        ready = self._poll.poll(max(0.0, seconds) * 1000)
        for file, events in ready:
            peer = self._peers[file]
            if events & select.POLLOUT:
                self._flush(peer)
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._read(peer)
        return bool(ready)

    def _read(self, peer: int) -> None:
        unread = self._unread[peer]
        try:
            arrived = self._lines[peer].recv(_READ)
        except BlockingIOError:
            return
        except ConnectionResetError:
            arrived = b""
        if not arrived:
            self._lose(peer)
            return
        unread += arrived
        while len(unread) >= _FRAME.size:
            call, said, content = _FRAME.unpack_from(unread)
            end = _FRAME.size + said + content
            if len(unread) < end:
                return
            words = json.loads(bytes(unread[_FRAME.size : _FRAME.size + said]))
            self._sort(peer, call, words, bytes(unread[_FRAME.size + said : end]))
            del unread[:end]

    def _sort(self, peer: int, call: int, words: list[str], content: bytes) -> None:
        if call > self._call:
            self._later.append((peer, call, words, content))
        elif call == self._call and words == [_LEFT]:
            self._left.add(peer)
        elif call == self._call:
            self._inbox[peer, words[0]].append(Message(words[1], content))

    def _lose(self, peer: int) -> None:
        if peer not in self._gone:
            self._gone.add(peer)
            self._poll.unregister(self._lines[peer])


def _who_calls_what(said: Mapping[int, str]) -> str:
    """Say who calls what; where most call the same, the others come first."""
    callers: dict[str, list[int]] = {}
    for rank, what in said.items():
        callers.setdefault(what, []).append(rank)
    few = sorted(callers.items(), key=lambda one: (len(one[1]), one[1]))
    return "; ".join(f"{_ranks(ranks)} {what}" for what, ranks in few)


def _ranks(ranks: Sequence[int]) -> str:
    names = ", ".join(map(str, ranks))
    return f"rank {names} calls" if len(ranks) == 1 else f"ranks {names} call"


def connected(count: int) -> list[dict[int, socket.socket]]:
    """Return the lines of each of several ranks, two sockets for each pair."""
    lines: list[dict[int, socket.socket]] = [{} for _ in range(count)]
    for one in range(count):
        for other in range(one + 1, count):
            lines[one][other], lines[other][one] = socket.socketpair()
    return lines


def closed(lines: Sequence[Mapping[int, Any]]) -> None:
    """Close lines that are others'."""
    for of_rank in lines:
        for line in of_rank.values():
            line.close()
