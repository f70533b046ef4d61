"""Drawing tensors to cast, within what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared.moved_data import DTYPES
from npudiff.properties.format_cast.case import FormatCastCase, tiles_elements
from npudiff.reference.format_cast import VIEWS

SIZES = (1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100)
"""Rows and columns: one away from the border of a tile of 16 or 32, and what fits neither."""

LONG_SIZES = (129, 257, 1025, 4097)
"""Rows or columns of many tiles; one of both is small then."""

MOST_ELEMENTS = 2**24
"""Elements of the storage, above which a case is not drawn; it is reached only by sizes that a user asks for."""


def cases(constraints: Constraints) -> st.SearchStrategy[FormatCastCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> FormatCastCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    long = choose.pick(("neither", "neither", "neither", "neither", "neither", "neither", "rows", "columns"))
    case = FormatCastCase(
        rows=choose.value(box, "rows", LONG_SIZES if long == "rows" else SIZES),
        columns=choose.value(box, "columns", LONG_SIZES if long == "columns" else SIZES),
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        view=choose.value(box, "view", VIEWS),
        seed=choose.pick(range(1024)),
        leading=tuple(choose.value(box, "leading", (1, 2, 3)) for _ in range(choose.value(box, "rank", (2, 3, 4)) - 2)),
    )
    assume(math.prod(case.leading) * tiles_elements(case) <= MOST_ELEMENTS)
    return case
