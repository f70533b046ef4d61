"""Causal convolutions with their history in a pool: cases, data, and what must hold."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, axis, derived, part, seed, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare, same_bits
from npudiff.judge.relations import Changed, Outputs, relation
from npudiff.model.component import Comparison, Component, NotApplicable, Property, Subject
from npudiff.model.constraints import Box, Constraints, allows
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared import empty_parts, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_models
from npudiff.properties._shared.rows import with_row_stride
from npudiff.reference.causal_conv import MODES, ROUNDINGS, CausalConvInputs, causal_conv
from npudiff.text import listed

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

HISTORIES = ("all", "some", "none")
"""Which requests of a prompt go on from a history."""

ACCEPTED = ("any", "one", "all")
"""Tokens of the step before that were accepted, in a draft."""

RECIPES = ("gaussian", "large", "tiny")
"""large: sums of some thousands, where an exponential of the activation is beyond float32. tiny: numbers around 1e-7,
of which float16 keeps a bit or two."""

POISON = 448.0
"""What rows hold that are nobody's history."""

STEPS = (1, 1, 1, 2, 3)
PROMPTS = (1, 2, 3, 4, 5, 17, 64, 129, 257, 300)
DRAFTS = (1, 2, 3, 4, 8)

MOST_ELEMENTS = 2**18
"""Elements of rows up to which a case may have more tokens or channels than it must."""

MOST_DRAFT = 8
"""Tokens of a draft, for which lines have room."""


@dataclass(frozen=True)
class Run:
    """The tokens of one request in this call."""

    length: int
    padded: bool = False
    """Whether it is a row of a graph that nobody has: it has no line."""


def _draw_requests(choose: Chooser, box: Box, case: CausalConvCase) -> tuple[Run, ...]:
    lengths: Sequence[int] = {"prompt": PROMPTS, "step": STEPS, "draft": DRAFTS}[case.mode]
    if choose.huge:
        lengths = choose.options(box, "length", lengths)
    lengths = within(lengths, box.get("length"))[:4096]
    padded = within((False, False, False, True), box.get("padded"))
    drawn = choose.draw_list(
        box, "batch", (1,) if choose.huge else (1, 2, 3, 5),
        lambda: Run(choose.pick(lengths), choose.pick(padded)),
        lambda first, other: replace(other, length=first.length),
    )  # fmt: skip
    empty = empty_parts.which(choose.pick(empty_parts.SELDOM), len(drawn))
    if not allows(box.get("length", (0,)), 0):
        return drawn
    return tuple(replace(one, length=0) if place in empty else one for place, one in enumerate(drawn))


def _shown(case: CausalConvCase) -> str:
    return f"tokens {listed([f'{one.length}' + ' padded' * one.padded for one in case.requests], 'request')}"


def _affords(case: CausalConvCase, channels: int) -> bool:
    return channels * max(8 * case.batch, case.tokens) <= MOST_ELEMENTS


@dataclass(frozen=True)
class CausalConvCase(Case):
    """One call, as lengths, sizes and recipes."""

    requests: tuple[Run, ...] = part(draw=_draw_requests, shown=_shown)
    mode: str = axis("a prompt, a step, or a draft behind tokens of the step before", MODES, "step", shown="{}",
                     always=True, region="{}")  # fmt: skip
    channels: int = axis(
        "channels", range(16, 2**16 + 1, 16), 16,
        drawn=lambda case: (16, 32) if case.huge else (16, 32, 48, 128, 144, 1024, 3072),
        affordable=_affords, shown="{} channels", always=True,
    )  # fmt: skip
    width: int = axis(
        "tokens under the convolution", range(2, 17), 4,
        drawn=lambda case: (4,) if case.mode == "draft" else (4, 3, 2, 4, 3, 5, 8, 16),
        shown="width {}",
    )  # fmt: skip
    spare_rows: int = axis(
        "rows of a line beyond those that a call needs", range(2**10), 0, drawn=(0, 0, 1, 3), shown="{} spare row(s)",
        region="longer lines",
    )  # fmt: skip
    spare_lines: int = axis("lines of the pool that nobody has", range(2**16), 1, drawn=(1, 0, 3),
                            shown="{} spare line(s)")  # fmt: skip
    history: str = axis(
        "which requests of a prompt go on from a history", HISTORIES, "all", applies=lambda case: case.mode == "prompt",
        shown="history of {}", region="no history",
    )  # fmt: skip
    accepted: str = axis(
        "tokens of the step before that were accepted", ACCEPTED, "any", applies=lambda case: case.mode == "draft",
        shown="{} accepted",
    )  # fmt: skip
    biased: bool = axis("whether there is a bias", (False, True), False, shown="bias", region="bias")
    activation: bool = axis(
        "whether SiLU is applied", (False, True), True,
        shown=lambda case: "" if case.activation else "no activation",
    )  # fmt: skip
    dtype: str = axis("dtype of everything", tuple(DTYPES), "bfloat16", always=True)
    rounding: str = axis(
        "whether a device may round before the activation", ROUNDINGS, "once", drawn=ROUNDINGS[:1],
        applies=lambda case: case.activation,
        shown="rounded in stages",
    )  # fmt: skip
    recipe: str = axis("how numbers are made", RECIPES, "gaussian", drawn=(*RECIPES[:1] * 3, *RECIPES), region="{}")
    padded_rows: int = axis("rows beyond the last request", range(2**16), 0, drawn=(0, 0, 1, 3),
                            shown="{} padded row(s)", region="padded rows")  # fmt: skip
    rows: str = rows.axis()
    seed: int = seed()

    drawn_first = ("mode", "requests")
    shown_first = ("mode", "requests")
    outliers = ("batch", "channels")
    huge_axes = ("length",)
    rules = Constraints(
        ({"mode": ("prompt", "step")}, {"mode": ("draft",), "width": (4,), "length": range(MOST_DRAFT + 1)})
    )

    @derived("number of requests", range(1, 2**13))
    def batch(self) -> int:
        """Number of requests."""
        return len(self.requests)

    @derived("tokens of a request in the call", range(2**18), each=True)
    def length(self) -> Collection[int]:
        """Tokens of the requests."""
        return {one.length for one in self.requests}

    @derived("whether a request is padding of a graph", (False, True), each=True)
    def padded(self) -> Collection[bool]:
        """Which kinds of requests there are."""
        return {one.padded for one in self.requests}

    @property
    def tokens(self) -> int:
        """Tokens of all requests."""
        return sum(one.length for one in self.requests)

    @property
    def line_rows(self) -> int:
        """Rows of a line."""
        draft = 2 * MOST_DRAFT if self.mode == "draft" else 0
        return max(self.width - 1, self.width - 2 + draft) + self.spare_rows

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        lines = (self.batch + self.spare_lines) * self.line_rows
        if max(lines, self.tokens + self.padded_rows) * self.channels > 2**26:
            yield f"rows would have more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "fewer tokens than history": any(0 < length < self.width - 1 for length in self.length),
            "padded request": True in self.padded,
            "no token": 0 in self.length,
            "several requests": self.batch > 1,
        }


def build_inputs(case: CausalConvCase) -> CausalConvInputs:
    """Build the inputs of a case; lines lie anywhere in the pool, and hold poison where no history is."""
    dtype, batch = DTYPES[case.dtype], len(case.requests)
    size = {"gaussian": 1.0, "large": 64.0, "tiny": 2.0**-22}[case.recipe]

    def numbers(name: str, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return (Stream(case.seed, name).normal(shape, torch.float32) * scale).to(dtype)

    names = Stream(case.seed, "lines").permutation(batch + case.spare_lines)
    line_of = torch.tensor([-1 if run.padded else line for run, line in zip(case.requests, names, strict=False)])
    lines = torch.full((len(names), case.line_rows, case.channels), POISON, dtype=dtype)
    history = numbers("history", batch, case.line_rows, case.channels, scale=size)
    kept = case.line_rows if case.mode == "draft" else case.width - 1
    there = _histories(case)
    for place, line in enumerate(line_of.tolist()):
        if line >= 0 and (there is None or bool(there[place])):
            lines[line, :kept] = history[place, :kept]
    x = numbers("x", case.tokens + case.padded_rows, case.channels, scale=size)
    return CausalConvInputs(
        x=with_row_stride(x, case.rows),
        weight=numbers("weight", case.width, case.channels),
        bias=numbers("bias", case.channels, scale=size) if case.biased else None,
        lines=lines,
        lengths=tuple(one.length for one in case.requests),
        line_of=line_of.to(torch.int32),
        mode=case.mode,
        has_history=there,
        accepted=_accepted(case),
        activation=case.activation,
        rounding=case.rounding,
    )


def _histories(case: CausalConvCase) -> torch.Tensor | None:
    if case.mode != "prompt":
        return None
    places = torch.arange(len(case.requests))
    return {"all": places >= 0, "none": places < 0, "some": places % 2 == 0}[case.history]


def _accepted(case: CausalConvCase) -> torch.Tensor | None:
    if case.mode != "draft":
        return None
    any_of = Stream(case.seed, "accepted").integers(1, MOST_DRAFT + 1, len(case.requests))
    fixed = {"one": 1, "all": MOST_DRAFT}
    return torch.tensor([fixed.get(case.accepted, one) for one in any_of], dtype=torch.int32)


def coordinates(inputs: CausalConvInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output."""
    if output == "lines":
        lines, line_rows, channels = inputs.lines.shape
        return {"line": torch.arange(lines)[:, None, None], "row": torch.arange(line_rows)[None, :, None],
                "channel": torch.arange(channels)[None, None, :]}  # fmt: skip
    lengths = torch.tensor([*inputs.lengths, len(inputs.x) - sum(inputs.lengths)])
    request = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    token = torch.cat([torch.arange(length) for length in lengths.tolist()])
    return {"request": request[:, None], "token": token[:, None], "channel": torch.arange(inputs.x.shape[1])[None, :]}


def _spans(inputs: CausalConvInputs) -> list[torch.Tensor]:
    ends = torch.tensor([0, *inputs.lengths]).cumsum(dim=0).tolist()
    return [torch.arange(first, last) for first, last in itertools.pairwise(ends)]


def _real(inputs: CausalConvInputs) -> torch.Tensor:
    """Rows of which something is said."""
    spans = [span for span, line in zip(_spans(inputs), inputs.line_of.tolist(), strict=True) if line >= 0]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def _other_order(inputs: CausalConvInputs, case: CausalConvCase) -> Changed[CausalConvInputs]:
    """Requests in another order."""
    order = Stream(case.seed, "order").permutation(len(case.requests))
    spans = _spans(inputs)
    places = torch.cat([*(spans[one] for one in order), torch.arange(case.tokens, len(inputs.x))])
    by_request = {
        name: one[order]
        for name in ("line_of", "has_history", "accepted")
        if (one := getattr(inputs, name)) is not None
    }
    changed = replace(inputs, x=inputs.x[places], lengths=tuple(inputs.lengths[one] for one in order), **by_request)
    real, moved = _real(changed), places[_real(changed)]

    def before(outputs: Outputs) -> Outputs:
        return {name: one[moved] if name == "output" else one for name, one in outputs.items()}

    def after(outputs: Outputs) -> Outputs:
        return {name: one[real] if name == "output" else one for name, one in outputs.items()}

    return Changed(changed, before, after)


def _other_lines(inputs: CausalConvInputs, case: CausalConvCase) -> Changed[CausalConvInputs]:
    """Other names for the lines of the pool."""
    order = torch.tensor(Stream(case.seed, "other lines").permutation(len(inputs.lines)))
    named = torch.cat([torch.argsort(order), torch.tensor([-1])]).to(torch.int32)
    changed, real = replace(inputs, lines=inputs.lines[order], line_of=named[inputs.line_of.long()]), _real(inputs)

    def before(outputs: Outputs) -> Outputs:
        return {name: one[real] if name == "output" else one[order] for name, one in outputs.items()}

    def after(outputs: Outputs) -> Outputs:
        return {name: one[real] if name == "output" else one for name, one in outputs.items()}

    return Changed(changed, before, after)


def _in_two_calls(subject: Subject, case: CausalConvCase) -> Comparison:
    """All tokens at once, and the first ones of each request in a call of their own: the lines carry the history on."""
    inputs = build_inputs(case)
    cuts = [length // 2 for length in inputs.lengths]
    pairs = list(zip(case.requests, cuts, strict=True))
    firsts = tuple(replace(one, length=cut) for one, cut in pairs)
    for requests in (firsts, tuple(replace(one, length=one.length - cut) for one, cut in pairs)):
        subject.require(replace(case, requests=requests, padded_rows=0, history="all"), "a part of every request")
    spans = _spans(inputs)
    early = torch.cat([span[:cut] for span, cut in zip(spans, cuts, strict=True)])
    late = torch.cat([span[cut:] for span, cut in zip(spans, cuts, strict=True)])
    whole = subject.run(inputs)
    before = subject.run(replace(inputs, x=inputs.x[early], lengths=tuple(cuts)))
    has_history = None
    if inputs.has_history is not None:
        has_history = inputs.has_history | (torch.tensor(cuts) > 0)
    after = subject.run(
        replace(inputs, x=inputs.x[late], lines=before["lines"].clone(), has_history=has_history,
                lengths=tuple(one - cut for one, cut in zip(inputs.lengths, cuts, strict=True)))
    )  # fmt: skip
    output = torch.zeros_like(whole["output"])
    output[early], output[late] = before["output"], after["output"]
    real = _real(inputs)
    one, two = (
        {"output": done["output"][real], "lines": done["lines"]} for done in (whole, {**after, "output": output})
    )
    return same_bits(one, two, "all tokens in one call, and in two")


def _a_draft_taken_back(subject: Subject, case: CausalConvCase) -> Comparison:
    """A draft, and one token behind the part of it that is accepted: as if no more had been drafted."""
    inputs = build_inputs(case)
    if not case.tokens:
        raise NotApplicable("no request drafts a token")
    cuts = [max(1, length // 2) if length else 0 for length in inputs.lengths]
    spans = _spans(inputs)
    drafted = subject.run(inputs)
    step = replace(
        inputs,
        x=inputs.x[torch.zeros(len(cuts), dtype=torch.int64)],
        lengths=(1,) * len(cuts),
        lines=drafted["lines"].clone(),
        accepted=torch.tensor([max(1, cut) for cut in cuts], dtype=torch.int32),
    )
    subject.require(replace(case, requests=tuple(replace(one, length=1) for one in case.requests), padded_rows=0),
                    "one token behind the draft")  # fmt: skip
    places = torch.cat([span[:cut] for span, cut in zip(spans, cuts, strict=True)])
    shorter = replace(inputs, x=inputs.x[places], lengths=tuple(cuts))
    never = replace(step, lines=subject.run(shorter)["lines"].clone())
    real = torch.tensor([line >= 0 and cut > 0 for line, cut in zip(inputs.line_of.tolist(), cuts, strict=True)])
    one, two = ({"output": subject.run(given)["output"][real]} for given in (step, never))
    expected = subject.expected(step)["output"]
    right = {"output": Derived(expected.value[real], expected.bound[real], expected.dtype)}
    by_itself = compare(right, two, "one token behind the accepted part of a draft")
    return same_bits(one, two, "behind a draft, and behind the accepted part of it") if by_itself.holds else by_itself


def _sizes(model: Model) -> Box | None:
    layer = model.linear
    return None if layer is None else {"channels": (layer.channels,), "width": (layer.width,)}


component = Component(
    name="causal_conv",
    summary="a causal convolution of each channel over the last tokens, whose history lies in lines of a pool",
    case_type=CausalConvCase,
    outputs=("output", "lines"),
    inputs=build_inputs,
    reference=causal_conv,
    illegal=(
        wrong_element("a line beyond the pool", "line_of", lambda inputs: len(inputs.lines)),
        wrong_element("a negative number of tokens", "lengths", constant(-1)),
        wrong_element("more tokens than rows", "lengths", lambda inputs: len(inputs.x) + 1),
    ),
    coordinates=coordinates,
    highlighted_region="draft",
    relations=(
        relation("requests_do_not_mix", "the order of requests does not matter", _other_order,
                 within={"batch": range(2, 2**13)}),
        relation("lines_do_not_matter", "the names of lines do not matter", _other_lines, bits=True),
        Property("in_two_calls", "tokens in two calls are those of one", _in_two_calls,
                 within={"mode": ("prompt", "step"), "length": range(2, 2**18)}),
        Property("a_draft_can_be_taken_back", "behind accepted tokens nothing is left of those behind",
                 _a_draft_taken_back, within={"mode": ("draft",)}),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["causal_conv"],
)  # fmt: skip
