"""Strategy of experts."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared import rows
from npudiff.properties.moe_experts.case import (
    ACTIVATIONS,
    AXES,
    DTYPES,
    FORMS,
    GROUP_SIZE,
    HERE,
    LIMITS,
    LOADS,
    RECIPES,
    MoeExpertsCase,
    contradiction,
)

EXPERTS = (2, 1, 3, 4, 8, 16, 288)
TOKENS = (1, 2, 3, 7, 17, 33, 70, 130)

MANY = 64
"""Experts whose matrices are not made for nothing."""

MOST_PRODUCTS = 2**22
"""Products with one matrix up to which a case may be larger than it must."""


def cases(constraints: Constraints) -> st.SearchStrategy[MoeExpertsCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> MoeExpertsCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "experts", "top_k", "tokens", "width")
    form = choose.value(box, "form", FORMS)
    activation = choose.value(box, "activation", ACTIVATIONS)
    groups = choose.value(box, "groups", (1, 1, 2, 3) if form == "w4a8" else (1,))
    hidden = choose.value(box, "hidden", (GROUP_SIZE * groups,) if groups > 1 else (32, 16, 64, 96, 48))
    width = choose.value(box, "width", (32, 16, 64, 40, 96, 264))
    top_k = choose.value(box, "top_k", (1, 2, 3, 4, 8))
    enough = [n for n in choose.options(box, "experts", EXPERTS) if n >= top_k]
    assume(enough)
    experts = choose.pick(enough)
    shared_width = choose.value(box, "shared_width", (0, 0, width, 2 * width))
    case = MoeExpertsCase(
        tokens=choose.pick(_tokens(choose.options(box, "tokens", TOKENS), hidden * width * top_k)),
        hidden=hidden,
        width=width,
        experts=experts,
        top_k=top_k,
        form=form,
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        groups=groups,
        activation=activation,
        limit=choose.value(box, "limit", (None, *LIMITS)),
        layout=choose.value(box, "layout", ("halves", "interleaved") if activation == "swiglu_oai" else ("halves",)),
        biased=choose.value(box, "biased", (False, True) if form == "float" else (False,)),
        shared_width=shared_width,
        shared_limit=choose.value(box, "shared_limit", (None, *LIMITS) if shared_width else (None,)),
        load=choose.value(box, "load", LOADS),
        here=choose.value(box, "here", _here(experts)),
        recipe=choose.value(box, "recipe", RECIPES),
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )
    assume(not contradiction(case))
    return case


def _tokens(allowed: Sequence[int], products: int) -> Sequence[int]:
    return [count for count in allowed if count * products <= MOST_PRODUCTS] or [min(allowed)]


def _here(experts: int) -> tuple[str, ...]:
    """Of many experts, only the matrices of those that are chosen are made; one expert has no halves."""
    if experts >= MANY:
        return ("chosen",)
    return HERE if experts > 1 else HERE[:2]
