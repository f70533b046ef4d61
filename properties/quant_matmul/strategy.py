"""Drawing cases of products of integers, within what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared.rows import ROWS
from npudiff.properties._shared.weight_matrix import narrow
from npudiff.properties.quant_matmul.case import (
    AXES,
    BIASES,
    LAYOUTS,
    OFFSETS,
    OUTPUTS,
    PER,
    RECIPES,
    RULES,
    QuantMatmulCase,
    check_case,
    values,
)

MOST_PRODUCTS = 2**20
"""Products up to which a case may have more tokens than it must."""


def cases(constraints: Constraints) -> st.SearchStrategy[QuantMatmulCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.within(Constraints(RULES)).boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> QuantMatmulCase:
    choose = Chooser(draw)
    assume(boxes)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "columns", "inner", "tokens")
    inner = choose.value(box, "inner", (1, 8, 16, 17, 64, 100, 1000, 1536, 2048, 4096, 8200))
    columns = choose.pick(narrow(choose.options(box, "columns", (1, 2, 7, 8, 16, 24, 33, 64, 136, 264, 1032)), inner))
    allowed = choose.options(box, "tokens", (1, 2, 3, 7, 17, 65, 130, 300))
    fitting = [count for count in allowed if count * inner * columns <= MOST_PRODUCTS]
    case = QuantMatmulCase(
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
        rows=choose.value(box, "rows", ROWS),
        seed=choose.pick(range(1024)),
    )
    return choose.tie_sizes(case, ("inner", "columns", "tokens"), values, check_case, box)
