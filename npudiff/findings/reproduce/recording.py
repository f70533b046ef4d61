"""A recording that is over: what a script is made of, without the calls that nothing needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from npudiff.findings.reproduce.operands import names_in
from npudiff.findings.reproduce.tape import Event

WAITED = "raised when the device was waited for"
"""How a run ends of which no call raises, and the device then."""


@dataclass
class Step:
    """Something that was written down: a tensor that is loaded, a call, a number, an output, a new run."""

    kind: str
    """``loaded``, ``call``, ``read``, ``fetched`` or ``run``."""
    said: Event
    """What was written."""
    result: Any = None
    """Of a call, what it returned: names with their shapes, in lists as they were; None for what has a name already."""
    raised: bool = False
    returned: bool = False
    """Of a call, how it ended; both are false for one that never did."""

    @property
    def names(self) -> list[str]:
        """Variables that a call makes."""
        return [item["name"] for item in made_in(self.result)]

    @property
    def given(self) -> set[str]:
        """Variables that a call is given."""
        return set(names_in([self.said["positional"], list(self.said["named"].values())]))


def made_in(result: Any) -> Iterator[Event]:  # noqa: ANN401 - a plain value
    """Yield the tensors that a call has made."""
    if isinstance(result, list):
        for item in result:
            yield from made_in(item)
    elif result is not None:
        yield result


@dataclass
class Recording:
    """What was written on a tape."""

    steps: list[Step] = field(default_factory=list)
    """In their order."""
    memories: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where the bytes of each loaded memory lie on the tape: first byte and count."""
    judged: list[Event] = field(default_factory=list)
    """Outputs and what they must be; tensors by their variables."""
    context: str = ""
    """What was compared with what."""
    skipped: list[str] = field(default_factory=list)
    """Outputs that no operator has computed, of which the script says nothing."""
    refused: str = ""
    """Why there is no script, as the end of a sentence; empty if there may be one."""
    ended: str = ""
    """How it ended; empty if the process did not live to say it."""
    unchanged: list[Event] = field(default_factory=list)
    """Inputs that must hold what they held."""

    @classmethod
    def of(cls, events: Sequence[Event]) -> Recording:
        """Return what a tape says."""
        one = cls()
        for event in events:
            kind = event["kind"]
            if kind in ("loaded", "call", "read", "run", "fetched"):
                one.steps.append(Step(kind, event))
            elif kind == "made":
                call = one._last_call()
                call.result, call.returned = event["result"], True
            elif kind == "raised":
                one._last_call().raised = True
            elif kind == "memory":
                one.memories[event["name"]] = (event["at"], event["bytes"])
            elif kind == "judged":
                one.judged, one.context, one.skipped = event["outputs"], event["context"], event["skipped"]
            elif kind == "unchanged":
                one.unchanged = event["tensors"]
            elif kind == "refused":
                one.refused = event["why"]
            elif kind == "ended":
                one.ended = event["how"]
        return one

    def _last_call(self) -> Step:
        return next(step for step in reversed(self.steps) if step.kind == "call")

    @property
    def calls(self) -> list[Step]:
        """The calls."""
        return [step for step in self.steps if step.kind == "call"]

    @property
    def last(self) -> Step | None:
        """The last call, if it did not return."""
        calls = self.calls
        return calls[-1] if calls and not calls[-1].returned else None

    @property
    def is_cut_short(self) -> bool:
        """Whether the process did not live to say how it ended, or the device did not when it was waited for."""
        return self.ended in ("", WAITED)

    def memory_of(self) -> dict[str, str]:
        """Return the memory that each variable lies in."""
        found = {step.said["name"]: step.said["memory"] for step in self.steps if step.kind == "loaded"}
        for step in self.calls:
            found |= {item["name"]: item["memory"] for item in made_in(step.result)}
        return found

    def trim(self, *, everything: bool = False) -> None:
        """Take out what nothing needs: plain calls whose results nobody uses, and what only they were given.

        Parameters
        ----------
        everything : bool
            Whether all calls stay, as where a device said too late which of them it was.
        """
        last = self.last
        self.steps = [
            step for step in self.steps if step.kind != "call" or step.returned or step is last
        ]  # what was raised and caught has made nothing
        memories = self.memory_of()
        needed = set(names_in([list(item.values()) for item in (*self.judged, *self.unchanged)]))
        kept: list[Step] = []
        for step in reversed(self.steps):
            if step.kind == "fetched":
                if needed & set(names_in(step.said["of"])):
                    kept.append(step)
            elif step.kind == "call":
                used = bool(needed & set(step.names) or {memories[name] for name in needed} & set(step.said["writes"]))
                if everything or step is last or used or not _is_plain(step):
                    needed |= step.given
                    kept.append(step)
            else:
                kept.append(step)
        self.steps = self._without_unused(kept[::-1])

    def _without_unused(self, steps: list[Step]) -> list[Step]:
        """Leave out loaded variables that no call has, numbers read from what is not there, and runs without calls."""
        used = set(names_in([list(item.values()) for item in (*self.judged, *self.unchanged)]))
        for step in steps:
            if step.kind == "call":
                used |= step.given
        there = used | {name for step in steps if step.kind == "call" for name in step.names}
        kept = [
            step for step in steps
            if step.kind not in ("loaded", "read") or step.said["name"] in (used if step.kind == "loaded" else there)
        ]  # fmt: skip
        loaded = {step.said["memory"] for step in kept if step.kind == "loaded"}
        self.memories = {name: place for name, place in self.memories.items() if name in loaded}
        return kept

    @property
    def size(self) -> int:
        """Bytes of all memories."""
        return sum(count for _, count in self.memories.values())


def _is_plain(step: Step) -> bool:
    """Whether a call is one of torch's own, whose schema says all that it does."""
    return str(step.said["operator"]).startswith(("aten::", "prim::", "prims::"))
