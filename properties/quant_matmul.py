"""Products of integers: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare
from npudiff.judge.relations import tokens_do_not_mix
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_experts
from npudiff.properties._shared.rows import with_row_stride
from npudiff.properties._shared.weight_matrix import (
    HUGE_COLUMNS,
    HUGE_INNER,
    MOST_WEIGHTS,
    affords_tokens,
    columns_do_not_mix,
    coordinates,
    too_large,
)
from npudiff.reference.bounds import underflow_step
from npudiff.reference.quant_matmul import RANGES, QuantMatmulInputs, quant_matmul
from npudiff.text import counted

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "int8": torch.int8,
    "int32": torch.int32,
}
OUTPUTS = ("bfloat16", "float16", "int8", "int32")
BIASES = ("none", "int32", "float32", "bfloat16", "float16")
PER = ("columns", "tensor")
OFFSETS = ("none", *PER)
RECIPES = ("gaussian", "extremes", "cancelling", "zero rows")
"""gaussian: a fourth of the range. extremes: mostly the smallest and the largest integer, each row and column of one
sign, so that sums are as large as they can be; an int32 bias makes those of the first token small again. cancelling:
the same, and the second half of every sum takes the first one back. zero rows: some tokens hold nothing but zeros."""
LAYOUTS = ("row major", "transposed")
"""transposed: the weight is a view of one that lies the other way, as a checkpoint has it."""

_FLOATS: Box = {"offset": ("none",)}
_WORDS: Box = {"bits": (4,), "inner": range(8, 2**16, 8), "columns": range(8, 2**16, 8), "scale": ("float32",)}
RULES: tuple[Box, ...] = (
    {**_FLOATS, "bits": (8,), "output": ("bfloat16",),
     "bias": ("none", "int32", "float32", "bfloat16")},
    {**_FLOATS, "bits": (8,), "output": ("float16",), "scale": ("float32",), "token_scale": (True,),
     "bias": ("none", "int32", "float32", "float16")},
    {**_FLOATS, "bits": (8,), "output": ("float16",), "scale": ("float32",), "token_scale": (False,),
     "bias": ("none", "int32")},
    {"bits": (8,), "output": ("int8",), "scale": ("float32",), "token_scale": (False,), "bias": ("none", "int32")},
    {**_FLOATS, "bits": (8,), "output": ("int32",), "token_scale": (False,), "bias": ("none", "int32")},
    {**_FLOATS, **_WORDS, "output": ("float16",), "token_scale": (False,), "bias": ("none", "int32")},
    {**_FLOATS, **_WORDS, "output": ("float16", "bfloat16"), "token_scale": (True,), "bias": ("none",),
     "scale_per": ("columns",)},
)  # fmt: skip
"""What the operator's table of dtypes allows. A bias of bfloat16 beside an output of float16 is left out: the table
prints it, the text beside it says something else."""


INNERS = (1, 8, 16, 17, 64, 100, 1000, 1536, 2048, 4096, 8200)

MOST_PRODUCTS = 2**20
"""Products up to which a case may have more tokens than it must."""


@dataclass(frozen=True)
class QuantMatmulCase(Case):
    """One call, as sizes, dtypes and a recipe."""

    tokens: int = axis(
        "rows of the states", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 65, 130, 300),
        affordable=lambda case, tokens: affords_tokens(case, tokens, MOST_PRODUCTS),
        shown=lambda case: f"{counted(case.tokens, 'token')} x {case.inner} x {case.columns}",
    )  # fmt: skip
    inner: int = axis(
        "elements of a sum", range(1, 2**16), 64,
        drawn=lambda case: HUGE_INNER if case.huge else INNERS,
        shown="", region=lambda case: "odd inner" if case.inner % 16 else "",
    )  # fmt: skip
    columns: int = axis(
        "columns of the weight", range(1, 2**16), 16,
        drawn=lambda case: HUGE_COLUMNS if case.huge else (1, 2, 7, 8, 16, 24, 33, 64, 136, 264, 1032),
        affordable=lambda case, columns: case.inner * columns <= MOST_WEIGHTS, shown="",
        region=lambda case: "odd columns" if case.columns % 2 else "",
    )  # fmt: skip
    bits: int = axis(
        "bits of the integers of states and weight", tuple(RANGES), 8, drawn=(8, 4),
        shown=lambda case: f"int{case.bits} to {case.output}", region=lambda case: f"int{case.bits}",
    )  # fmt: skip
    output: str = axis(
        "dtype of the output", OUTPUTS, "bfloat16", shown="", region=lambda case: f"{case.output} output"
    )
    scale: str = axis(
        "dtype of the scales of the weight", ("float32", "bfloat16"), "float32",
        shown=lambda case: f"{case.scale} scale" + " per tensor" * (case.scale_per == "tensor"),
    )  # fmt: skip
    scale_per: str = axis("one scale per column of the weight, or one for all", PER, "columns", shown="")
    token_scale: bool = axis(
        "whether tokens have scales", (False, True), False, shown="token scales", region="token scales"
    )
    bias: str = axis(
        "dtype of the bias: int32 is added before scaling, floats after", BIASES, "none", shown="{} bias",
        region=lambda case: "" if case.bias == "none" else "int32 bias" if case.bias == "int32" else "float bias",
    )  # fmt: skip
    offset: str = axis(
        "offsets of an int8 output", OFFSETS, "none", region="offset",
        shown=lambda case: {"none": "", "columns": "offset", "tensor": "offset per tensor"}[case.offset],
    )  # fmt: skip
    recipe: str = axis("how the integers are made", RECIPES, "gaussian", region="{}")
    layout: str = axis("how the weight lies in memory", LAYOUTS, "row major", region="{}")
    rows: str = rows.axis(several="tokens")
    seed: int = seed()

    drawn_first = ("inner", "columns")
    outliers = ("columns", "inner", "tokens")
    huge_axes = ("tokens",)
    tied = ("inner", "columns", "tokens")
    rules = Constraints(RULES)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        yield from too_large(self.tokens, self.inner, self.columns)

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        extreme = self.recipe in ("extremes", "cancelling")
        return {"beyond float32": extreme and self.inner > 1040 and self.bits == 8}


def build_inputs(case: QuantMatmulCase) -> QuantMatmulInputs:
    """Build the inputs of a case."""
    x, weight = _states(case), _weight(case)
    bias = _bias(case, x, weight)
    scale = (0.5 + _uniform(case, "scale", case.columns)) * _output_size(case) / _sum_size(case)
    if case.output == "int8":
        scale = (0.5 + 0.5 * _uniform(case, "scale", case.columns)) * _LARGEST_INTEGER / _largest(x, weight, bias)
    tokens = torch.arange(case.tokens)
    offsets = torch.tensor(Stream(case.seed, "offset").integers(-100, 101, case.columns))
    token_scale = (0.25 + _uniform(case, "token scale", case.tokens)) * 0.5 ** (tokens % 3)
    return QuantMatmulInputs(
        x=with_row_stride(x, case.rows),
        weight=weight.t().contiguous().t() if case.layout == "transposed" else weight,
        scale=_per(case.scale_per, scale).to(DTYPES[case.scale]),
        token_scale=token_scale.to(torch.float32) if case.token_scale else None,
        offset=None if case.offset == "none" else _per(case.offset, offsets).to(torch.float32),
        bias=bias,
        output_dtype=DTYPES[case.output],
        bits=case.bits,
    )


_LARGEST_INTEGER = 240.0
"""What the largest sum of a column is worth in an int8 output: beyond the range of int8, and within nine bits, which is
where hardware limits it before it adds an offset."""


def _per(per: str, numbers: torch.Tensor) -> torch.Tensor:
    return numbers if per == "columns" else numbers[:1]


def _uniform(case: QuantMatmulCase, name: str, count: int) -> torch.Tensor:
    """Numbers from 0 to 1, float64: as float32 they use all bits."""
    words = (Stream(case.seed, name).random_uint64(count) >> 11).astype("int64")
    return torch.from_numpy(words).to(torch.float64) / 2**53


def _quarter(case: QuantMatmulCase) -> float:
    return RANGES[case.bits][1] / 4


def _sum_size(case: QuantMatmulCase) -> float:
    """How large a sum is, about."""
    if case.recipe in ("extremes", "cancelling"):
        return float(case.inner * RANGES[case.bits][1] ** 2)
    return float(case.inner**0.5 * _quarter(case) ** 2)


def _output_size(case: QuantMatmulCase) -> float:
    """How large a float output is, about: such that small ones beside large sums are no subnormals of float16."""
    return 4096.0 if case.recipe in ("extremes", "cancelling") else 8.0


def _largest(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    sums = x.to(torch.float64) @ weight.to(torch.float64)
    return (sums if bias is None else sums + bias).abs().amax(dim=0).clamp(min=1.0)


def _spread(case: QuantMatmulCase, name: str, shape: tuple[int, int]) -> torch.Tensor:
    numbers = Stream(case.seed, name).normal(shape, torch.float32) * _quarter(case)
    return numbers.round().clamp(*RANGES[case.bits]).to(torch.int8)


def _mostly_ends(case: QuantMatmulCase, name: str, lines: int, length: int) -> torch.Tensor:
    """Lines of the largest integer and of the smallest in turn, int8 ``[lines, length]``; one in eight is another."""
    low, high = RANGES[case.bits]
    spread = _spread(case, name, (lines, length))
    ends = torch.where(torch.arange(lines) % 2 == 0, high, low).to(torch.int8).unsqueeze(1)
    other = (
        torch.from_numpy((Stream(case.seed, f"{name} other").random_uint64(lines * length) >> 61).astype("int64")) == 7
    )
    return torch.where(other.view(lines, length), spread, ends)


def _states(case: QuantMatmulCase) -> torch.Tensor:
    if case.recipe in ("extremes", "cancelling"):
        return _mostly_ends(case, "x", case.tokens, case.inner)
    x = _spread(case, "x", (case.tokens, case.inner))
    if case.recipe == "zero rows":
        x[::2] = 0
    return x


def _weight(case: QuantMatmulCase) -> torch.Tensor:
    """The weight, int8 ``[inner, columns]``, contiguous."""
    if case.recipe not in ("extremes", "cancelling"):
        return _spread(case, "weight", (case.inner, case.columns))
    columns = _mostly_ends(case, "weight", case.columns, case.inner)
    if case.recipe == "cancelling":
        columns[:, case.inner // 2 :] = -1 - columns[:, case.inner // 2 :]
    return columns.t().contiguous()


def _bias(case: QuantMatmulCase, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    if case.bias == "none":
        return None
    numbers = Stream(case.seed, "bias").normal((case.columns,), torch.float32)
    if case.bias != "int32":
        return (numbers * _output_size(case)).to(DTYPES[case.bias])
    if case.recipe in ("extremes", "cancelling") and case.inner < 2**15:  # twice a sum has to fit
        return ((numbers * 100).to(torch.int64) - (x[:1].to(torch.int64) * weight.t()).sum(dim=1)).to(torch.int32)
    return (numbers * _sum_size(case) / 4).to(torch.int32)


def _sums_of_halves(subject: Subject, case: QuantMatmulCase) -> Comparison:
    """int32 is exact, whatever is summed first. Scales are 1, so that it does not matter whether they are applied."""
    inputs = build_inputs(case)
    whole = replace(inputs, scale=torch.ones_like(inputs.scale))
    half = case.inner // 32 * 16
    for inner in (half, case.inner - half):
        subject.require(replace(case, inner=inner), "one half of every sum")
    parts = (
        replace(whole, x=whole.x[:, :half].contiguous(), weight=whole.weight[:half].contiguous()),
        replace(whole, x=whole.x[:, half:].contiguous(), weight=whole.weight[half:].contiguous(), bias=None),
    )
    first, second = (subject.run(part)["output"] for part in parts)
    return compare(_equal(first + second), {"output": subject.run(whole)["output"]}, "two halves of every sum")


def _equal(right: torch.Tensor) -> dict[str, Derived]:
    return {"output": Derived(right, torch.zeros(right.shape, dtype=torch.float64), right.dtype)}


def _twice_the_token_scale(subject: Subject, case: QuantMatmulCase) -> Comparison:
    """Doubling is exact, but for numbers so small that their last bit is that of the dtype."""
    inputs = build_inputs(case)
    if inputs.token_scale is None:
        raise AssertionError("the property is for tokens with scales")
    once, twice = subject.run(inputs), subject.run(replace(inputs, token_scale=2 * inputs.token_scale))
    doubled = 2 * once["output"].to(torch.float64)
    free = torch.full_like(doubled, 4 * underflow_step(inputs.output_dtype))
    right = {"output": Derived(doubled, free, inputs.output_dtype)}
    return compare(right, {"output": twice["output"]}, "scales of tokens that are twice as large")


def _sizes(model: Model) -> Box:
    inner, columns = (model.hidden, model.width), (model.width, model.hidden)
    return {"tokens": FEW, "inner": inner, "columns": columns, "bits": (8,), "output": ("bfloat16",)}


component = Component(
    name="quant_matmul",
    summary="products of int8 or int4, summed exactly, scaled to floats or to int8",
    case_type=QuantMatmulCase,
    outputs=("output",),
    inputs=build_inputs,
    reference=quant_matmul,
    coordinates=coordinates,
    highlighted_region="beyond float32",
    relations=(
        tokens_do_not_mix("x", "token_scale"),
        columns_do_not_mix(),
        Property("sums_of_halves", "sums are those of their halves", _sums_of_halves,
                 within={"bits": (8,), "output": ("int32",), "inner": range(32, 2**16)}),
        Property("twice_the_token_scale", "a token whose scale is twice as large has an output twice as large",
                 _twice_the_token_scale,
                 within={"output": ("bfloat16", "float16"), "token_scale": (True,), "bias": ("none", "int32")}),
    ),
    profiles=of_experts(_sizes),
    baselines=BASELINES["quant_matmul"],
)  # fmt: skip
