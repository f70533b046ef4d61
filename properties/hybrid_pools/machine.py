"""The state machine of hybrid pools: a rule per kind of step, drawn from what can be done next."""

from __future__ import annotations

from hypothesis.stateful import rule

from npudiff.draw.state_machine import Machine
from npudiff.properties.hybrid_pools.case import KINDS, HybridPoolsCase
from npudiff.properties.hybrid_pools.choices import CHOICES
from npudiff.properties.hybrid_pools.strategy import draw_opening
from npudiff.reference.hybrid_pools import Allocate, PageLedger

_INSTEAD = {
    "allocate": ("decode_all",),
    "fork": ("share", "outgrow", "extend"),
    "free": ("allocate", "extend"),
    "outgrow": ("extend",),
    "preempt": ("allocate", "extend"),
    "readmit": ("preempt", "allocate"),
    "share": ("fork", "outgrow", "extend"),
}
"""What a rule does that cannot do what it is named for; if that cannot be done either, anything."""

_GIVING = ("evict_all", "free", "preempt")
"""What a server does when there are no pages."""


class HybridPoolsMachine(Machine):
    """Does what a server does to its pools, in any order."""

    def opening(self) -> HybridPoolsCase:
        """Draw the sizes of the pools."""
        self._box = self.choose.pick(self.constraints.boxes)
        opening = draw_opening(self.choose, self._box)
        self._ledger = PageLedger(opening.sizes)
        self._refused = False
        return opening

    @rule()
    def allocate(self) -> None:
        """Admit a request."""
        self._step("allocate")

    @rule()
    def decode(self) -> None:
        """Give one request one more token."""
        self._step("decode")

    @rule()
    def decode_all(self) -> None:
        """Give all requests one more token."""
        self._step("decode_all")

    @rule()
    def evict(self) -> None:
        """Give up what left the window of one request."""
        self._step("evict")

    @rule()
    def evict_all(self) -> None:
        """Give up what left the window of any request."""
        self._step("evict_all")

    @rule()
    def extend(self) -> None:
        """Give a request the next chunk of its prompt."""
        self._step("extend")

    @rule()
    def fork(self) -> None:
        """Begin a request with all tokens of another."""
        self._step("fork")

    @rule()
    def free(self) -> None:
        """Finish a request."""
        self._step("free")

    @rule()
    def outgrow(self) -> None:
        """Give a request the tokens that its window needs to leave a page, or nearly, and give up what it left."""
        self._step("outgrow")
        self._step(self.choose.pick(("evict", "evict_all")))

    @rule()
    def preempt(self) -> None:
        """Make a request wait."""
        self._step("preempt")

    @rule()
    def readmit(self) -> None:
        """Admit a request that waits."""
        self._step("readmit")

    @rule()
    def share(self) -> None:
        """Begin a request with whole pages of another."""
        self._step("share")

    def _step(self, name: str) -> None:
        """Take a step of a rule, or another one; after a step for which there were no pages, one that gives some."""
        groups = [(name,), *((other,) for other in _INSTEAD.get(name, ())), tuple(CHOICES)]
        if self._refused:
            groups.insert(name in _GIVING, _GIVING)
        allowed = {*self._box.get("step", KINDS), Allocate.kind}
        for group in groups:
            steps = [step for one in group for step in CHOICES[one](self._ledger) if step.kind in allowed]
            if steps:
                step = self.choose.pick(steps)
                self._refused = not self._ledger.take(step)
                self.take(step)
                return
