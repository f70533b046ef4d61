"""The state machine of state pools: a rule per kind of step, drawn from what can be done next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hypothesis.stateful import rule

from npudiff.draw.state_machine import Machine
from npudiff.model.constraints import allows
from npudiff.properties.state_pools.case import KINDS, StatePoolsCase
from npudiff.reference.state_pools import Decode, Evict, Extend, Fork, Free, Restore, Step, Verify
from npudiff.reference.state_pools.steps import Roster

LENGTHS = (1, 2, 3, 4, 5, 7, 1, 2, 17, 63, 64, 65, 70)
"""Tokens of a request at once: fewer than the history of a convolution has, and around a chunk."""

PADDED = (0, 0, 1, 2)

_INSTEAD = {"restore": ("evict",)}
"""What a rule does that cannot do what it is named for; if that cannot be done either, requests get tokens."""


class StatePoolsMachine(Machine):
    """Does what a server does to the states of its requests, in any order."""

    def opening(self) -> StatePoolsCase:
        """Draw the sizes of the layer and of its pools."""
        self._box = self.choose.pick(self.constraints.boxes)
        opening = StatePoolsCase.drawn_by(self.choose, self._box)
        self._roster = Roster(opening.requests, opening.drafts)
        return opening

    @rule()
    def admit(self) -> None:
        """Begin a request, beside others that go on."""
        self._step("admit")

    @rule()
    def extend(self) -> None:
        """Give some requests the next chunks of their prompts."""
        self._step("extend")

    @rule()
    def decode(self) -> None:
        """Give some requests a token."""
        self._step("decode")

    @rule()
    def smaller_batch(self) -> None:
        """Give all requests a token, and then fewer of them one, in a batch that is padded to as many rows."""
        for step in ("decode_all", "decode_fewer"):
            self._step(step)

    @rule()
    def verify(self) -> None:
        """Verify drafts, and take a part of them back."""
        self._step("verify")

    @rule()
    def verify_again(self) -> None:
        """Do that twice, so that the second goes on behind what the first one kept."""
        self._step("verify")
        self._step("verify")

    @rule()
    def fork(self) -> None:
        """Begin a request as another is, in the slot of a third one if there is no other."""
        self._make_room()
        self._step("fork")

    @rule()
    def free(self) -> None:
        """Finish a request, whose slot the next one gets."""
        self._step("free")
        self._step(self.choose.pick(("admit", "admit", "fork", "restore")))

    @rule()
    def evict(self) -> None:
        """Bring the states of a request to the host."""
        self._step("evict")

    @rule()
    def restore(self) -> None:
        """Bring them back, into the slot of another one if there is no other."""
        self._make_room()
        self._step("restore")

    def _make_room(self) -> None:
        """Let one of several requests go where there is no slot for another."""
        if self.newcomer() is None and len(self.live) > 1:
            self._step("free")

    def _step(self, name: str) -> None:
        """Take a step of a rule, or another one."""
        allowed = {*self._box.get("step", KINDS), Extend.kind}
        for one in (name, *_INSTEAD.get(name, ()), "extend", "admit"):
            step = _CHOICES[one](self)
            if step is not None and step.kind in allowed:
                self._roster.take(step)
                self.take(step)
                return

    @property
    def live(self) -> tuple[int, ...]:
        """Requests that are live."""
        return tuple(self._roster.live)

    def newcomer(self) -> int | None:
        """Return a number that no request has; None if no more can be live."""
        known = {*self._roster.live, *self._roster.evicted}
        full = len(self._roster.live) >= self._roster.most
        return None if full else next(number for number in range(len(known) + 1) if number not in known)

    def some(self) -> tuple[int, ...]:
        """Draw live requests in any order: all of them, or one."""
        order = list(self.live)
        first = self.choose.pick(range(len(order)))
        turned = order[first:] + order[:first]
        return tuple(turned[: self.choose.pick((len(order), len(order), 1))])

    def admission(self) -> Step | None:
        """Return the tokens of a new request, and in one batch in two of those that are there."""
        request = self.newcomer()
        if request is None:
            return None
        others = self.some() if self.live and self.choose.pick((False, True)) else ()
        return self._tokens_of((*others, request))

    def extension(self) -> Step | None:
        """Return more tokens of some requests."""
        return self._tokens_of(self.some()) if self.live else None

    def _tokens_of(self, requests: tuple[int, ...]) -> Step:
        return Extend(requests, tuple(self.choose.pick(LENGTHS) for _ in requests))

    def decoding(self) -> Step | None:
        """Return one token of some requests, or a run of a rank that has none."""
        if not self.live or self.choose.pick((*[False] * 7, True)):
            return Decode((), self.choose.pick((1, 2)))
        return Decode(self.some(), self.choose.pick(PADDED))

    def decoding_all(self) -> Step | None:
        """Return one token of all requests."""
        return Decode(self.live) if self.live else None

    def decoding_fewer(self) -> Step | None:
        """Return one token of some requests, and rows of nobody in place of the others."""
        kept = self.live[self.choose.pick(range(1, len(self.live) + 1)) :] if self.live else ()
        return Decode(kept, len(self.live) - len(kept)) if self.live else None

    def verification(self) -> Step | None:
        """Return drafts of some requests, and how many are accepted of each."""
        if not self.live:
            return None
        requests, drafts = self.some(), self._roster.drafts
        kinds = self._box.get("nothing_accepted", (False, True))
        counts = [count for count in (*range(1, drafts + 1), 0) if allows(kinds, count == 0)]
        return Verify(requests, tuple(self.choose.pick(counts) for _ in requests), self.choose.pick(PADDED))

    def one_of(self, requests: Sequence[int], kind: Callable[[int], Step]) -> Step | None:
        """Return a step of one of some requests."""
        return kind(self.choose.pick(requests)) if requests else None

    def forking(self) -> Step | None:
        """Return a fork."""
        request = self.newcomer()
        return None if request is None else self.one_of(self.live, lambda source: Fork(source, request))

    def leaving(self, kind: type[Free | Evict]) -> Step | None:
        """Return that a request leaves its slot; mostly one of several, since alone none meets another."""
        return self.one_of(self.live, kind)

    def returning(self) -> Step | None:
        """Return that an evicted request comes back."""
        full = len(self._roster.live) >= self._roster.most
        return None if full else self.one_of(tuple(self._roster.evicted), Restore)


_CHOICES: Mapping[str, Callable[[StatePoolsMachine], Step | None]] = {
    "admit": StatePoolsMachine.admission,
    "extend": StatePoolsMachine.extension,
    "decode": StatePoolsMachine.decoding,
    "decode_all": StatePoolsMachine.decoding_all,
    "decode_fewer": StatePoolsMachine.decoding_fewer,
    "verify": StatePoolsMachine.verification,
    "fork": StatePoolsMachine.forking,
    "free": lambda machine: machine.leaving(Free),
    "evict": lambda machine: machine.leaving(Evict),
    "restore": StatePoolsMachine.returning,
}
