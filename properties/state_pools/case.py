"""Cases of state pools: the sizes of a layer, a seed, and the steps that were taken."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from npudiff.draw.cases import Case, axis, derived, part, seed
from npudiff.properties._shared.steps import steps_text
from npudiff.reference.causal_conv import ROUNDINGS
from npudiff.reference.state_pools import Extend, Roster, Step, Verify, in_words, new_rows
from npudiff.reference.state_pools.steps import Decode, Evict, Fork

KINDS = ("decode", "verify", "fork", "free", "evict", "restore")
"""Steps that an implementation may support or not; without ``extend`` there is nothing to do."""

GATES = ("head", "none", "channel")
DECAYS = ("usual", "weak", "strong")
"""usual: logarithms between 0 and -1. weak: -0.01 at most. strong: -2 to -6."""

KEYS = ("usual", "tiny")
"""usual: queries and keys are about as long as 1. tiny: a thousandth of that, where what is added to a norm shows."""

DTYPES = ("bfloat16", "float32")

MOST_DRAFTS = 8
"""Tokens of a request that the operators for steps take."""

_SIZES = range(1, 2**10 + 1)
_MOST_ELEMENTS = 2**24
_MOST_STEPS = 10_000


@dataclass(frozen=True)
class StatePoolsCase(Case):
    """The pools of a layer and what was done with them; the state machine of the component draws it."""

    requests: int = axis("requests that are live at a time, at most", range(1, 257), 1, drawn=(3, 3, 2, 4, 1),
                         shown="{} request(s)", always=True)  # fmt: skip
    drafts: int = axis(
        "tokens of each request in a verification, the last one that was certain included", range(1, MOST_DRAFTS + 1),
        1, drawn=(3, 2, 4, 1, 5), shown="{} draft(s)",
    )  # fmt: skip
    width: int = axis("tokens under the convolution", range(2, 17), 4, drawn=(4, 4, 3, 2), shown="width {}")
    key_heads: int = axis(
        "heads of queries and keys", _SIZES, 1, drawn=(1, 1, 2),
        shown=lambda case: f"heads {case.key_heads}:{case.heads}", always=True,
    )  # fmt: skip
    group: int = axis("value heads per key head", _SIZES, 1, drawn=(1, 2, 1, 3), shown="")
    key_dim: int = axis(
        "elements of a key", _SIZES, 16, drawn=(16, 16, 32, 48, 8),
        shown=lambda case: f"dim {case.key_dim}/{case.value_dim}", always=True,
    )  # fmt: skip
    value_dim: int = axis("elements of a value", _SIZES, 16, drawn=(16, 16, 32, 24), shown="")
    state_dtype: str = axis("dtype of recurrent states", DTYPES, "bfloat16", shown="{} states", always=True)
    gates: str = axis("what decays", GATES, "head", shown="decays of {}")
    decays: str = axis(
        "how fast it does", DECAYS, "usual", drawn=("usual", "usual", "weak", "strong"),
        applies=lambda case: case.gates != "none", shown="{} decays",
    )  # fmt: skip
    raw: bool = axis(
        "whether the rule normalises queries and keys, and takes the sigmoid of beta", (False, True), False, shown="raw"
    )  # fmt: skip
    chunked: bool = axis("whether chunks of prompts are computed with products in bfloat16", (False, True), False,
                         drawn=(False, False, False, True), shown="chunked", region="chunked")  # fmt: skip
    biased: bool = axis("whether the convolution has a bias", (False, True), False, shown="bias")
    activation: bool = axis(
        "whether SiLU is applied behind it", (False, True), True,
        shown=lambda case: "" if case.activation else "no activation",
    )  # fmt: skip
    rounding: str = axis(
        "whether a device may round before the activation", ROUNDINGS, "once", drawn=ROUNDINGS[:1],
        applies=lambda case: case.activation, shown="rounded in stages",
    )  # fmt: skip
    keys: str = axis(
        "how long queries and keys are that the rule normalises", KEYS, "usual", drawn=("usual", "usual", "tiny"),
        applies=lambda case: case.raw, shown="{} keys", region="{} keys",
    )  # fmt: skip
    seed: int = seed()
    steps: tuple[Step, ...] = part((), shown=lambda case: steps_text([*map(in_words, case.steps)]))
    """The trace."""

    shown_first = (
        "requests", "drafts", "width", "key_heads", "key_dim", "state_dtype", "gates", "decays", "raw", "chunked",
        "biased", "activation", "rounding", "keys", "seed",
    )  # fmt: skip

    @derived("kinds of step besides extend", KINDS, each=True)
    def step(self) -> Collection[str]:
        """Kinds of steps that were taken, besides extend."""
        return {step.kind for step in self.steps} - {Extend.kind}

    @derived("whether nothing is kept of some verified drafts", (False, True), each=True)
    def nothing_accepted(self) -> Collection[bool]:
        """Whether a verification kept no token of a request."""
        return {0 in step.accepted for step in self.steps if isinstance(step, Verify)}

    @property
    def heads(self) -> int:
        """Value heads."""
        return self.key_heads * self.group

    @property
    def channels(self) -> int:
        """Channels of the convolution."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        states = self.requests * self.drafts * self.heads * self.value_dim * self.key_dim
        if max(states, self.requests * self.channels * (self.width + self.drafts)) > _MOST_ELEMENTS:
            yield f"the pools would have more than {_MOST_ELEMENTS} elements"
        if len(self.steps) > _MOST_STEPS:
            yield f"a case has at most {_MOST_STEPS} steps"
        roster = Roster(self.requests, self.drafts)
        for number, step in enumerate(self.steps, 1):
            reason = roster.reason_against(step)
            if reason is None and new_rows(step, self.drafts) * self.channels > _MOST_ELEMENTS:
                reason = f"its rows would have more than {_MOST_ELEMENTS} elements"
            if reason is not None:
                yield f"step {number}, {in_words(step)}: {reason}"
                return
            roster.take(step)

    def features(self) -> Collection[str]:
        """Return the regions that the trace comes through."""
        roster, found = Roster(self.requests, self.drafts), set(super().features())
        for step in self.steps:
            before = dict(roster.live)
            roster.take(step)
            found |= {name for name, holds in _regions_of(step, before, self.drafts).items() if holds}
        if roster.slots_used > self.requests:
            found.add("reused slots")
        return sorted(found)


def _regions_of(step: Step, before: dict[int, int], drafts: int) -> dict[str, bool]:
    extended = step.requests if isinstance(step, Extend) else ()
    return {
        "next chunk": any(request in before for request in extended),
        "new and old in one batch": len({request in before for request in extended}) == 2,
        "drafts taken back": isinstance(step, Verify) and any(count < drafts for count in step.accepted),
        "accepted tokens differ": isinstance(step, Verify) and len(set(step.accepted)) > 1,
        "padded rows": isinstance(step, Decode | Verify) and step.padded > 0,
        "no request": isinstance(step, Decode | Verify) and not step.requests,
        "forked": isinstance(step, Fork),
        "evicted": isinstance(step, Evict),
    }
