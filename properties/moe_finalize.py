"""Bringing the rows of a token's experts back together: cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser
from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, Property, Subject
from npudiff.model.constraints import Axis, Box, Constraints, check_axes
from npudiff.properties._shared import magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.reference.moe_finalize import MoeFinalizeInputs, moe_finalize
from npudiff.reference.moe_routing import NOWHERE
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DROPPED = ("none", "some", "all of a token")
WEIGHTS = ("renormalised", "any sign", "zero for padding")
"""renormalised: positive ones that add up to 1 or so. any sign: normal numbers. zero for padding: those of the last
third of the tokens are zero, whose rows hold large numbers."""
MAGNITUDES = ("usual", "large", "small")
"""large: near the end of the dtype, where every right sum still is inside. small: subnormal in float16."""
LARGE = 4096.0
"""What rows of padded tokens hold, whose weights are zero: finite, and seen where it is added."""
POISONS = {"large": LARGE, "nan": math.nan}
"""What rows hold that nobody asks for. NaN is seen where such a row is multiplied by 0 instead of left out."""

AXES = {
    "tokens": Axis("rows of the result", range(1, 2**16 + 1)),
    "chosen": Axis("experts of a token", range(1, 513)),
    "width": Axis("elements of a row", range(1, 2**16 + 1)),
    "dtype": Axis("dtype of rows and weights", tuple(DTYPES)),
    "dropped": Axis("which copies are left out", DROPPED),
    "spare_rows": Axis("rows that nobody asks for", range(2**16)),
    "weights": Axis("how the weights are made", WEIGHTS),
    "skip": Axis("whether the result of shared experts is added", (False, True)),
    "magnitude": Axis("how large the rows are", MAGNITUDES),
    "rows": rows.AXIS,
    "poison": Axis("what rows hold that no place names: large finite values, or NaN", tuple(POISONS)),
}

_MAX_ELEMENTS = 2**26

MOST_ELEMENTS = 2**18
"""Elements of all copies up to which a case may have more tokens than it must."""


@dataclass(frozen=True)
class MoeFinalizeCase:
    """One call, as sizes; see the axes for their meaning."""

    tokens: int
    chosen: int = 1
    width: int = 64
    dtype: str = "bfloat16"
    dropped: str = "none"
    spare_rows: int = 0
    weights: str = "renormalised"
    skip: bool = False
    magnitude: str = "usual"
    rows: str = "contiguous"
    seed: int = 0
    poison: str = "large"


def cases(constraints: Constraints) -> st.SearchStrategy[MoeFinalizeCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> MoeFinalizeCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "chosen", "chosen", "tokens", "width")
    chosen = choose.value(box, "chosen", (1, 2, 3, 4, 6, 8))
    width = choose.value(box, "width", (64, 16, 32, 80, 1000))
    allowed = choose.options(box, "tokens", (1, 2, 3, 7, 17, 65, 257, 1025))
    fitting = [count for count in allowed if count * chosen * width <= MOST_ELEMENTS] or [min(allowed)]
    case = MoeFinalizeCase(
        tokens=choose.pick(fitting),
        chosen=chosen,
        width=width,
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        dropped=choose.value(box, "dropped", DROPPED),
        spare_rows=choose.value(box, "spare_rows", (0, 1, 5)),
        weights=choose.value(box, "weights", WEIGHTS),
        skip=choose.value(box, "skip", (False, True)),
        magnitude=choose.value(box, "magnitude", MAGNITUDES),
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )
    poison = choose.value(box, "poison", tuple(POISONS))
    return replace(case, poison=poison) if _has_unnamed(case) else case


def _has_unnamed(case: MoeFinalizeCase) -> bool:
    """Whether there are rows that no place names."""
    return case.spare_rows > 0 or case.dropped != "none"


def build_inputs(case: MoeFinalizeCase) -> MoeFinalizeInputs:
    """Build the inputs of a case: copies lie in any order, and rows that no place names are poison."""
    dtype, copies = DTYPES[case.dtype], case.tokens * case.chosen
    states = Stream(case.seed, "rows").normal((copies + case.spare_rows, case.width), torch.float32)
    if case.magnitude != "usual":
        sums = 3.5 if case.weights == "renormalised" else 1 / case.chosen  # of weights that add up to 1, or of 3.7 each
        small = case.magnitude == "small"
        states = magnitudes.small(states, dtype) if small else magnitudes.large(states, dtype, sums)
    places = torch.tensor(Stream(case.seed, "places").permutation(copies + case.spare_rows)[:copies])
    places = places.view(case.tokens, case.chosen)
    weights = _weights(case)
    if case.weights == "zero for padding":
        states[places[_padded(case)].flatten()] = LARGE
    left_out = _left_out(case)
    named = torch.zeros(len(states), dtype=torch.bool)
    named[places[~left_out]] = True
    states[~named] = POISONS[case.poison]
    skip = Stream(case.seed, "skip").normal((case.tokens, case.width), dtype) if case.skip else None
    return MoeFinalizeInputs(
        expert_rows=rows.with_row_stride(states.to(dtype), case.rows),
        places=places.masked_fill(left_out, NOWHERE).to(torch.int32),
        weights=weights.to(dtype),
        skip=None if skip is None else rows.with_row_stride(skip, case.rows, rows.GAPS[1]),
    )


def _padded(case: MoeFinalizeCase) -> slice:
    return slice(case.tokens - case.tokens // 3, None)


def _weights(case: MoeFinalizeCase) -> torch.Tensor:
    weights = Stream(case.seed, "weights").normal((case.tokens, case.chosen), torch.float32)
    if case.weights == "any sign":
        return weights
    weights = weights.exp() / weights.exp().sum(dim=1, keepdim=True)
    if case.weights == "zero for padding":
        weights[_padded(case)] = 0.0
    return weights


def _left_out(case: MoeFinalizeCase) -> torch.Tensor:
    """Copies that are left out, bool ``[tokens, chosen]``."""
    words = torch.from_numpy(Stream(case.seed, "dropped").random_uint64(case.tokens * case.chosen) >> 2).to(torch.int64)
    some = (words % 3 == 0).view(case.tokens, case.chosen)
    if case.dropped == "none":
        return torch.zeros_like(some)
    some[0] = case.dropped == "all of a token"
    some[0, -1] = True
    return some


def values(case: MoeFinalizeCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    used: dict[str, Collection[object]] = {name: (getattr(case, name),) for name in AXES}
    return used if _has_unnamed(case) else used | {"poison": ()}


def features(case: MoeFinalizeCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "left out": case.dropped != "none",
        "several experts": case.chosen > 1,
        "skip": case.skip,
        f"{case.magnitude} rows": case.magnitude != "usual",
        "rows to spare": case.spare_rows > 0,
        "nan": case.poison == "nan" and _has_unnamed(case),
        "padding": case.weights == "zero for padding" and case.tokens > 2,
        "sliced rows": case.rows == "sliced",
        "one token": case.tokens == 1,
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: MoeFinalizeCase) -> str:
    """Return the case as one short line."""
    parts = [
        f"{counted(case.tokens, 'token')} of {counted(case.chosen, 'expert')}",
        f"{case.dropped} left out" if case.dropped != "none" else "",
        counted(case.spare_rows, "spare row") if case.spare_rows else "",
        f"width {case.width}",
        case.dtype,
        f"weights {case.weights}" if case.weights != "renormalised" else "",
        "skip" if case.skip else "",
        f"{case.magnitude} rows" if case.magnitude != "usual" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"poison {case.poison}" if case.poison != "large" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: MoeFinalizeCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    check_axes(case, AXES)
    if (case.tokens * case.chosen + case.spare_rows) * case.width > _MAX_ELEMENTS:
        raise ValueError(f"there would be more than {_MAX_ELEMENTS} elements")


def coordinates(inputs: MoeFinalizeInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: token, copies of it that are here, and column."""
    del output  # there is one
    return {
        "token": torch.arange(len(inputs.places)).unsqueeze(1),
        "copies": (inputs.places != NOWHERE).sum(dim=1, keepdim=True),
        "column": torch.arange(inputs.expert_rows.shape[1]).unsqueeze(0),
    }


def _order_of_choices(subject: Subject, case: MoeFinalizeCase) -> Comparison:
    inputs = build_inputs(case)
    other = replace(inputs, places=inputs.places.flip(1).contiguous(), weights=inputs.weights.flip(1).contiguous())
    return compare_runs(
        bounds_of(subject.expected(inputs)), subject.run(inputs), subject.run(other), "experts named in reverse"
    )


def _place_of_rows(subject: Subject, case: MoeFinalizeCase) -> Comparison:
    """Rows in another order, and places that say so."""
    inputs = build_inputs(case)
    order = torch.tensor(Stream(case.seed, "order").permutation(len(inputs.expert_rows)))
    where = torch.argsort(order).to(torch.int32)
    places = torch.where(inputs.places == NOWHERE, NOWHERE, where[inputs.places.clamp(min=0).long()])
    other = replace(inputs, expert_rows=inputs.expert_rows[order], places=places.to(torch.int32))
    return compare_runs(
        bounds_of(subject.expected(inputs)), subject.run(inputs), subject.run(other), "rows in another order"
    )


def _sizes(model: Model) -> Box:
    return {"tokens": FEW, "chosen": (model.top_k,), "width": (model.hidden,), "dtype": ("bfloat16",)}


component = Component(
    name="moe_finalize",
    summary="the weighted sum of what a token's experts return, wherever their rows are",
    case_type=MoeFinalizeCase,
    outputs=("output",),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=moe_finalize,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="left out",
    relations=(
        Property("order_of_choices", "the order in which a token names its experts does not matter",
                 _order_of_choices, within={"chosen": range(2, 513)}),
        Property("place_of_rows", "where rows lie does not matter", _place_of_rows),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["moe_finalize"],
)  # fmt: skip
