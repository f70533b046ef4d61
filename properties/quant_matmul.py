"""Products of integers: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import assume
from hypothesis import strategies as st

from npudiff.compare import Comparison, Derived, agree, bounds_of, compare
from npudiff.component import Component, Subject
from npudiff.constraints import Axis, Box, Constraints
from npudiff.data import Stream
from npudiff.draw import Chooser, within
from npudiff.property import Property
from npudiff.text import counted
from properties import rows
from properties.token_order import in_another_order
from reference.bounds import underflow_step
from reference.quant_matmul import RANGES, QuantMatmulInputs, quant_matmul

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "int8": torch.int8,
    "int32": torch.int32,
}
OUTPUTS = ("bfloat16", "float16", "int8", "int32")
BIASES = ("none", "int32", "float32", "bfloat16")
PER = ("columns", "tensor")
OFFSETS = ("none", *PER)
RECIPES = ("gaussian", "extremes", "cancelling", "zero rows")
"""gaussian: a fourth of the range. extremes: mostly the smallest and the largest integer, each row and column of one
sign, so that sums are as large as they can be; an int32 bias makes those of the first token small again. cancelling:
the same, and the second half of every sum takes the first one back. zero rows: some tokens hold nothing but zeros."""
LAYOUTS = ("row major", "transposed")
"""transposed: the weight is a view of one that lies the other way, as a checkpoint has it."""

AXES = {
    "tokens": Axis("rows of the states", range(1, 2**16 + 1)),
    "inner": Axis("elements of a sum", range(1, 2**16)),
    "columns": Axis("columns of the weight", range(1, 2**16)),
    "bits": Axis("bits of the integers of states and weight", tuple(RANGES)),
    "output": Axis("dtype of the output", OUTPUTS),
    "scale": Axis("dtype of the scales of the weight", ("float32", "bfloat16")),
    "scale_per": Axis("one scale per column of the weight, or one for all", PER),
    "token_scale": Axis("whether tokens have scales", (False, True)),
    "bias": Axis("dtype of the bias: int32 is added before scaling, floats after", BIASES),
    "offset": Axis("offsets of an int8 output", OFFSETS),
    "recipe": Axis("how the integers are made", RECIPES),
    "layout": Axis("how the weight lies in memory", LAYOUTS),
    "rows": rows.AXIS,
}

_FLOATS: Box = {"offset": ("none",)}
_WORDS: Box = {"bits": (4,), "inner": range(8, 2**16, 8), "columns": range(8, 2**16, 8), "scale": ("float32",)}
RULES: tuple[Box, ...] = (
    {**_FLOATS, "bits": (8,), "output": ("bfloat16",)},
    {**_FLOATS, "bits": (8,), "output": ("float16",), "scale": ("float32",), "token_scale": (True,),
     "bias": ("none", "int32", "float32")},
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

_MAX_ELEMENTS = 2**26

MOST_PRODUCTS = 2**20
"""Products up to which a case may have more tokens than it must."""


@dataclass(frozen=True)
class QuantMatmulCase:
    """One call, as sizes, dtypes and a recipe; see the axes for their meaning."""

    tokens: int
    inner: int = 64
    columns: int = 16
    bits: int = 8
    output: str = "bfloat16"
    scale: str = "float32"
    scale_per: str = "columns"
    token_scale: bool = False
    bias: str = "none"
    offset: str = "none"
    recipe: str = "gaussian"
    layout: str = "row major"
    rows: str = "contiguous"
    seed: int = 0


def cases(constraints: Constraints) -> st.SearchStrategy[QuantMatmulCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.within(Constraints(RULES)).boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> QuantMatmulCase:
    choose = Chooser(draw)
    assume(boxes)
    box = choose.pick(boxes)
    inner = choose.value(box, "inner", (64, 16, 8, 1, 17, 100, 1000, 2048, 4096))
    columns = choose.value(box, "columns", (16, 8, 1, 7, 24, 33, 136))
    allowed = within((1, 2, 3, 7, 17, 65), box.get("tokens"))[:4096]
    fitting = [count for count in allowed if count * inner * columns <= MOST_PRODUCTS]
    return QuantMatmulCase(
        tokens=choose.pick(fitting or [min(allowed)]),
        inner=inner,
        columns=columns,
        bits=choose.value(box, "bits", (8, 4)),
        output=choose.value(box, "output", OUTPUTS),
        scale=choose.value(box, "scale", ("float32", "bfloat16")),
        scale_per=choose.value(box, "scale_per", PER),
        token_scale=choose.value(box, "token_scale", (False, True)),
        bias=choose.value(box, "bias", BIASES),
        offset=choose.value(box, "offset", OFFSETS),
        recipe=choose.value(box, "recipe", RECIPES),
        layout=choose.value(box, "layout", LAYOUTS),
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )


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
        x=rows.laid(x, case.rows),
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
    words = (Stream(case.seed, name).words(count) >> 11).astype("int64")
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
    other = torch.from_numpy((Stream(case.seed, f"{name} other").words(lines * length) >> 61).astype("int64")) == 7
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


def values(case: QuantMatmulCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {name: (getattr(case, name),) for name in AXES}


def features(case: QuantMatmulCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        f"int{case.bits}": True,
        f"{case.output} output": True,
        "token scales": case.token_scale,
        "int32 bias": case.bias == "int32",
        "float bias": case.bias not in ("none", "int32"),
        "offset": case.offset != "none",
        "beyond float32": case.recipe in ("extremes", "cancelling") and case.inner > 1040 and case.bits == 8,
        "odd inner": case.inner % 16 != 0,
        "odd columns": case.columns % 2 == 1,
        "sliced rows": case.rows == "sliced" and case.tokens > 1,
        "transposed": case.layout == "transposed",
        case.recipe: case.recipe != "gaussian",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: QuantMatmulCase) -> str:
    """Return the case as one short line."""
    parts = [
        f"{counted(case.tokens, 'token')} x {case.inner} x {case.columns}",
        f"int{case.bits} to {case.output}",
        f"{case.scale} scale" + (" per tensor" if case.scale_per == "tensor" else ""),
        "token scales" if case.token_scale else "",
        f"{case.bias} bias" if case.bias != "none" else "",
        "offset" + (" per tensor" if case.offset == "tensor" else "") if case.offset != "none" else "",
        case.recipe if case.recipe != "gaussian" else "",
        "transposed" if case.layout == "transposed" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: QuantMatmulCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    for name, most in (("tokens", 2**16), ("inner", 2**16 - 1), ("columns", 2**16 - 1)):
        if not 1 <= getattr(case, name) <= most:
            raise ValueError(f"{name} must lie in 1..{most}, got {getattr(case, name)}")
    sizes = (case.tokens * case.inner, case.inner * case.columns, case.tokens * case.columns)
    if max(sizes) > _MAX_ELEMENTS or case.tokens * case.inner * case.columns > 2**34:
        raise ValueError(f"there would be more than {_MAX_ELEMENTS} elements or {2**34} products")
    for name in ("bits", "output", "scale", "scale_per", "bias", "offset", "recipe", "layout"):
        known = AXES[name].legal
        if getattr(case, name) not in known:
            raise ValueError(f"{name} is one of {', '.join(map(str, known))}, got {getattr(case, name)}")
    rows.check_rows(case.rows)
    why = Constraints(RULES).reason_against(values(case))
    if why is not None:
        raise ValueError(f"these do not go together: {why}")
    if not 0 <= case.seed < 2**63:
        raise ValueError(f"seed {case.seed} out of range")


def coordinates(inputs: QuantMatmulInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: token and column."""
    del output  # there is one
    tokens, columns = len(inputs.x), inputs.weight.shape[1]
    return {"token": torch.arange(tokens).unsqueeze(1), "column": torch.arange(columns).unsqueeze(0)}


def _tokens_do_not_mix(subject: Subject, case: QuantMatmulCase) -> Comparison:
    order = Stream(case.seed, "order").permutation(case.tokens)
    return in_another_order(subject, build_inputs(case), order, ("x", "token_scale"))


def _columns_do_not_mix(subject: Subject, case: QuantMatmulCase) -> Comparison:
    inputs = build_inputs(case)
    order = Stream(case.seed, "columns").permutation(case.columns)
    own = {name: getattr(inputs, name) for name in ("scale", "offset", "bias")}
    moved = {name: each[order] for name, each in own.items() if each is not None and len(each) == case.columns}
    other = replace(inputs, weight=inputs.weight.t()[order].contiguous().t(), **moved)
    before = {"output": subject.run(inputs)["output"][:, order]}
    return agree(bounds_of(subject.expected(other)), before, subject.run(other), "columns in another order")


def _sums_of_halves(subject: Subject, case: QuantMatmulCase) -> Comparison:
    """int32 is exact, whatever is summed first. Scales are 1, so that it does not matter whether they are applied."""
    inputs = build_inputs(case)
    whole = replace(inputs, scale=torch.ones_like(inputs.scale))
    half = case.inner // 2
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


component = Component(
    name="quant_matmul",
    summary="products of int8 or int4, summed exactly, scaled to floats or to int8",
    case_type=QuantMatmulCase,
    outputs=("output",),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=quant_matmul,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    watched="beyond float32",
    relations=(
        Property("tokens_do_not_mix", "the order of tokens does not matter", _tokens_do_not_mix,
                 within={"tokens": range(2, 2**16 + 1)}),
        Property("columns_do_not_mix", "the order of columns does not matter", _columns_do_not_mix,
                 within={"columns": range(2, 2**16)}),
        Property("sums_of_halves", "sums are those of their halves", _sums_of_halves,
                 within={"bits": (8,), "output": ("int32",), "inner": range(2, 2**16)}),
        Property("twice_the_token_scale", "a token whose scale is twice as large has an output twice as large",
                 _twice_the_token_scale,
                 within={"output": ("bfloat16", "float16"), "token_scale": (True,), "bias": ("none", "int32")}),
    ),
    profiles={
        "deepseek-v3": {"inner": (7168, 2048), "columns": (576, 1536), "bits": (8,), "output": ("bfloat16",)},
        "step-3.5-flash": {"inner": (4096, 1280), "columns": (1280, 4096), "bits": (8,), "output": ("bfloat16",)},
    },
)  # fmt: skip
