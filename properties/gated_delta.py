"""The gated delta rule with states in a pool: cases, data, and what must hold."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, axis, derived, part, seed, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.judge.relations import Changed, Outputs, relation
from npudiff.model.component import Comparison, Component, NotApplicable, Property, Subject
from npudiff.model.constraints import Box, Constraints, allows, least
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared import empty_parts, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.head_groups import asked_heads, groups, has_groups
from npudiff.properties._shared.models import Model, of_models
from npudiff.properties._shared.rows import with_row_stride
from npudiff.reference.gated_delta import GatedDeltaInputs, gated_delta
from npudiff.text import listed

STATES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
KEPT = ("last", "each")
"""last: the state behind the last token of a request goes into the slot in which the request begins. each: every token
has a slot, and a request begins in that of a token of the step before, which was accepted, as drafts are verified."""

GATES = ("head", "none", "channel", "both")
"""Decays of a state as a whole (gated delta networks), of its columns (Kimi's), both, or none."""

DECAYS = ("usual", "weak", "strong", "some")
"""usual: logarithms between 0 and -1. weak: -0.01 at most. strong: -2 to -6, of which 64 are beyond the range of
float32. some: one token in four forgets nearly everything, the others nothing."""

KEYS = ("gaussian", "alike", "turning", "orthogonal", "tiny")
"""gaussian: unit vectors in any direction. alike: nearly the same one. turning: the same one with either sign.
orthogonal: unit vectors of the axes in turn. tiny: lengths of 0.01 and less, where an epsilon shows; some are 0."""

BETAS = ("usual", "one", "zero")
"""usual: between 0 and 1. one: all of what is read is replaced. zero: for one token in two nothing is."""

ACCEPTED = ("first", "last", "any")
"""With which of the states that were kept a request begins."""

POISON = 512.0
"""What slots hold that no request begins with."""

LENGTHS = (1, 1, 1, 2, 3, 4, 8)
PROMPTS = (5, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 200)
"""Tokens of a request: of a step or of a draft, and of a piece of a prompt, around chunks of 16 and of 64."""

LONG_PROMPTS = (513, 1025)

DIMS = (32, 16, 64, 128, 8, 24, 48, 80, 96, 112)

MOST_HEADS = 64
"""Value heads of a case at most where there is a choice; operators for prompts take no more."""

MOST_ELEMENTS = 2**19
"""Elements of states, times tokens over eight, up to which a case may have more or larger heads than it must."""

_SIZES = range(1, 2**12 + 1)
_PRODUCTS = 2**36


@dataclass(frozen=True)
class Run:
    """The tokens of one request in this call."""

    length: int
    fresh: bool = False
    """Whether it begins with zeros, whatever its slot holds."""


def _draw_requests(choose: Chooser, box: Box, case: GatedDeltaCase) -> tuple[Run, ...]:
    lengths: Sequence[int] = (*LENGTHS, 9, 17)
    if case.kept == "last" and not choose.far:
        kinds = (lengths, PROMPTS, PROMPTS, PROMPTS if choose.usual_only else LONG_PROMPTS)
        lengths = kinds[choose.pick((*[0] * 12, *[1] * 7, *[2] * 7, 3))]
    lengths = within(lengths, box.get("length"))[:4096]
    fresh = (False,) if case.kept == "each" else within((False, False, True), box.get("fresh"))
    few = (least(box.get("batch", (1,))),) if lengths[-1] > PROMPTS[-1] else (1, 2, 3, 5)
    drawn = choose.draw_list(
        box, "batch", few,
        lambda: Run(choose.pick(lengths), choose.pick(fresh)),
        lambda first, other: replace(other, length=first.length),
    )  # fmt: skip
    empty = empty_parts.which(choose.pick(empty_parts.SELDOM), len(drawn))
    if not allows(box.get("length", (0,)), 0):
        return drawn
    return tuple(replace(one, length=0) if place in empty else one for place, one in enumerate(drawn))


def _shown(case: GatedDeltaCase) -> str:
    return f"tokens {listed([f'{one.length}' + ' fresh' * one.fresh for one in case.requests], 'request')}"


def _affords(case: GatedDeltaCase, elements: int) -> bool:
    slots = sum(run.length if case.kept == "each" else 1 for run in case.requests)
    return elements * max(8 * slots, sum(run.length for run in case.requests)) <= 8 * MOST_ELEMENTS


@dataclass(frozen=True)
class GatedDeltaCase(Case):
    """One call, as lengths, sizes and recipes."""

    requests: tuple[Run, ...] = part(draw=_draw_requests, shown=_shown)
    kept: str = axis("which states are kept: behind the last token of a request, or behind each", KEPT, "last",
                     shown="{} kept", region="drafts")  # fmt: skip
    key_heads: int = axis(
        "heads of queries and keys", _SIZES, 1, drawn=(1, 2, 3, 4),
        affordable=lambda case, heads: heads <= MOST_HEADS and _affords(case, heads * 32 * 32),
        fits=has_groups,
        shown=lambda case: f"heads {case.key_heads}:{case.heads}", always=True, region="several key heads",
    )  # fmt: skip
    group: int = axis(
        "value heads per key head", _SIZES, 1, drawn=lambda case: groups(case, case.key_heads, (1, 2, 3, 4)),
        affordable=lambda case, group: group * case.key_heads <= MOST_HEADS
        and _affords(case, group * case.key_heads * 32 * 32),
        fits=lambda case, group: group * case.key_heads in asked_heads(case), shown="",
        region="shared key heads",
    )  # fmt: skip
    key_dim: int = axis(
        "elements of a key", _SIZES, 32, drawn=DIMS,
        affordable=lambda case, dim: _affords(case, case.heads * dim * min(dim, 32)),
        shown=lambda case: f"dim {case.key_dim}/{case.value_dim}", always=True,
    )  # fmt: skip
    value_dim: int = axis(
        "elements of a value", _SIZES, 32, drawn=DIMS,
        affordable=lambda case, dim: _affords(case, case.heads * case.key_dim * dim), shown="",
        region=lambda case: "dims differ" if case.key_dim != case.value_dim else "",
    )  # fmt: skip
    state_dtype: str = axis("dtype of the pool", tuple(STATES), "bfloat16", shown="{} states", always=True)
    gates: str = axis("what decays", GATES, "head", shown="decays of {}", region="decays of {}")
    decays: str = axis(
        "how fast it does", DECAYS, "usual", applies=lambda case: case.gates != "none", shown="{} decays",
        region="{} decays",
    )  # fmt: skip
    keys: str = axis("how queries and keys are made", KEYS, "gaussian", shown="{} keys", region="{} keys")
    betas: str = axis("how much of what is read is replaced", BETAS, "usual", shown="beta {}")
    accepted: str = axis(
        "of what token of the step before a request takes the state", ACCEPTED, "first",
        applies=lambda case: case.kept == "each", shown="{} accepted", region="accepted",
    )  # fmt: skip
    raw: bool = axis(
        "whether the call normalises queries and keys and takes the sigmoid of beta", (False, True), False,
        shown="raw inputs", region="raw inputs",
    )  # fmt: skip
    chunked: bool = axis("whether products are bfloat16, in chunks of tokens", (False, True), False,
                         shown="in chunks")  # fmt: skip
    padded_rows: int = axis("rows beyond the last request", range(2**16), 0, drawn=(0, 0, 1, 3),
                            shown="{} padded row(s)", region="padded rows")  # fmt: skip
    spare_slots: int = axis("slots of the pool that nobody has", range(2**16), 1, drawn=(1, 0, 3),
                            shown="{} spare slot(s)")  # fmt: skip
    rows: str = rows.axis()
    seed: int = seed()

    drawn_first = ("chunked", "kept", "requests")
    shown_first = ("requests", "kept", "accepted")
    outliers = ("batch", "key_heads", "group", "key_dim", "value_dim")
    tied = ("key_heads", "group", "key_dim", "value_dim")
    rules = Constraints(
        (
            {"chunked": (False,), "kept": ("last",)},
            {"chunked": (False,), "kept": ("each",), "fresh": (False,)},
            {"chunked": (True,), "kept": ("last",), "gates": ("head", "none", "channel")},
        )
    )

    @derived("number of requests", range(1, 4097))
    def batch(self) -> int:
        """Number of requests."""
        return len(self.requests)

    @derived("tokens of a request in the call", range(2**17 + 1), each=True)
    def length(self) -> Collection[int]:
        """Tokens of the requests."""
        return {one.length for one in self.requests}

    @derived("whether a request begins with zeros", (False, True), each=True)
    def fresh(self) -> Collection[bool]:
        """Which kinds of requests there are."""
        return {one.fresh for one in self.requests}

    @derived("heads of values and states", range(1, 2**16))
    def heads(self) -> int:
        """Heads of values and states."""
        return self.key_heads * self.group

    @property
    def tokens(self) -> int:
        """Tokens of all requests."""
        return sum(one.length for one in self.requests)

    @property
    def slots_of_requests(self) -> list[int]:
        """Slots that each request has: one per token that is kept, and one where there is no token."""
        return [max(1, one.length) if self.kept == "each" else 1 for one in self.requests]

    @property
    def slots(self) -> int:
        """Slots of the pool."""
        return sum(self.slots_of_requests) + self.spare_slots

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.kept == "each" and any(one.fresh for one in self.requests):
            yield "a request whose states are all kept begins with one of them"
        state = self.heads * self.key_dim * self.value_dim
        if max(self.slots, self.tokens // 8) * state > _PRODUCTS >> 6 or self.tokens * self.heads > 2**24:
            yield f"states would have more than {_PRODUCTS >> 6} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        lengths = self.length
        return {
            "one token": 1 in lengths,
            "more than a chunk": any(length > 64 for length in lengths),
            "lengths differ": len(lengths) > 1,
            "no token": 0 in lengths,
            "fresh": True in self.fresh,
            "several requests": len(self.requests) > 1,
        }


def build_inputs(case: GatedDeltaCase) -> GatedDeltaInputs:
    """Build the inputs of a case; the slots of requests lie anywhere in the pool."""
    total = case.tokens + case.padded_rows
    value = Stream(case.seed, "value").normal((total, case.heads, case.value_dim), torch.bfloat16)
    initial, slots = _slots(case)
    decay = {name: _decays(case, name, shape) for name, shape in _gate_shapes(case, total).items()}
    return GatedDeltaInputs(
        query=with_row_stride(_keys(case, "query", total), case.rows),
        key=with_row_stride(_keys(case, "key", total), case.rows, rows.GAPS[1]),
        value=with_row_stride(value, case.rows, rows.GAPS[2]),
        beta=_betas(case, total),
        states=_pool(case, initial),
        lengths=tuple(one.length for one in case.requests),
        initial=initial,
        slots=slots,
        scale=case.key_dim**-0.5,
        gate=decay.get("gate"),
        channel_gate=decay.get("channel gate"),
        raw=case.raw,
        chunked=case.chunked,
    )


def _slots(case: GatedDeltaCase) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each request begins, and where the state behind each token goes."""
    names = iter(Stream(case.seed, "slots").permutation(case.slots))
    choices = Stream(case.seed, "accepted").integers(0, 2**16, len(case.requests))
    initial, slots = [], []
    for run, count, any_of in zip(case.requests, case.slots_of_requests, choices, strict=True):
        own = [next(names) for _ in range(count)]
        first = {"first": 0, "last": count - 1, "any": any_of % count}[
            case.accepted if case.kept == "each" else "first"
        ]
        initial.append(-1 if run.fresh or not run.length else own[first])
        slots += own[: run.length] if case.kept == "each" else [*[-1] * (run.length - 1), *own[: run.length]]
    slots += [-1] * case.padded_rows
    return torch.tensor(initial, dtype=torch.int32), torch.tensor(slots, dtype=torch.int32)


def _pool(case: GatedDeltaCase, initial: torch.Tensor) -> torch.Tensor:
    """States of the requests; slots that none begins with hold what would show."""
    shape = (case.slots, case.heads, case.value_dim, case.key_dim)
    pool = torch.full(shape, POISON, dtype=STATES[case.state_dtype])
    for slot in initial[initial >= 0].tolist():
        pool[slot] = Stream(case.seed, f"state {slot}").normal(shape[1:], torch.float32).to(pool.dtype)
    return pool


def _keys(case: GatedDeltaCase, name: str, total: int) -> torch.Tensor:
    shape = (total, case.key_heads, case.key_dim)
    numbers = Stream(case.seed, name).normal(shape, torch.float32)
    token = torch.arange(total)
    if case.keys in ("alike", "turning"):
        numbers = 0.1 * numbers + Stream(case.seed, "alike").normal((1, *shape[1:]), torch.float32)
    if case.keys == "turning":
        numbers = numbers * torch.where(token % 2 == 0, 1.0, -1.0)[:, None, None]
    if case.keys == "orthogonal":
        place = (token[:, None] + torch.arange(case.key_heads)) % case.key_dim
        numbers = torch.nn.functional.one_hot(place, case.key_dim).float()
    if not case.raw or case.keys == "tiny":
        numbers = torch.nn.functional.normalize(numbers, dim=-1)
    if case.keys == "tiny":
        numbers = numbers * torch.tensor([1e-2, 1e-3, 1e-4, 0.0])[token % 4][:, None, None]
    return numbers.to(torch.bfloat16)


def _betas(case: GatedDeltaCase, total: int) -> torch.Tensor:
    numbers = Stream(case.seed, "beta").normal((total, case.heads), torch.float32)
    if case.betas == "one":
        numbers = torch.full_like(numbers, 20.0)
    if case.betas == "zero":
        numbers = torch.where(torch.arange(total)[:, None] % 2 == 0, numbers, -200.0)
    return (numbers if case.raw else torch.sigmoid(numbers)).to(torch.bfloat16)


def _gate_shapes(case: GatedDeltaCase, total: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if case.gates in ("head", "both"):
        shapes["gate"] = (total, case.heads)
    if case.gates in ("channel", "both"):
        shapes["channel gate"] = (total, case.heads, case.key_dim)
    return shapes


def _decays(case: GatedDeltaCase, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    even = torch.sigmoid(1.6 * Stream(case.seed, name).normal(shape, torch.float32))
    if case.decays == "some":
        return torch.where(even < 0.25, -40.0, 0.0)
    return -even if case.decays == "usual" else -0.01 * even if case.decays == "weak" else -2 - 4 * even


def coordinates(inputs: GatedDeltaInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output."""
    if output == "states":
        slots, heads, value_dim, key_dim = inputs.states.shape
        return {
            "slot": torch.arange(slots)[:, None, None, None], "head": torch.arange(heads)[None, :, None, None],
            "row": torch.arange(value_dim)[None, None, :, None], "column": torch.arange(key_dim)[None, None, None, :],
        }  # fmt: skip
    padded = len(inputs.value) - sum(inputs.lengths)
    lengths = torch.tensor([*inputs.lengths, padded])
    request = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    token = torch.cat([torch.arange(length) for length in lengths.tolist()])
    return {
        "request": request[:, None, None], "token": token[:, None, None],
        "head": torch.arange(inputs.value.shape[1])[None, :, None],
        "element": torch.arange(inputs.value.shape[2])[None, None, :],
    }  # fmt: skip


_BY_TOKEN = ("query", "key", "value", "beta", "slots", "gate", "channel_gate")


def _taken(inputs: GatedDeltaInputs, places: torch.Tensor, **changes: object) -> GatedDeltaInputs:
    """Inputs of some rows, in that order."""
    parts = {name: tensor[places] for name in _BY_TOKEN if (tensor := getattr(inputs, name)) is not None}
    return replace(inputs, **{**parts, **changes})


def _spans(inputs: GatedDeltaInputs) -> list[torch.Tensor]:
    """Rows of each request."""
    ends = torch.tensor([0, *inputs.lengths]).cumsum(dim=0).tolist()
    return [torch.arange(first, last) for first, last in itertools.pairwise(ends)]


def _other_order(inputs: GatedDeltaInputs, case: GatedDeltaCase) -> Changed[GatedDeltaInputs]:
    """Requests in another order; the pool stays as it is."""
    order = Stream(case.seed, "order").permutation(case.batch)
    spans = _spans(inputs)
    places = torch.cat([*(spans[one] for one in order), torch.arange(case.tokens, len(inputs.value))])
    changed = _taken(inputs, places, lengths=tuple(inputs.lengths[one] for one in order), initial=inputs.initial[order])

    def moved(outputs: Outputs) -> Outputs:
        return {name: one[places] if name == "output" else one for name, one in outputs.items()}

    return Changed(changed, moved)


def _other_slots(inputs: GatedDeltaInputs, case: GatedDeltaCase) -> Changed[GatedDeltaInputs]:
    """Other names for the slots of the pool."""
    order = torch.tensor(Stream(case.seed, "other slots").permutation(case.slots))
    named = torch.cat([torch.argsort(order), torch.tensor([-1])]).to(torch.int32)
    changed = replace(
        inputs, states=inputs.states[order], initial=named[inputs.initial.long()], slots=named[inputs.slots.long()]
    )

    def moved(outputs: Outputs) -> Outputs:
        return {name: one[order] if name == "states" else one for name, one in outputs.items()}

    return Changed(changed, moved)


def _more_padding(inputs: GatedDeltaInputs, case: GatedDeltaCase) -> Changed[GatedDeltaInputs]:
    """More rows beyond the requests, with other content, as a graph has them."""
    tokens = case.tokens
    if not tokens:
        raise NotApplicable("there is no token whose content padding could have")
    places = torch.cat([torch.arange(tokens), torch.zeros(case.padded_rows + 2, dtype=torch.int64)])
    slots = torch.where(torch.arange(len(places)) < tokens, inputs.slots[places], -1).to(torch.int32)

    def real(outputs: Outputs) -> Outputs:
        return {name: one[:tokens] if name == "output" else one for name, one in outputs.items()}

    other = replace(case, padded_rows=case.padded_rows + 2)
    return Changed(_taken(inputs, places, slots=slots), real, real, other)


def _in_two_calls(subject: Subject, case: GatedDeltaCase) -> Comparison:
    """All tokens at once, and the first ones of each request in a call of their own: the pool carries the state on."""
    inputs = build_inputs(case)
    cuts = [length // 2 for length in inputs.lengths]
    firsts = replace(case, padded_rows=0, requests=tuple(
        replace(one, length=cut) for one, cut in zip(case.requests, cuts, strict=True)
    ))  # fmt: skip
    lasts = replace(case, padded_rows=0, requests=tuple(
        Run(one.length - cut, one.fresh and not cut) for one, cut in zip(case.requests, cuts, strict=True)
    ))  # fmt: skip
    for other in (firsts, lasts):
        subject.require(other, "the first or the last tokens of every request")
    spans = _spans(inputs)
    early = torch.cat([span[:cut] for span, cut in zip(spans, cuts, strict=True)])
    late = torch.cat([span[cut:] for span, cut in zip(spans, cuts, strict=True)])
    owned = torch.tensor([int(inputs.slots[span[-1]]) if len(span) else -1 for span in spans], dtype=torch.int32)
    cut_off = torch.tensor(cuts) > 0
    kept = torch.full((len(inputs.value),), -1, dtype=torch.int32)
    for span, cut, slot in zip(spans, cuts, owned.tolist(), strict=True):
        if cut:
            kept[span[cut - 1]] = slot
    first = _taken(inputs, early, slots=kept[early], lengths=tuple(cuts),
                   initial=torch.where(cut_off, inputs.initial, -1).to(torch.int32))  # fmt: skip
    whole, before = subject.run(inputs), subject.run(first)
    second = _taken(inputs, late, states=before["states"].clone(),
                    initial=torch.where(cut_off, owned, inputs.initial).to(torch.int32),
                    lengths=tuple(a - b for a, b in zip(inputs.lengths, cuts, strict=True)))  # fmt: skip
    after = subject.run(second)
    output = torch.zeros_like(whole["output"][: case.tokens])
    output[early], output[late] = before["output"], after["output"]
    once = {"output": whole["output"][: case.tokens], "states": whole["states"]}
    bounds = bounds_of(subject.expected(inputs))
    bounds["output"] = bounds["output"][: case.tokens]
    return compare_runs(
        bounds, once, {"output": output, "states": after["states"]}, "all tokens in one call, and in two"
    )


def _a_prefix_alone(inputs: GatedDeltaInputs, case: GatedDeltaCase) -> Changed[GatedDeltaInputs]:
    """Only those tokens of a draft that are accepted: the states behind them are those of the whole draft.

    So what begins with one of them later goes on as if no more had been drafted.
    """
    cuts = [max(1, length // 2) if length else 0 for length in inputs.lengths]
    if any(
        int(first) >= 0 and int(first) not in inputs.slots[span[:cut]].tolist()
        for first, span, cut in zip(inputs.initial, _spans(inputs), cuts, strict=True)
    ):
        raise NotApplicable("a request begins with the state behind a token that is left out")
    places = torch.cat([span[:cut] for span, cut in zip(_spans(inputs), cuts, strict=True)])
    written = inputs.slots[places].long()

    def accepted(outputs: Outputs) -> Outputs:
        return {"output": outputs["output"][places], "states": outputs["states"][written]}

    def alone(outputs: Outputs) -> Outputs:
        return {"output": outputs["output"], "states": outputs["states"][written]}

    other = replace(case, padded_rows=0, requests=tuple(Run(cut) for cut in cuts))
    return Changed(_taken(inputs, places, lengths=tuple(cuts)), accepted, alone, other)


def _sizes(model: Model) -> Box | None:
    layer = model.linear
    if layer is None:
        return None
    return {
        "key_heads": (layer.key_heads,), "group": (layer.heads // layer.key_heads,), "key_dim": (layer.key_dim,),
        "value_dim": (layer.value_dim,), "gates": ("channel" if layer.by_channel else "head",),
    }  # fmt: skip


component = Component(
    name="gated_delta",
    summary="linear attention by the gated delta rule, with decays of heads or channels and a pool of states",
    case_type=GatedDeltaCase,
    outputs=("output", "states"),
    inputs=build_inputs,
    reference=gated_delta,
    illegal=(
        wrong_element("a slot beyond the pool", "initial", lambda inputs: len(inputs.states)),
        wrong_element("a token's slot beyond the pool", "slots", lambda inputs: len(inputs.states)),
        wrong_element("a negative number of tokens", "lengths", constant(-1)),
        wrong_element("more tokens than rows", "lengths", lambda inputs: len(inputs.value) + 1),
    ),
    coordinates=coordinates,
    highlighted_region="more than a chunk",
    relations=(
        relation("requests_do_not_mix", "the order of requests does not matter", _other_order,
                 within={"batch": range(2, 4097)}),
        relation("slots_do_not_matter", "the names of slots do not matter", _other_slots, bits=True),
        relation("padding_does_not_matter", "rows beyond the requests change nothing, and no state", _more_padding,
                 needs={"padded_rows": range(2, 2**16)}),
        Property("in_two_calls", "tokens in two calls are those of one", _in_two_calls,
                 within={"kept": ("last",), "length": range(2, 2**17 + 1), "state_dtype": ("float32",),
                         "chunked": (False,)}),
        relation("a_draft_can_be_taken_back", "states behind accepted tokens know nothing of others", _a_prefix_alone,
                 within={"kept": ("each",), "accepted": ("first",), "length": range(2, 2**17 + 1)}),
    ),
    profiles=of_models(_sizes),
    example_ratio=0.5,
    baselines=BASELINES["gated_delta"],
)  # fmt: skip
