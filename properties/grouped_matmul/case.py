"""Cases of grouped matrix products."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.draw.data import Stream
from npudiff.model.constraints import Axis, check_axes
from npudiff.properties._shared import rows
from npudiff.properties._shared.expert_weights import BITS, FORMS
from npudiff.reference.grouped_matmul import GROUP_LISTS
from npudiff.reference.int4_pack import INTEGERS_OF_A_WORD
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int32": torch.int32}
LOADS = ("even", "last", "first", "scattered", "none")
"""even: rows divided evenly. last, first: one gets all. scattered: each row has a random expert, and of
many experts most have none. none: no expert has any."""
BIASES = ("none", "float", "int32")
RECIPES = ("gaussian", "extreme", "zero rows")
"""gaussian: normal numbers, or all whole numbers alike. extreme: columns of the largest integers of one sign, and rows
of int8 of one sign, or floats of two and more. zero rows: some rows hold nothing but zeros."""
SPLITS = ("rows", "inner")
GROUP_SIZE = 256
"""Rows of an int4 matrix that share a scale, for int8 rows and several scales per column: what the operator has."""

AXES = {
    "rows_of_all": Axis("rows", range(1, 2**16 + 1)),
    "inner": Axis("elements of a row", range(1, 2**16)),
    "columns": Axis("columns of each matrix", range(1, 2**16)),
    "experts": Axis("matrices", range(1, 1025)),
    "form": Axis("what weights and rows are", FORMS),
    "dtype": Axis("dtype of the result; int32 for sums without scales", tuple(DTYPES)),
    "groups": Axis("scales of each column", range(1, 257)),
    "offset": Axis("whether an offset is added to whole numbers first", (False, True)),
    "token_scale": Axis("whether rows of whole numbers have scales", (False, True)),
    "bias": Axis("a bias, and its dtype", BIASES),
    "group_list": Axis("how groups are given", GROUP_LISTS),
    "load": Axis("how rows are divided", LOADS),
    "beyond": Axis("rows behind the last group", range(2**16)),
    "split": Axis("what groups divide", SPLITS),
    "transposed": Axis("whether matrices are transposed views", (False, True)),
    "recipe": Axis("how the numbers are made", RECIPES),
    "rows": rows.AXIS,
}

_MAX_ELEMENTS = 2**28


@dataclass(frozen=True)
class GroupedMatmulCase:
    """One call, as sizes and recipes; see the axes for their meaning."""

    rows_of_all: int
    inner: int = 32
    columns: int = 32
    experts: int = 1
    form: str = "float"
    dtype: str = "bfloat16"
    groups: int = 1
    offset: bool = False
    token_scale: bool = True
    bias: str = "none"
    group_list: str = "counts"
    load: str = "even"
    beyond: int = 0
    split: str = "rows"
    transposed: bool = False
    recipe: str = "gaussian"
    rows: str = "contiguous"
    seed: int = 0


def dtypes(form: str) -> tuple[str, ...]:
    """Return the dtypes that results of a form may have."""
    return ("bfloat16", "float16", *{"float": ("float32",), "w8a8": ("int32",)}.get(form, ()))


def biases(form: str, dtype: str) -> tuple[str, ...]:
    """Return the biases that a form may have, with results of a dtype."""
    if form == "w4a8" or dtype == "int32":
        return ("none",)
    if form == "w8a8":
        return BIASES if dtype == "bfloat16" else ("none", "int32")
    return ("none", "float")


def contradiction(case: GroupedMatmulCase) -> str:
    """What a case has that does not go with the rest of it, or nothing."""
    whole, sums = case.form.endswith("a8"), case.dtype == "int32"
    checks = {
        "dtype": case.dtype not in dtypes(case.form),
        "bias": case.bias not in biases(case.form, case.dtype),
        "offset": case.offset and not case.form.endswith("a16"),
        "token_scale": case.token_scale == (sums and case.form == "w8a8") or (not case.token_scale and not whole),
        "groups": case.inner % case.groups != 0 or (case.groups > 1 and case.form in ("float", "w8a8")),
        "columns": BITS[case.form] == 4 and case.columns % INTEGERS_OF_A_WORD != 0,
        "transposed": case.transposed and BITS[case.form] == 4,
        "inner": case.form == "w4a8" and case.groups > 1 and case.inner != GROUP_SIZE * case.groups,
        "split": case.split == "inner" and (case.form != "float" or case.bias != "none"),
        "group_list": case.group_list == "pairs" and case.form != "w8a8",
        "beyond": case.beyond > 0 and case.split == "inner",
        "load": case.load == "none" and case.split == "inner",
    }
    return next((name for name, holds in checks.items() if holds), "")


def group_sizes(case: GroupedMatmulCase) -> torch.Tensor:
    """Rows of each group; of columns of the states where these are divided."""
    total = case.inner if case.split == "inner" else case.rows_of_all
    counts = torch.zeros(case.experts, dtype=torch.int64)
    if case.load == "even":
        counts += total // case.experts
        counts[: total % case.experts] += 1
    elif case.load == "scattered":
        owners = torch.tensor(Stream(case.seed, "owners").integers(0, case.experts, total))
        counts = torch.bincount(owners, minlength=case.experts)
    elif case.load != "none":
        counts[0 if case.load == "first" else -1] = total
    return counts


def values(case: GroupedMatmulCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    used: dict[str, Collection[object]] = {name: (getattr(case, name),) for name in AXES}
    return used if case.form == "w8a8" else used | {"token_scale": ()}


def features(case: GroupedMatmulCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    counts = group_sizes(case)
    checks = {
        case.form: True,
        "empty groups": bool((counts == 0).any()),
        "rows beyond": case.beyond > 0 or case.load == "none",
        case.group_list: case.group_list != "counts",
        "several scales": case.groups > 1,
        "offset": case.offset,
        "bias": case.bias != "none",
        "inner split": case.split == "inner",
        "transposed": case.transposed,
        "sliced rows": case.rows == "sliced" and case.rows_of_all > 1,
        case.recipe: case.recipe != "gaussian",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: GroupedMatmulCase) -> str:
    """Return the case as one short line."""
    parts = [
        f"{counted(case.rows_of_all, 'row')} x {case.inner} x {case.columns}",
        counted(case.experts, "expert"),
        case.form if case.form != "float" else "",
        case.dtype,
        f"{case.groups} scales a column" if case.groups > 1 else "",
        "offset" if case.offset else "",
        "no token scale" if case.form == "w8a8" and not case.token_scale else "",
        f"{case.bias} bias" if case.bias != "none" else "",
        case.group_list if case.group_list != "counts" else "",
        f"load {case.load}" if case.load != "even" and case.experts > 1 else "",
        f"{counted(case.beyond, 'row')} beyond" if case.beyond else "",
        "inner split" if case.split == "inner" else "",
        "transposed weights" if case.transposed else "",
        case.recipe if case.recipe != "gaussian" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: GroupedMatmulCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    check_axes(case, AXES)
    wrong = contradiction(case)
    if wrong:
        raise ValueError(f"{wrong} {getattr(case, wrong)} does not go with {describe(case)}")
    if max(case.experts * case.columns, case.rows_of_all + case.beyond) * case.inner > _MAX_ELEMENTS:
        raise ValueError(f"weights or states would have more than {_MAX_ELEMENTS} elements")
