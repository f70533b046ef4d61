"""How cases are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared import rows
from npudiff.properties.swiglu_quant.case import (
    ACTIVATIONS,
    ALPHAS,
    AXES,
    BIASES,
    DTYPES,
    LIMITS,
    LOADS,
    RECIPES,
    SUMS,
    SwigluQuantCase,
)
from npudiff.reference.swiglu_quant import GATES

Option = TypeVar("Option")

MOST_ELEMENTS = 2**17
"""Elements of the states up to which a case may have more rows than it must."""


def cases(constraints: Constraints) -> st.SearchStrategy[SwigluQuantCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> SwigluQuantCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "groups", "tokens", "width")
    width = choose.value(box, "width", (64, 128, 1, 2, 16, 17, 33, 200, 320, 1280, 2112))
    allowed = choose.options(box, "tokens", (1, 2, 3, 7, 17, 65, 130, 300))
    bias = choose.value(box, "bias", (False, False, False, True))
    groups = _fitting(
        choose, choose.options(box, "groups", (None, 1, 2, 3, 9, 40, 130)), lambda groups: groups is None or not bias
    )
    return SwigluQuantCase(
        tokens=choose.pick([count for count in allowed if 2 * count * width <= MOST_ELEMENTS] or [min(allowed)]),
        width=width,
        sums=_fitting(choose, within(SUMS, box.get("sums")), lambda sums: not bias or sums != "none"),
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        bias=bias,
        smooth=choose.value(box, "smooth", (False, True)),
        groups=groups,
        load=choose.value(box, "load", LOADS),
        spare_rows=choose.pick(_spare_rows(box, groups)),
        activation=choose.value(box, "activation", ACTIVATIONS),
        limit=choose.value(box, "limit", LIMITS),
        alpha=choose.value(box, "alpha", ALPHAS),
        glu_bias=choose.value(box, "glu_bias", BIASES),
        gates=choose.value(box, "gates", GATES),
        recipe=choose.value(box, "recipe", RECIPES),
        rounding=choose.value(box, "rounding", ("stages",)),  # the stricter bound is for those who ask for it
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )


def _spare_rows(box: Box, groups: int | None) -> Sequence[int]:
    """Rows to spare: only behind groups."""
    return (0,) if groups is None else within((0, 0, 1, 5), box.get("spare_rows"))[:4096]


def _fitting(choose: Chooser, options: Sequence[Option], fits: Callable[[Option], bool]) -> Option:
    fitting = [option for option in options if fits(option)]
    assume(fitting)
    chosen: Option = choose.pick(fitting)
    return chosen
