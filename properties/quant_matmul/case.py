"""Cases of products of integers: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import Axis, Box, Constraints, check_axes
from npudiff.properties._shared import rows
from npudiff.properties._shared.weight_matrix import check_sizes
from npudiff.reference.quant_matmul import RANGES
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
    check_axes(case, AXES)
    check_sizes(case.tokens, case.inner, case.columns)
    why = Constraints(RULES).reason_against(values(case))
    if why is not None:
        raise ValueError(f"these do not go together: {why}")
