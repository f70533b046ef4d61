"""Products with a quantised weight: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, Property, Subject
from npudiff.model.constraints import Axis, Box, Constraints, check_axes
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.properties._shared.token_order import in_another_order
from npudiff.properties._shared.weight_matrix import check_sizes, columns_in_another_order, coordinates, narrow
from npudiff.reference.quant_matmul import RANGES
from npudiff.reference.weight_quant_matmul import BIAS_DTYPES, WeightQuantMatmulInputs, weight_quant_matmul
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PER = ("columns", "tensor", "groups")
OFFSETS = ("none", "whole", "fraction")
"""whole: of whole numbers, as zero points are. fraction: of others, so that the sum with an integer is rounded."""
RECIPES = ("gaussian", "extremes", "positive", "one row", "zero rows", "large")
"""gaussian: integers of a fourth of the range. extremes: the smallest and the largest. positive: no state and no
integer is negative, so that nothing cancels. one row: each token sees one row of the weight, near the end of a group or
of the weight more often than not. zero rows: some tokens hold nothing but zeros. large: states beyond the range of
float16, where they are bfloat16."""
LAYOUTS = ("row major", "transposed")
"""transposed: the weight is a view of one that lies the other way, as a checkpoint has it."""

AXES = {
    "tokens": Axis("rows of the states", range(1, 2**16 + 1)),
    "inner": Axis("rows of the weight", range(1, 2**16)),
    "columns": Axis("columns of the weight", range(1, 2**16)),
    "dtype": Axis("dtype of states, scales and offsets", tuple(DTYPES)),
    "bits": Axis("bits of the integers of the weight", tuple(RANGES)),
    "scale_per": Axis("what has a scale: each column, the weight, or each column of each group of rows", PER),
    "group_size": Axis("rows of a group; 0 for no groups", range(0, 2**16, 32)),
    "offset": Axis("offsets of the integers", OFFSETS),
    "bias": Axis("whether a bias is added", (False, True)),
    "recipe": Axis("how states and weight are made", RECIPES),
    "layout": Axis("how the weight lies in memory", LAYOUTS),
    "rows": rows.AXIS,
}

_SCALES: tuple[Box, ...] = (
    {"scale_per": ("columns", "tensor"), "group_size": (0,)},
    {"scale_per": ("groups",), "group_size": range(32, 2**16, 32), "inner": range(33, 2**16)},
)
_INTEGERS: tuple[Box, ...] = (
    {"bits": (8,)},
    {"bits": (4,), "layout": ("row major",), "columns": range(8, 2**16, 8), "inner": range(2, 2**16)},
    {"bits": (4,), "layout": ("transposed",), "inner": range(8, 2**16, 8), "columns": range(2, 2**16)},
)
RULES = Constraints(_SCALES).within(Constraints(_INTEGERS))
"""Groups have a size, and integers of four bits fill words along the axis that lies together in memory; a single row or
column of words lies both ways."""


MOST_PRODUCTS = 2**19
"""Products up to which a case may have more tokens than it must."""


@dataclass(frozen=True)
class WeightQuantMatmulCase:
    """One call, as sizes, dtypes and a recipe; see the axes for their meaning."""

    tokens: int
    inner: int = 64
    columns: int = 16
    dtype: str = "bfloat16"
    bits: int = 8
    scale_per: str = "columns"
    group_size: int = 0
    offset: str = "none"
    bias: bool = False
    recipe: str = "gaussian"
    layout: str = "row major"
    rows: str = "contiguous"
    seed: int = 0


def cases(constraints: Constraints) -> st.SearchStrategy[WeightQuantMatmulCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.within(RULES).boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> WeightQuantMatmulCase:
    choose = Chooser(draw)
    assume(boxes)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "columns", "inner", "tokens")
    inner = choose.value(box, "inner", (64, 16, 40, 1, 17, 100, 200, 1000, 2048, 4160))
    columns = choose.pick(narrow(choose.options(box, "columns", (16, 8, 1, 7, 24, 33, 64, 136, 264)), inner))
    allowed = choose.options(box, "tokens", (1, 2, 3, 7, 17, 65, 130, 300))
    fitting = [count for count in allowed if count * inner * columns <= MOST_PRODUCTS]
    sizes = [size for size in within((0, 32, 64, 128, 96, 256, 320), box.get("group_size")) if size < inner]
    assume(sizes)
    case = WeightQuantMatmulCase(
        tokens=choose.pick(fitting or [min(allowed)]),
        inner=inner,
        columns=columns,
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        bits=choose.value(box, "bits", (8, 4)),
        scale_per=choose.value(box, "scale_per", PER),
        group_size=choose.pick(sizes),
        offset=choose.value(box, "offset", OFFSETS),
        bias=choose.value(box, "bias", (False, True)),
        recipe=choose.value(box, "recipe", RECIPES),
        layout=choose.value(box, "layout", LAYOUTS),
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )
    return choose.tie_sizes(case, ("inner", "columns"), values, check_case, box)


def build_inputs(case: WeightQuantMatmulCase) -> WeightQuantMatmulInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]
    groups = -(-case.inner // case.group_size) if case.group_size else 1
    shape = {"tensor": (1,), "columns": (case.columns,), "groups": (groups, case.columns)}[case.scale_per]
    quarter = RANGES[case.bits][1] / 4
    spread = Stream(case.seed, "scale").normal(shape, torch.float32)
    offset = Stream(case.seed, "offset").normal(shape, torch.float32) * quarter / 2
    if case.offset == "whole":
        offset = offset.round() + 1
    bias = Stream(case.seed, "bias").normal((case.columns,), torch.float32) * case.inner**0.5
    weight = _weight(case)
    return WeightQuantMatmulInputs(
        x=rows.with_row_stride(_states(case).to(dtype), case.rows),
        weight=weight.t().contiguous().t() if case.layout == "transposed" else weight,
        scale=((0.25 * spread).exp() / quarter).to(dtype),
        offset=None if case.offset == "none" else offset.to(dtype),
        bias=bias.to(BIAS_DTYPES[dtype]) if case.bias else None,
        group_size=case.group_size,
        bits=case.bits,
    )


def _weight(case: WeightQuantMatmulCase) -> torch.Tensor:
    """The weight, int8 ``[inner, columns]``, contiguous."""
    low, high = RANGES[case.bits]
    numbers = Stream(case.seed, "weight").normal((case.inner, case.columns), torch.float32)
    if case.recipe == "extremes":
        return torch.where(numbers < 0, low, high).to(torch.int8)
    if case.recipe == "positive":
        numbers = numbers.abs()
    return (numbers * high / 4).round().clamp(low, high).to(torch.int8)


def _states(case: WeightQuantMatmulCase) -> torch.Tensor:
    """States, float32 ``[tokens, inner]``."""
    stream = Stream(case.seed, "x")
    states = stream.normal((case.tokens, case.inner), torch.float32)
    if case.recipe == "positive":
        return states.abs()
    if case.recipe == "zero rows":
        states[::2] = 0.0
    if case.recipe == "large":
        states *= 2.0**17 if case.dtype == "bfloat16" else 16.0  # beyond the range of float16, or well inside it
    if case.recipe == "one row":
        size = case.group_size or case.inner
        near = [at for start in range(0, case.inner, size) for at in (start, min(start + size, case.inner) - 1)]
        picked = torch.tensor(stream.integers(0, 2**16, case.tokens))
        anywhere = picked % case.inner
        seen = torch.where(picked % 4 == 3, anywhere, torch.tensor(near[::-1])[picked // 4 % len(near)])
        states = torch.where(torch.arange(case.inner) == seen.unsqueeze(1), 1.0 + states.abs(), 0.0)
    return states


def values(case: WeightQuantMatmulCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {name: (getattr(case, name),) for name in AXES}


def features(case: WeightQuantMatmulCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        f"int{case.bits}": True,
        "groups": case.group_size > 0,
        "shorter group": case.group_size > 0 and case.inner % case.group_size != 0,
        "offset": case.offset != "none",
        "bias": case.bias,
        "odd inner": case.inner % 16 != 0,
        "odd columns": case.columns % 2 == 1,
        "sliced rows": case.rows == "sliced" and case.tokens > 1,
        "transposed": case.layout == "transposed",
        case.recipe: case.recipe != "gaussian",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: WeightQuantMatmulCase) -> str:
    """Return the case as one short line."""
    parts = [
        f"{counted(case.tokens, 'token')} x {case.inner} x {case.columns}",
        f"{case.dtype} by int{case.bits}",
        f"scale per {case.scale_per.removesuffix('s')}" + (f" of {case.group_size}" if case.group_size else ""),
        f"offset {case.offset}" if case.offset != "none" else "",
        "bias" if case.bias else "",
        case.recipe if case.recipe != "gaussian" else "",
        "transposed" if case.layout == "transposed" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: WeightQuantMatmulCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    check_axes(case, AXES)
    check_sizes(case.tokens, case.inner, case.columns)
    why = RULES.reason_against(values(case))
    if why is not None or case.group_size >= max(case.inner, 1):
        raise ValueError(f"these do not go together: {why or f'groups of {case.group_size} in {case.inner} rows'}")


def _tokens_do_not_mix(subject: Subject, case: WeightQuantMatmulCase) -> Comparison:
    order = Stream(case.seed, "order").permutation(case.tokens)
    return in_another_order(subject, build_inputs(case), order, ("x",))


def _columns_do_not_mix(subject: Subject, case: WeightQuantMatmulCase) -> Comparison:
    return columns_in_another_order(subject, build_inputs(case), Stream(case.seed, "columns").permutation(case.columns))


def _equal_groups_are_none(subject: Subject, case: WeightQuantMatmulCase) -> Comparison:
    subject.require(replace(case, scale_per="columns", group_size=0), "with a scale for each column")
    inputs = build_inputs(case)
    first = {name: each[0] for name in ("scale", "offset") if (each := getattr(inputs, name)) is not None}
    groups = len(inputs.scale)
    equal = replace(inputs, **{name: each.expand(groups, -1).contiguous() for name, each in first.items()})
    none = replace(inputs, **first, group_size=0)
    bounds = bounds_of(subject.expected(none))
    return compare_runs(
        bounds, subject.run(equal), subject.run(none), "groups that have the same scales, and no groups"
    )


def _sizes(model: Model) -> Box:
    inner, columns = (model.hidden, model.width), (model.width, model.hidden)
    return {"tokens": FEW, "inner": inner, "columns": columns, "dtype": ("bfloat16",)}


component = Component(
    name="weight_quant_matmul",
    summary="products of floats with a weight of int8 or int4, which is turned into floats first",
    case_type=WeightQuantMatmulCase,
    outputs=("output",),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=weight_quant_matmul,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="shorter group",
    relations=(
        Property("tokens_do_not_mix", "the order of tokens does not matter", _tokens_do_not_mix,
                 within={"tokens": range(2, 2**16 + 1)}),
        Property("columns_do_not_mix", "the order of columns does not matter", _columns_do_not_mix,
                 within={"columns": range(2, 2**16)}),
        Property("equal_groups_are_none", "groups with the same scales are as good as none", _equal_groups_are_none,
                 within={"scale_per": ("groups",)}, needs={"scale_per": ("columns",)}),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["weight_quant_matmul"],
)  # fmt: skip
