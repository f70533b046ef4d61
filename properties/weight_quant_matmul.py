"""Products with a quantised weight: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation, tokens_do_not_mix
from npudiff.model.component import Component
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_experts
from npudiff.properties._shared.weight_matrix import (
    HUGE_COLUMNS,
    HUGE_INNER,
    MOST_WEIGHTS,
    affords_tokens,
    columns_do_not_mix,
    coordinates,
    too_large,
)
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
class WeightQuantMatmulCase(Case):
    """One call, as sizes, dtypes and a recipe."""

    tokens: int = axis(
        "rows of the states", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 65, 130, 300),
        affordable=lambda case, tokens: affords_tokens(case, tokens, MOST_PRODUCTS),
        shown=lambda case: f"{counted(case.tokens, 'token')} x {case.inner} x {case.columns}",
    )  # fmt: skip
    inner: int = axis(
        "rows of the weight", range(1, 2**16), 64,
        drawn=lambda case: HUGE_INNER if case.huge else (64, 16, 40, 1, 17, 100, 200, 1000, 2048, 4160), shown="",
        region=lambda case: "odd inner" if case.inner % 16 else "",
    )  # fmt: skip
    columns: int = axis(
        "columns of the weight", range(1, 2**16), 16,
        drawn=lambda case: HUGE_COLUMNS if case.huge else (16, 8, 1, 7, 24, 33, 64, 136, 264),
        affordable=lambda case, columns: case.inner * columns <= MOST_WEIGHTS, shown="",
        region=lambda case: "odd columns" if case.columns % 2 else "",
    )  # fmt: skip
    dtype: str = axis(
        "dtype of states, scales and offsets", tuple(DTYPES), "bfloat16", always=True,
        shown=lambda case: f"{case.dtype} by int{case.bits}",
    )  # fmt: skip
    bits: int = axis(
        "bits of the integers of the weight", tuple(RANGES), 8, drawn=(8, 4), shown="",
        region=lambda case: f"int{case.bits}",
    )  # fmt: skip
    scale_per: str = axis(
        "what has a scale: each column, the weight, or each column of each group of rows", PER, "columns",
        shown=lambda case: f"scale per {case.scale_per.removesuffix('s')}"
        + (f" of {case.group_size}" if case.group_size else ""),
    )  # fmt: skip
    group_size: int = axis(
        "rows of a group; 0 for no groups", range(0, 2**16, 32), 0, drawn=(0, 32, 64, 128, 96, 256, 320),
        fits=lambda case, size: size < case.inner, shown="", region="groups",
    )  # fmt: skip
    offset: str = axis("offsets of the integers", OFFSETS, "none", shown="offset {}", region="offset")
    bias: bool = axis("whether a bias is added", (False, True), False, region="bias")
    recipe: str = axis("how states and weight are made", RECIPES, "gaussian", region="{}")
    layout: str = axis("how the weight lies in memory", LAYOUTS, "row major", region="{}")
    rows: str = rows.axis(several="tokens")
    seed: int = seed()

    drawn_first = ("inner", "columns")
    outliers = ("columns", "inner", "tokens")
    huge_axes = ("tokens",)
    tied = ("inner", "columns")
    rules = RULES

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        yield from too_large(self.tokens, self.inner, self.columns)
        if self.group_size >= self.inner:
            yield f"groups of {self.group_size} in {self.inner} rows"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {"shorter group": self.group_size > 0 and self.inner % self.group_size != 0}


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


def _equal_groups_are_none(
    inputs: WeightQuantMatmulInputs, case: WeightQuantMatmulCase
) -> Changed[WeightQuantMatmulInputs]:
    first = {name: each[0] for name in ("scale", "offset") if (each := getattr(inputs, name)) is not None}
    groups = len(inputs.scale)
    equal = replace(inputs, **{name: each.expand(groups, -1).contiguous() for name, each in first.items()})
    none = replace(inputs, **first, group_size=0)
    return Changed(none, case=replace(case, scale_per="columns", group_size=0), before=equal)


def _sizes(model: Model) -> Box:
    inner, columns = (model.hidden, model.width), (model.width, model.hidden)
    return {"tokens": FEW, "inner": inner, "columns": columns, "dtype": ("bfloat16",)}


component = Component(
    name="weight_quant_matmul",
    summary="products of floats with a weight of int8 or int4, which is turned into floats first",
    case_type=WeightQuantMatmulCase,
    outputs=("output",),
    inputs=build_inputs,
    reference=weight_quant_matmul,
    coordinates=coordinates,
    highlighted_region="shorter group",
    relations=(
        tokens_do_not_mix("x"),
        columns_do_not_mix(),
        relation("equal_groups_are_none", "groups with the same scales are as good as none", _equal_groups_are_none,
                 within={"scale_per": ("groups",)}, needs={"scale_per": ("columns",)}),
    ),
    profiles=of_experts(_sizes),
    baselines=BASELINES["weight_quant_matmul"],
)  # fmt: skip
