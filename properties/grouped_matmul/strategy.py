"""Strategy of grouped matrix products."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared import rows
from npudiff.properties._shared.expert_weights import BITS, FORMS
from npudiff.properties.grouped_matmul.case import (
    AXES,
    GROUP_SIZE,
    LOADS,
    RECIPES,
    GroupedMatmulCase,
    biases,
    check_case,
    contradiction,
    dtypes,
    values,
)
from npudiff.reference.grouped_matmul import GROUP_LISTS

INNERS = (32, 16, 64, 48, 40, 100, 128, 1280, 2064)

MOST_WEIGHTS = 2**20
"""Elements of all matrices up to which there may be more experts than there must."""

MOST_PRODUCTS = 2**22
"""Products of one case up to which it may be larger than it must."""


def cases(constraints: Constraints) -> st.SearchStrategy[GroupedMatmulCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> GroupedMatmulCase:
    choose = Chooser(draw)
    choose.draw_outlier_axis(AXES, "columns", "experts", "rows_of_all", "inner")
    box = choose.pick(boxes)
    split = choose.value(box, "split", (*("rows",) * 7, "inner"))
    form = choose.value(box, "form", ("float",) if split == "inner" else FORMS)
    whole, of_inner = form.endswith("a8"), split == "inner"
    dtype = choose.value(box, "dtype", dtypes(form))
    groups = choose.value(box, "groups", (1,) if form in ("float", "w8a8") else (1, 1, 2, 5))
    inner = choose.value(box, "inner", (GROUP_SIZE * groups,) if form == "w4a8" and groups > 1 else INNERS)
    columns = choose.value(box, "columns", _columns(form, inner))
    experts = choose.options(box, "experts", (1, 2, 3, 8, 17, 40, 130))
    allowed = choose.options(box, "rows_of_all", (1, 2, 3, 7, 17, 65, 130, 300))
    case = GroupedMatmulCase(
        rows_of_all=choose.pick([n for n in allowed if n * inner * columns <= MOST_PRODUCTS] or [min(allowed)]),
        inner=inner,
        columns=columns,
        experts=choose.pick([n for n in experts if n * inner * columns <= MOST_WEIGHTS] or [min(experts)]),
        form=form,
        dtype=dtype,
        groups=groups,
        offset=choose.value(box, "offset", (False,) if form == "float" or whole else (False, True)),
        token_scale=choose.value(box, "token_scale", (dtype != "int32",) if form != "w8a8" else _scaled(dtype)),
        bias=choose.value(box, "bias", ("none",) if of_inner else biases(form, dtype)),
        group_list=choose.value(box, "group_list", GROUP_LISTS if form == "w8a8" else GROUP_LISTS[:2]),
        load=choose.value(box, "load", LOADS[:-1] if of_inner else LOADS),
        beyond=choose.value(box, "beyond", (0,) if of_inner else (0, 0, 1, 5)),
        split=split,
        transposed=choose.value(box, "transposed", (False,) if BITS[form] == 4 else (False, True)),
        recipe=choose.value(box, "recipe", RECIPES),
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )
    assume(not contradiction(case))
    return choose.tie_sizes(case, ("inner", "columns", "experts"), values, check_case, box)


def _columns(form: str, inner: int) -> tuple[int, ...]:
    """Columns of a matrix: now and then as many as rows; int4 comes in eights."""
    if BITS[form] == 4:
        return (32, 16, 48, 64, 8, 24, 256, 264)
    return (32, 16, 48, 64, 8, 24, 33, 264, *((inner, inner) if inner < 512 else ()))


def _scaled(dtype: str) -> tuple[bool, ...]:
    """Whether rows of int8 may have scales, by int8; sums alone have none."""
    return (False,) if dtype == "int32" else (True, False)
