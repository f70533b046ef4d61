"""How cases are drawn."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared import rows
from npudiff.properties.padded_tokens.case import AXES, DTYPES, EARLIER, POISONS, Batch, PaddedTokensCase

MOST_ELEMENTS = 2**16
"""Elements of all copies up to which a chunk may have more rows than it must."""


def cases(constraints: Constraints) -> st.SearchStrategy[PaddedTokensCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> PaddedTokensCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "chosen", "ranks", "experts", "chunk")
    experts = choose.value(box, "experts", (64, 257, 288) if choose.far == "chosen" else (4, 8, 16, 64, 257, 288))
    counts = [count for count in choose.options(box, "chosen", (1, 2, 3, 4, 8)) if count <= experts]
    assume(counts)
    chosen = choose.pick(counts)
    width = choose.value(box, "width", (64, 16, 32, 80))
    chunks = (2, 1, 3, 4) if choose.far == "ranks" else (2, 1, 3, 4, 8, 16, 33, 65, 130, 300)
    allowed = choose.options(box, "chunk", chunks)
    chunk = choose.pick([rows for rows in allowed if rows * chosen * width <= MOST_ELEMENTS] or [min(allowed)])
    return PaddedTokensCase(
        batches=choose.draw_list(box, "ranks", (1, 1, 2, 3, 4, 9), lambda: _batch(choose, box, chunk)),
        chunk=chunk,
        experts=experts,
        chosen=chosen,
        width=width,
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        poison=choose.value(box, "poison", POISONS),
        earlier=choose.value(box, "earlier", EARLIER),
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )


def _batch(choose: Chooser, box: Box, chunk: int) -> Batch:
    """Where a chunk comes from: from one real row on, to borders of the chunk and beyond, where it is a part."""
    real = (1, 0, chunk // 2, chunk - 1, chunk)
    if not choose.value(box, "split", (False, False, True)):
        return Batch(choose.pick(real))
    offset = choose.pick((1, 2, 3, 300, 40000)) * chunk
    return Batch(choose.pick((*(offset + count for count in real), offset - 1, 0, offset + chunk + 1)), offset)
