"""Grouped matrix products: their cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation, rows_taken
from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared import expert_weights, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.expert_weights import BITS, FORMS, Shape, whole_numbers
from npudiff.properties._shared.loads import equal_groups
from npudiff.properties._shared.models import FEW, Model, of_experts
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.grouped_matmul import GROUP_LISTS, GroupedMatmulInputs, counts_of, grouped_matmul
from npudiff.reference.int4_pack import INTEGERS_OF_A_WORD
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int32": torch.int32}
LOADS = ("even", "last", "first", "scattered", "equal", "equal but two", "none")
"""even: rows divided evenly. last, first: one gets all. scattered: each row has a random expert, and of
many experts most have none. equal: all get as many, and the rest lies behind the last group. equal but two: the third
has one row of the second. none: no expert has any."""
NEEDS_ROWS_BEYOND = LOADS[4:]
BIASES = ("none", "float", "int32")
RECIPES = ("gaussian", "extreme", "zero rows")
"""gaussian: normal numbers, or all whole numbers alike. extreme: columns of the largest integers of one sign, and rows
of int8 of one sign, or floats of two and more. zero rows: some rows hold nothing but zeros."""
SPLITS = ("rows", "inner")
GROUP_SIZE = 256
"""Rows of an int4 matrix that share a scale, for int8 rows and several scales per column: what the operator has."""

MOST_WEIGHTS = 2**20
"""Elements of all matrices up to which there may be more experts than there must."""

MOST_PRODUCTS = 2**22
"""Products of one case up to which it may be larger than it must."""


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


def _forms(case: GroupedMatmulCase) -> Sequence[str]:
    """Forms; what most production models have is drawn twice as often."""
    return ("float",) if case.split == "inner" else (*FORMS, "w8a8")


def _inners(case: GroupedMatmulCase) -> Sequence[int]:
    if case.form == "w4a8" and case.groups > 1:
        return (GROUP_SIZE * case.groups,)
    return (16, 8) if case.huge else (32, 16, 64, 48, 40, 100, 128, 1280, 2064)


def _affords_rows(case: GroupedMatmulCase, count: int) -> bool:
    if case.huge:
        return case.affords(count * max(case.inner, case.columns), 0)
    return count * case.inner * case.columns <= MOST_PRODUCTS


def _columns(case: GroupedMatmulCase) -> Sequence[int]:
    """Columns of a matrix: now and then as many as rows; int4 comes in eights."""
    if BITS[case.form] == 4:
        return (32, 16, 48, 64, 8, 24, 256, 264)
    return (32, 16, 48, 64, 8, 24, 33, 264, *((case.inner, case.inner) if case.inner < 512 else ()))


def _token_scales(case: GroupedMatmulCase) -> Sequence[bool]:
    """Whether rows of int8 may have scales, by int8; sums alone have none."""
    if case.form != "w8a8":
        return (case.dtype != "int32",)
    return (False,) if case.dtype == "int32" else (True, True, False)


@dataclass(frozen=True)
class GroupedMatmulCase(Case):
    """One call, as sizes and recipes."""

    rows_of_all: int = axis(
        "rows", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 65, 130, 300),
        affordable=_affords_rows,
        shown=lambda case: f"{counted(case.rows_of_all, 'row')} x {case.inner} x {case.columns}",
    )  # fmt: skip
    inner: int = axis("elements of a row", range(1, 2**16), 32, drawn=_inners, shown="")
    columns: int = axis("columns of each matrix", range(1, 2**16), 32, drawn=_columns, shown="")
    experts: int = axis(
        "matrices", range(1, 1025), 1, drawn=(1, 2, 3, 8, 17, 40, 130),
        affordable=lambda case, count: count * case.inner * case.columns <= MOST_WEIGHTS,
        shown="{} expert(s)", always=True,
    )  # fmt: skip
    form: str = axis(
        "what weights and rows are", FORMS, "float", drawn=_forms,
        region=lambda case: case.form,
    )  # fmt: skip
    dtype: str = axis(
        "dtype of the result; int32 for sums without scales", tuple(DTYPES), "bfloat16",
        drawn=lambda case: (*dtypes(case.form), "bfloat16"), always=True,
    )  # fmt: skip
    groups: int = axis(
        "scales of each column", range(1, 257), 1,
        drawn=lambda case: (1,) if case.form in ("float", "w8a8") else (1, 1, 2, 5),
        shown="{} scales a column", region="several scales",
    )  # fmt: skip
    offset: bool = axis(
        "whether an offset is added to whole numbers first", (False, True), False,
        drawn=lambda case: (False, True) if case.form.endswith("a16") else (False,), region="offset",
    )  # fmt: skip
    token_scale: bool = axis(
        "whether rows of whole numbers have scales", (False, True), True, drawn=_token_scales,
        assumes=lambda case, scaled: scaled or case.form == "w8a8", applies=lambda case: case.form == "w8a8",
        shown="no token scale",
    )  # fmt: skip
    bias: str = axis(
        "a bias, and its dtype", BIASES, "none",
        drawn=lambda case: ("none",) if case.split == "inner" else biases(case.form, case.dtype),
        shown="{} bias", region="bias",
    )  # fmt: skip
    group_list: str = axis(
        "how groups are given", GROUP_LISTS, "counts",
        drawn=lambda case: GROUP_LISTS if case.form == "w8a8" else GROUP_LISTS[:2], region="{}",
    )  # fmt: skip
    load: str = axis(
        "how rows are divided", LOADS, "even", drawn=lambda case: LOADS[:4] if case.split == "inner" else LOADS,
        shown=lambda case: f"load {case.load}" * (case.load != "even" and case.experts > 1),
    )  # fmt: skip
    beyond: int = axis(
        "rows behind the last group", range(2**16), 0,
        drawn=lambda case: (0,) if case.split == "inner" else (0, 0, 1, 5), shown="{} row(s) beyond",
    )  # fmt: skip
    split: str = axis(
        "what groups divide", SPLITS, "rows", drawn=(*("rows",) * 7, "inner"), shown="inner split", region="inner split"
    )
    transposed: bool = axis(
        "whether matrices are transposed views", (False, True), False,
        drawn=lambda case: (False,) if BITS[case.form] == 4 else (False, True),
        shown="transposed weights", region="transposed",
    )  # fmt: skip
    recipe: str = axis("how the numbers are made", RECIPES, "gaussian", region="{}")
    rows: str = rows.axis(several="rows_of_all")
    seed: int = seed()

    drawn_first = ("split", "form", "dtype", "groups", "inner", "columns", "rows_of_all")
    outliers = ("columns", "experts", "rows_of_all", "inner")
    huge_axes = ("rows_of_all",)
    tied = ("inner", "columns", "experts")

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if max(self.experts * self.columns, self.rows_of_all + self.beyond) * self.inner > 2**28:
            yield f"weights or states would have more than {2**28} elements"
        for name in _contradictions(self):
            yield f"{name} {getattr(self, name)} does not go with {self.describe()}"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "empty groups": bool((group_sizes(self) == 0).any()),
            "rows beyond": self.beyond > 0 or int(group_sizes(self).sum()) < self.rows_of_all,
        }


def _contradictions(case: GroupedMatmulCase) -> Iterator[str]:
    """What a case has that does not go with the rest of it."""
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
        "load": case.load in NEEDS_ROWS_BEYOND and case.split == "inner",
    }
    yield from (name for name, holds in checks.items() if holds)


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
    elif case.load.startswith("equal"):
        counts = equal_groups(total, case.experts, but_two=case.load == "equal but two")
    elif case.load != "none":
        counts[0 if case.load == "first" else -1] = total
    return counts


def build_inputs(case: GroupedMatmulCase) -> GroupedMatmulInputs:
    """Build the inputs of a case."""
    inner_is_split = case.split == "inner"
    shape = Shape(
        range(1 if inner_is_split else case.experts), case.inner, case.columns, case.form, case.groups, _float(case)
    )
    weights = expert_weights.build(shape, case.seed, "weights", case.recipe == "extreme")
    weights = expert_weights.lying(_scaled(case, weights), case.transposed)
    token_scale = None
    if case.form.endswith("a8") and case.token_scale:
        spread = Stream(case.seed, "token scale").normal((case.rows_of_all + case.beyond,), torch.float32)
        token_scale = 0.01 * (1 + spread.abs())
    return GroupedMatmulInputs(
        states=rows.with_row_stride(_states(case), case.rows),
        weights=weights,
        group_list=_group_list(case),
        group_list_type=case.group_list,
        token_scale=token_scale,
        output_dtype=DTYPES[case.dtype],
        splits_inner=inner_is_split,
    )


def _float(case: GroupedMatmulCase) -> torch.dtype:
    return torch.bfloat16 if case.dtype == "int32" else DTYPES[case.dtype]


def _scaled(case: GroupedMatmulCase, weights: ExpertWeights) -> ExpertWeights:
    """Add offset and bias, and give scales the dtype that goes with the result; sums have no scales."""
    bias = offset = None
    scale = weights.scale
    numbers = Stream(case.seed, "bias").normal((case.experts, case.columns), torch.float32)
    if case.bias == "int32":
        bias = (numbers * 1000).to(torch.int32)
    if case.bias == "float":
        bias = numbers.to(torch.float16 if case.dtype == "float16" and case.form != "w8a8" else torch.float32)
    if case.offset and scale is not None:
        steps = 4 if case.seed % 2 else 1  # whole numbers, as zero points are, or quarters
        spread = Stream(case.seed, "offset").normal(tuple(scale.shape), torch.float32)
        offset = (4 * steps * spread).round().div(steps).to(scale.dtype)
    if case.form == "w8a8" and scale is not None:
        scale = (
            None if case.dtype == "int32" else scale.to(torch.bfloat16 if case.dtype == "bfloat16" else torch.float32)
        )
    return replace(weights, scale=None if scale is None else scale, offset=offset, bias=bias)


def _states(case: GroupedMatmulCase) -> torch.Tensor:
    size = (case.rows_of_all + case.beyond, case.inner)
    stream = Stream(case.seed, "states")
    if case.form.endswith("a8"):
        numbers = whole_numbers(stream, size).clamp(min=-127)
        if case.recipe == "extreme":
            numbers = torch.where(numbers[:, :1] < 0, -127, 127).to(torch.int8).expand(size).contiguous()
    else:
        numbers = stream.normal(size, torch.float32).to(_float(case))
        if case.recipe == "extreme":
            numbers = (numbers.sign() * numbers.abs().clamp(min=2)).to(_float(case))
    if case.recipe == "zero rows":
        numbers[::2] = 0
    return numbers


def _group_list(case: GroupedMatmulCase) -> torch.Tensor:
    counts = group_sizes(case)
    if case.group_list == "counts":
        return counts
    if case.group_list == "ends":
        return counts.cumsum(0)
    here = counts.nonzero().squeeze(1)
    pairs = torch.zeros(case.experts, 2, dtype=torch.int64)
    pairs[: len(here)] = torch.stack([here, counts[here]], dim=1)
    return pairs


def coordinates(inputs: GroupedMatmulInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: expert, row and column."""
    del output  # there is one
    columns = torch.arange(inputs.weights.values.shape[2])
    row = torch.arange(len(inputs.states))
    if inputs.splits_inner:
        group = torch.arange(len(inputs.group_list))
        return {"group": group.view(-1, 1, 1), "row": row.view(1, -1, 1), "column": columns.view(1, 1, -1)}
    ends = counts_of(inputs.group_list, inputs.group_list_type, inputs.weights.experts).cumsum(0)
    expert = torch.bucketize(row, ends, right=True)
    return {"row": row.unsqueeze(1), "expert": expert.unsqueeze(1), "column": columns.unsqueeze(0)}


def _experts_in_another_order(inputs: GroupedMatmulInputs, case: GroupedMatmulCase) -> Changed[GroupedMatmulInputs]:
    """Groups change places, and their matrices with them."""
    order = Stream(case.seed, "order").permutation(case.experts)
    counts = counts_of(inputs.group_list, inputs.group_list_type, case.experts)
    starts = counts.cumsum(0) - counts
    moved = [row for expert in order for row in range(int(starts[expert]), int(starts[expert] + counts[expert]))]
    weights = inputs.weights
    scale, bias = (None if part is None else part[order] for part in (weights.scale, weights.bias))
    offset = None if weights.offset is None else weights.offset[order]
    other = replace(
        inputs,
        states=inputs.states[moved],
        token_scale=None if inputs.token_scale is None else inputs.token_scale[moved],
        weights=ExpertWeights(weights.values[order], weights.bits, scale, offset, bias),
        group_list=counts[order],
        group_list_type="counts",
    )
    as_counts = replace(case, group_list="counts", beyond=0, rows="contiguous", transposed=False)
    return Changed(other, rows_taken(moved), case=as_counts)


def _rows_beyond(inputs: GroupedMatmulInputs, case: GroupedMatmulCase) -> Changed[GroupedMatmulInputs]:
    """Rows that belong to no group may hold anything."""
    more = replace(case, beyond=case.beyond + 3)
    fuller = build_inputs(more)
    states = fuller.states.clone()
    states[: len(inputs.states)] = inputs.states
    states[case.rows_of_all :] = 127 if states.dtype == torch.int8 else float("nan")
    scale = fuller.token_scale
    if scale is not None and inputs.token_scale is not None:
        scale = torch.cat([inputs.token_scale, scale[len(inputs.token_scale) :]])
    return Changed(
        replace(fuller, states=states, token_scale=scale), part=rows_taken(slice(len(inputs.states))), case=more
    )


def _sizes(model: Model) -> Box:
    return {
        "rows_of_all": FEW,
        "inner": (model.hidden, model.width),
        "columns": (2 * model.width, model.hidden),
        "experts": range(1, 5),
        "groups": (1,),
        "dtype": ("bfloat16",),
        "split": ("rows",),
    }


def _first_count(inputs: GroupedMatmulInputs) -> int:
    """Where the rows of the first group stand: of pairs, behind its number."""
    return inputs.group_list.dim() - 1


def _rows_and_one(inputs: GroupedMatmulInputs) -> int:
    """One row more than there are; of columns, where the inner axis is split."""
    return inputs.states.shape[1 if inputs.splits_inner else 0] + 1


component = Component(
    name="grouped_matmul",
    summary="rows in groups, each times the matrix of its expert: floats, W8A8, W4A8 and weights alone in integers",
    case_type=GroupedMatmulCase,
    outputs=("output",),
    inputs=build_inputs,
    reference=grouped_matmul,
    illegal=(
        wrong_element("a negative number of rows", "group_list", constant(-1), _first_count),
        wrong_element("groups with more rows than there are", "group_list", _rows_and_one, lambda _: -1),
    ),
    coordinates=coordinates,
    highlighted_region="empty groups",
    relations=(
        relation("experts_in_another_order", "experts change places with their rows, and nothing else does",
                 _experts_in_another_order, within={"split": ("rows",), "experts": range(2, 1025)}),
        relation("rows_beyond_change_nothing", "rows of no group may hold anything", _rows_beyond,
                 within={"split": ("rows",), "beyond": (0,)}),
    ),
    example_ratio=0.7,
    profiles=of_experts(_sizes),
    baselines=BASELINES["grouped_matmul"],
)  # fmt: skip
