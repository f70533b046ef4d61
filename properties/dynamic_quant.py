"""Quantisation of rows by their largest element: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, bounds_of, compare
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, Property, Subject
from npudiff.model.constraints import Axis, Box, Constraints, check_axes
from npudiff.properties._shared import empty_parts, magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.properties._shared.token_order import in_another_order
from npudiff.reference.dynamic_quant import LEVELS, DynamicQuantInputs, dynamic_quant
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SMOOTH = ("none", "for all", "per expert")
RECIPES = ("gaussian", "outlier", "negative", "tiny", "zero rows", "two values", "large", "any exponent")
"""outlier: one element of a row is 64 times larger. negative: the largest element of every row is negative. tiny:
below 2**-8. zero rows: some rows hold nothing but zeros. two values: only one magnitude, of both signs. large: near the
end of the range of float16. any exponent: the largest element of each row has an exponent of its own."""

AXES = {
    "tokens": Axis("rows", range(1, 2**16 + 1)),
    "width": Axis("elements of a row", range(1, 2**16 + 1)),
    "dtype": Axis("dtype of the states", tuple(DTYPES)),
    "bits": Axis("bits of an integer", tuple(LEVELS)),
    "smooth": Axis("factors before: none, a row of them for all, or one per expert", SMOOTH),
    "experts": Axis("experts among which the rows are divided, where each has factors", range(1, 1025)),
    "empty_experts": Axis("which experts have no rows, where each has factors", empty_parts.KINDS),
    "recipe": Axis("how the states are made", RECIPES),
    "rows": rows.AXIS,
}

_MAX_ELEMENTS = 2**26

MOST_ELEMENTS = 2**18
"""Elements of the states up to which a case may have more rows than it must."""


@dataclass(frozen=True)
class DynamicQuantCase:
    """One call, as sizes and recipes; see the axes for their meaning."""

    tokens: int
    width: int = 64
    dtype: str = "bfloat16"
    bits: int = 8
    smooth: str = "none"
    experts: int = 1
    recipe: str = "gaussian"
    rows: str = "contiguous"
    seed: int = 0
    empty_experts: str = "none"


def cases(constraints: Constraints) -> st.SearchStrategy[DynamicQuantCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> DynamicQuantCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "experts", "tokens", "width")
    many = choose.far == "experts"
    width = choose.value(box, "width", _WIDTHS[:7] if many else _WIDTHS)
    allowed = choose.options(box, "tokens", (3, 7, 17, 65, 257) if many else (1, 2, 3, 7, 17, 65, 257))
    tokens = choose.pick([count for count in allowed if count * width <= MOST_ELEMENTS] or [min(allowed)])
    bits = choose.value(box, "bits", (8, 8, 4))
    assume(_has_words(width, bits))
    smooth = choose.value(box, "smooth", ("per expert",) if many else (*SMOOTH, SMOOTH[-1]))
    counts = [count for count in choose.options(box, "experts", (1, 2, 3, 8)) if count <= tokens]
    assume(counts)
    experts = choose.pick(counts) if smooth == "per expert" else choose.pick((1,))
    empty = choose.value(box, "empty_experts", [kind for kind in _EMPTY if empty_parts.fits(kind, experts)])
    assume(empty_parts.fits(empty, experts))
    return DynamicQuantCase(
        tokens=tokens,
        width=width,
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        bits=bits,
        smooth=smooth,
        experts=experts,
        empty_experts=empty,
        recipe=choose.value(box, "recipe", (*RECIPES, RECIPES[-1])),
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )


_EMPTY = ("none", "first", "middle", "none", "last", "middle", "none", "all but one")
"""Shrinking goes down by one option or two: from each it comes to none."""

_WIDTHS = (1, 3, 8, 17, 16, 24, 64, 1000, 2048, 7168)
"""Elements of a row. Shrinking goes down by one option or two, and stops where neither fails: powers of two and other
widths take turns, so that what one of the two kinds does wrong shrinks to the smallest of its kind."""


def _has_words(width: int, bits: int) -> bool:
    """Whether a row of integers fills words of 32 bits, in which those of four are returned."""
    return bits == 8 or width % 8 == 0


def build_inputs(case: DynamicQuantCase) -> DynamicQuantInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]
    smooth = None
    if case.smooth != "none":
        spread = Stream(case.seed, "smooth").normal((case.experts, case.width), torch.float32)
        smooth = (1 + 0.25 * spread).to(dtype)
    ends = None
    if case.smooth == "per expert":
        ends = torch.tensor(_ends(case), dtype=torch.int32)
    return DynamicQuantInputs(rows.with_row_stride(_states(case).to(dtype), case.rows), smooth, ends, case.bits)


def _ends(case: DynamicQuantCase) -> list[int]:
    """The row behind the last one of each expert; every expert has a row but those that are to be empty."""
    empty = empty_parts.which(case.empty_experts, case.experts)
    borders = sorted(Stream(case.seed, "ends").permutation(case.tokens - 1)[: case.experts - len(empty) - 1])
    ends = iter([*(1 + border for border in borders), case.tokens])
    found = [0]
    for expert in range(case.experts):
        found.append(found[-1] if expert in empty else next(ends, case.tokens))
    return found[1:]


def _states(case: DynamicQuantCase) -> torch.Tensor:
    stream = Stream(case.seed, "states")
    states = stream.normal((case.tokens, case.width), torch.float32)
    columns = stream.integers(0, case.width, case.tokens)
    if case.recipe == "outlier":
        states[range(case.tokens), columns] *= 64
    if case.recipe == "negative":
        states[range(case.tokens), columns] = -8.0
    if case.recipe == "two values":
        states = torch.sign(states) + (states == 0)
    if case.recipe == "zero rows":
        states[::2] = 0.0
    if case.recipe == "any exponent":
        return magnitudes.of_exponents(states, DTYPES[case.dtype], Stream(case.seed, "exponents"))
    return states * {"tiny": 2.0**-10, "large": 8000.0}.get(case.recipe, 1.0)


def values(case: DynamicQuantCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    used: dict[str, Collection[object]] = {name: (getattr(case, name),) for name in AXES}
    return used if case.smooth == "per expert" else used | {"experts": (), "empty_experts": ()}


def features(case: DynamicQuantCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "int4": case.bits == 4,
        "smooth": case.smooth != "none",
        "several experts": case.experts > 1,
        "experts without rows": case.empty_experts != "none",
        "odd width": case.width % 2 == 1,
        "sliced rows": case.rows == "sliced" and case.tokens > 1,
        case.recipe: case.recipe != "gaussian",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: DynamicQuantCase) -> str:
    """Return the case as one short line."""
    parts = [
        f"{counted(case.tokens, 'token')} x {case.width}",
        f"int{case.bits}",
        case.dtype,
        f"smooth {case.smooth}" if case.smooth != "none" else "",
        counted(case.experts, "expert") if case.smooth == "per expert" else "",
        f"{case.empty_experts} empty" if case.empty_experts != "none" else "",
        case.recipe if case.recipe != "gaussian" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: DynamicQuantCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    check_axes(case, AXES)
    if case.tokens * case.width > _MAX_ELEMENTS:
        raise ValueError(f"the states would have more than {_MAX_ELEMENTS} elements")
    if not _has_words(case.width, case.bits):
        raise ValueError(f"int4 needs a width that 8 divides, got {case.width}")
    if case.experts > case.tokens or (case.experts > 1 and case.smooth != "per expert"):
        raise ValueError(f"experts must lie in 1..{case.tokens}, and have factors each, got {case.experts}")
    if not empty_parts.fits(case.empty_experts, case.experts):
        raise ValueError(f"of {case.experts} experts none can be empty as {case.empty_experts}")


def coordinates(inputs: DynamicQuantInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token, expert and column."""
    tokens, width = inputs.states.shape
    token = torch.arange(tokens)
    places = {"token": token}
    if inputs.expert_ends is not None:
        places["expert"] = torch.bucketize(token, inputs.expert_ends.to(torch.int64), right=True)
    if output == "scale":
        return places
    return {name: place.unsqueeze(1) for name, place in places.items()} | {"column": torch.arange(width).unsqueeze(0)}


def _twice_the_row(subject: Subject, case: DynamicQuantCase) -> Comparison:
    """Doubling is exact: integers stay the same, and scales double."""
    inputs = build_inputs(case)
    once, twice = subject.run(inputs), subject.run(replace(inputs, states=inputs.states * 2))
    bounds = bounds_of(subject.expected(inputs))
    right = {
        "quantised": Derived(once["quantised"].to(torch.float64), 2 * bounds["quantised"], torch.int8),
        "scale": Derived(2 * once["scale"].to(torch.float64), 4 * bounds["scale"], torch.float32),
    }
    return compare(right, {name: twice[name] for name in right}, "states that are twice as large")


def _tokens_do_not_mix(subject: Subject, case: DynamicQuantCase) -> Comparison:
    order = Stream(case.seed, "order").permutation(case.tokens)
    return in_another_order(subject, build_inputs(case), order, ("states",))


def _sizes(model: Model) -> Box:
    return {"tokens": FEW, "width": (model.hidden, model.width), "bits": (8,), "dtype": ("bfloat16",)}


component = Component(
    name="dynamic_quant",
    summary="quantisation of rows to int8 or int4, by a scale that comes from the largest element of each",
    case_type=DynamicQuantCase,
    outputs=("quantised", "scale"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=dynamic_quant,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="int4",
    relations=(
        Property("tokens_do_not_mix", "the order of tokens does not matter", _tokens_do_not_mix,
                 within={"tokens": range(2, 2**16 + 1), "smooth": ("none", "for all")}),
        Property("twice_the_row", "states twice as large have scales twice as large, and the same integers",
                 _twice_the_row, within={"recipe": ("gaussian", "outlier", "negative", "two values")}),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["dynamic_quant"],
)  # fmt: skip
