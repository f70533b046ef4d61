"""Packing of integers of four bits: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, Property, Subject
from npudiff.model.constraints import Axis, Box, Constraints, check_axes
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_models
from npudiff.reference.int4_pack import ENCODINGS, INTEGERS_OF_A_WORD, Int4PackInputs, int4_pack

SOURCES = ("integers", "high bits", "offset binary")
"""integers: from -8 to 7. high bits: something else stands above the four bits that count. offset binary: from 0 to
15, the integer plus 8, as checkpoints of WNA16 have them."""
RECIPES = ("all values", "extremes", "negative even", "positive", "one column")
"""all values: each of the sixteen. extremes: -8 and 7. negative even: even columns are negative, odd ones are not.
positive: none is negative. one column: all others are zero."""
LAYOUTS = ("row major", "transposed")
"""transposed: a view of matrices that lie the other way, as a checkpoint has them."""

AXES = {
    "matrices": Axis("matrices, as of experts; one has rank 2", range(1, 1025)),
    "rows": Axis("rows of a matrix", range(1, 2**16 + 1)),
    "columns": Axis("columns of a matrix, along which integers are packed", range(8, 2**16 + 1, 8)),
    "source": Axis("what the elements that are given hold", SOURCES),
    "recipe": Axis("how the integers are made", RECIPES),
    "layout": Axis("how the given matrices lie in memory", LAYOUTS),
}

_MAX_ELEMENTS = 2**26

MOST_ELEMENTS = 2**17
"""Integers up to which a case may have more rows than it must."""


@dataclass(frozen=True)
class Int4PackCase:
    """One call, as sizes and recipes; see the axes for their meaning."""

    rows: int
    columns: int = 8
    matrices: int = 1
    source: str = "integers"
    recipe: str = "all values"
    layout: str = "row major"
    seed: int = 0


def cases(constraints: Constraints) -> st.SearchStrategy[Int4PackCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> Int4PackCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "matrices", "rows")
    columns = choose.value(
        box, "columns", (8, 16, 24, 64, 72, 88, 136) if choose.far else (8, 16, 24, 64, 72, 88, 136, 1024, 4104)
    )
    matrices = choose.value(box, "matrices", (1, 1, 2, 3, 8, 17))
    allowed = choose.options(box, "rows", (1, 2, 3, 7, 8, 16, 24, 33, 64, 128, 300))
    fitting = [count for count in allowed if count * columns * matrices <= MOST_ELEMENTS]
    return Int4PackCase(
        rows=choose.pick(fitting or [min(allowed)]),
        columns=columns,
        matrices=matrices,
        source=choose.value(box, "source", SOURCES),
        recipe=choose.value(box, "recipe", RECIPES),
        layout=choose.value(box, "layout", LAYOUTS),
        seed=choose.pick(range(1024)),
    )


def build_inputs(case: Int4PackCase) -> Int4PackInputs:
    """Build the inputs of a case."""
    values = integers(case)
    encoding = ENCODINGS[case.source == "offset binary"]
    if case.source == "offset binary":
        values = values + 8
        if case.seed % 2:
            values = values + _above(case, values)
    if case.source == "high bits":
        values = values + _above(case, values)
    values = values.to(torch.int32)
    if case.matrices == 1:
        values = values[0]
    if case.layout == "transposed":
        values = values.transpose(-1, -2).contiguous().transpose(-1, -2)
    return Int4PackInputs(values, encoding)


def integers(case: Int4PackCase) -> torch.Tensor:
    """Return the integers of a case, int64 ``[matrices, rows, columns]``."""
    shape = (case.matrices, case.rows, case.columns)
    words = Stream(case.seed, "values").random_uint64(case.matrices * case.rows * case.columns) >> 8
    values = torch.from_numpy(words.astype("int64")).view(shape) % 16 - 8
    if case.recipe == "extremes":
        return torch.where(values < 0, -8, 7)
    if case.recipe == "positive":
        return values % 8
    if case.recipe == "negative even":
        return values % 8 - 8 * (torch.arange(case.columns) % 2 == 0)
    if case.recipe == "one column":
        column = Stream(case.seed, "column").integers(0, case.columns, 1)[0]
        return torch.where(torch.arange(case.columns) == column, values, 0)
    return values


def _above(case: Int4PackCase, values: torch.Tensor) -> torch.Tensor:
    """Bits above the lowest four, which nobody may look at."""
    words = Stream(case.seed, "high bits").random_uint64(values.numel()).view("int64") >> 36
    return 16 * torch.from_numpy(words).view(values.shape)


def values(case: Int4PackCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {name: (getattr(case, name),) for name in AXES}


def features(case: Int4PackCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "several matrices": case.matrices > 1,
        "transposed": case.layout == "transposed",
        case.source: case.source != "integers",
        case.recipe: case.recipe != "all values",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: Int4PackCase) -> str:
    """Return the case as one short line."""
    parts = [
        f"{case.matrices} {'matrix' if case.matrices == 1 else 'matrices'} of {case.rows} x {case.columns}",
        case.source,
        case.recipe if case.recipe != "all values" else "",
        "transposed" if case.layout == "transposed" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: Int4PackCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    check_axes(case, AXES)
    if case.matrices * case.rows * case.columns > _MAX_ELEMENTS:
        raise ValueError(f"there would be more than {_MAX_ELEMENTS} integers")


def coordinates(inputs: Int4PackInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the words: matrix, row, and the first column of a word."""
    del output  # there is one
    names = ("matrix", "row", "first column")[-inputs.values.dim() :]
    steps = (*[1] * (inputs.values.dim() - 1), INTEGERS_OF_A_WORD)
    places = [torch.arange(0, size, step) for size, step in zip(inputs.values.shape, steps, strict=True)]
    return dict(zip(names, torch.meshgrid(*places, indexing="ij"), strict=True))


def _unpacking_gives_them_back(subject: Subject, case: Int4PackCase) -> Comparison:
    """Read the words as a kernel does, by shifts, and compare with the integers that the case is made of."""
    words = subject.run(build_inputs(case))["words"].to(torch.int64)
    read = (words.unsqueeze(-1) >> torch.arange(0, 32, 4)) & 15
    read = ((read ^ 8) - 8).flatten(-2)
    given = integers(case)[0] if case.matrices == 1 else integers(case)
    right = {"words": Derived(given, torch.zeros(given.shape, dtype=torch.float64), torch.int64)}
    return compare(right, {"words": read}, "integers before and after")


def _groups_do_not_mix(subject: Subject, case: Int4PackCase) -> Comparison:
    inputs = build_inputs(case)
    order = Stream(case.seed, "order").permutation(case.columns // INTEGERS_OF_A_WORD)
    groups = inputs.values.reshape(*inputs.values.shape[:-1], -1, INTEGERS_OF_A_WORD)
    before = subject.run(inputs)["words"][..., order]
    moved = groups[..., order, :].flatten(-2).clone()  # a tensor of its own, and no view of one that has an axis more
    after = subject.run(replace(inputs, values=moved))
    right = {"words": Derived(before, torch.zeros(before.shape, dtype=torch.float64), torch.int32)}
    return compare(right, {"words": after["words"]}, "eight columns at a time in another order")


def _sizes(model: Model) -> Box:
    return {"matrices": (1,), "rows": (model.width,), "columns": (2 * model.width, model.hidden)}


component = Component(
    name="int4_pack",
    summary="integers of four bits, packed eight to a word: the first column in the lowest bits",
    case_type=Int4PackCase,
    outputs=("words",),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=int4_pack,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="several matrices",
    relations=(
        Property("unpacking_gives_them_back", "integers that were packed are there when words are unpacked",
                 _unpacking_gives_them_back),
        Property("groups_do_not_mix", "eight columns make a word of their own", _groups_do_not_mix,
                 within={"columns": range(16, 2**16 + 1, 8)}),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["int4_pack"],
)  # fmt: skip
