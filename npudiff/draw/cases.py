"""Drawing cases that are declared: every quantity in its order, within what constraints allow.

``Case`` is what a component's cases derive from; ``axis``, ``part``, ``derived``, ``choice`` and ``seed`` make its
fields, and stand here as well so that a component has one place to import them from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser
from npudiff.model.case import DeclaredCase, Quantity, axis, choice, declaration, derived, part, seed
from npudiff.model.constraints import Box, Constraints

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Case", "axis", "choice", "derived", "part", "seed"]


class Case(DeclaredCase):
    """A declared case that is drawn as it is declared."""

    @classmethod
    def strategy(cls, constraints: Constraints) -> st.SearchStrategy[Self]:
        """Return a strategy of cases that lie within the constraints."""
        within = constraints if cls.rules is None else constraints.within(cls.rules)
        return _draw_case(cls, within.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, kind: type[Case], boxes: Sequence[Box]) -> Any:  # noqa: ANN401 - of that class
    assume(boxes)
    said = declaration(kind)
    choose = Chooser(draw)
    box = choose.pick(boxes)
    draft = object.__new__(kind)  # what is not drawn yet has its default
    known = vars(draft)
    if kind.outliers:
        choose.draw_outlier_axis(kind.axes(), *kind.outliers)
    known.update(far=choose.far, box=box)
    for name, quantity in said.drawn:
        value = _drawn(choose, box, draft, name, quantity)
        assume(quantity.assumes is None or quantity.assumes(draft, value))
        known[name] = value
        if quantity.into is not None:
            known.update(quantity.into(value))
    unused = {name: said.defaults[name] for name, quantity in said.optional if not quantity(draft)}
    case = kind(**{name: unused.get(name, known[name]) for name in said.fields})
    assume(case.is_cheap() and not any(True for _ in case.problems()))
    return choose.tie_sizes(case, kind.tied, kind.values, kind.check, box) if kind.tied else case


def _drawn(choose: Chooser, box: Box, draft: Case, name: str, quantity: Quantity) -> Any:  # noqa: ANN401 - of any type
    """Draw one quantity of a draft."""
    if quantity.draw is not None:
        return quantity.draw(choose, box, draft)
    options = quantity.drawn(draft) if callable(quantity.drawn) else quantity.drawn
    assert options is not None  # noqa: S101 - what has no draw function has options
    if quantity.fits is None and quantity.affordable is None:
        return choose.value(box, name, options)
    allowed = choose.options(box, name, options)
    if quantity.fits is not None:
        allowed = [value for value in allowed if quantity.fits(draft, value)]
        assume(allowed)
    if quantity.affordable is not None:
        allowed = [value for value in allowed if quantity.affordable(draft, value)] or [min(allowed)]
    return choose.pick(allowed)
