"""Drawing cases of rotary embedding."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.constraints import Box, Constraints, allows
from npudiff.draw import Chooser, within
from properties.rotary.case import DIMS, DTYPES, POSITIONS, ROWS, SECTIONS, RotaryCase
from reference.rotary import STYLES

TABLES = (*(64, 1, 5, 1025, 4097) * 3, 70_001, 2**20)
MOST_COSINES = 100_000


def cases(constraints: Constraints) -> st.SearchStrategy[RotaryCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> RotaryCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    rotary_dim, _, head_dim = str(choose.value(box, "dims", DIMS)).partition("/")
    tokens = choose.value(box, "tokens", (1, 2, 3, 7, 16, 17, 65, 257))
    table = choose.value(box, "table", TABLES)
    data = choose.pick(within(("numbers", "numbers", "cosines"), box.get("data")))
    assume(data == "numbers" or table <= MOST_COSINES)
    return RotaryCase(
        tokens=tokens,
        heads=choose.value(box, "heads", (1, 2, 3, 8)),
        kv_heads=choose.value(box, "kv_heads", (1, 2, 3)),
        rotary_dim=int(rotary_dim),
        head_dim=int(head_dim or rotary_dim),
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        style=choose.value(box, "style", STYLES),
        positions=choose.value(box, "positions", POSITIONS),
        table=table,
        data=data,
        sections=_sections(choose, box, int(rotary_dim)),
        rows=choose.value(box, "rows", ROWS),
        seed=choose.pick(range(1024)),
    )


def _sections(choose: Chooser, box: Box, rotary_dim: int) -> str:
    """None, or sections that add up to half of the rotary dim."""
    fitting = [text for text in SECTIONS[1:] if 2 * sum(map(int, text.split("/"))) == rotary_dim]
    options = [text for text in ("none", "none", *fitting) if allows(box.get("sections", (text,)), text)]
    assume(options)
    return str(choose.pick(options))
