"""Drawing cases of rotary embedding."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.model.constraints import Box, Constraints, allows
from npudiff.properties._shared.rows import ROWS
from npudiff.properties.rotary.case import AXES, DIMS, DTYPES, MAGNITUDES, POSITIONS, SECTIONS, RotaryCase
from npudiff.reference.rotary import STYLES

TABLES = (*(1, 5, 64, 1025, 4097) * 9, 70_001, 2**20)
MOST_COSINES = 100_000

MOST_ROWS = 2**13
"""Rows of all heads up to which a case may have more heads than it must."""

MANY_SHARE = 8
"""One of so many cases has more rows than a kernel turns in one go."""

LEAST_OF_MANY, MOST_OF_MANY = 12_000, 2**15
"""Rows of all heads of such a case."""

MANY_TOKENS, MANY_HEADS = (257, 513, 1025), (64, 33, 12)
"""With the most heads the fewest tokens are enough, so that a case with too many rows has one smallest form."""


def cases(constraints: Constraints) -> st.SearchStrategy[RotaryCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> RotaryCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "heads", "kv_heads", "tokens")
    many = choose.pick(range(MANY_SHARE)) == MANY_SHARE - 1
    rotary_dim, _, head_dim = str(choose.value(box, "dims", ("64", "32/64") if many else DIMS)).partition("/")
    tokens = choose.value(box, "tokens", MANY_TOKENS if many else (1, 1, 2, 3, 7, 16, 17, 65, 257, 513))
    heads, most = (_many_heads(tokens), MOST_OF_MANY) if many else ((1, 2, 3, 8, 33), MOST_ROWS)
    table = choose.value(box, "table", TABLES)
    data = choose.pick(within(("numbers", "numbers", "cosines"), box.get("data")))
    assume(data == "numbers" or table <= MOST_COSINES)
    return RotaryCase(
        tokens=tokens,
        heads=choose.pick(_cheap(choose.options(box, "heads", heads), tokens, most)),
        kv_heads=choose.pick(_cheap(choose.options(box, "kv_heads", (1, 2, 3)), tokens, MOST_ROWS)),
        rotary_dim=int(rotary_dim),
        head_dim=int(head_dim or rotary_dim),
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        style=choose.value(box, "style", STYLES),
        positions=choose.value(box, "positions", POSITIONS),
        table=table,
        data=data,
        sections=_sections(choose, box, int(rotary_dim), tokens),
        magnitude=choose.value(box, "magnitude", MAGNITUDES),
        rows=choose.value(box, "rows", ROWS),
        seed=choose.pick(range(1024)),
    )


def _cheap(allowed: Sequence[int], tokens: int, most: int) -> Sequence[int]:
    """Numbers of heads; where the constraints leave none that is cheap, the smallest that they allow."""
    return [count for count in allowed if count * tokens <= most] or [min(allowed)]


def _many_heads(tokens: int) -> Sequence[int]:
    """Numbers of heads that give more rows than a kernel turns in one go."""
    return [count for count in MANY_HEADS if LEAST_OF_MANY <= count * tokens <= MOST_OF_MANY] or [min(MANY_HEADS)]


def _sections(choose: Chooser, box: Box, rotary_dim: int, tokens: int) -> str:
    """None, or sections that add up to half of the rotary dim; more often for a single token, which few cases have."""
    fitting = [text for text in SECTIONS[1:] if 2 * sum(map(int, text.split("/"))) == rotary_dim]
    others = fitting if tokens == 1 else ["none"]
    options = [text for text in ("none", *fitting, *others) if allows(box.get("sections", (text,)), text)]
    assume(options)
    return str(choose.pick(options))
