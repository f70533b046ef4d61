"""Drawing cases that are declared: every quantity in its order, within what constraints allow.

``Case`` is what a component's cases derive from; ``axis``, ``part``, ``derived``, ``choice`` and ``seed`` make its
fields, and stand here as well so that a component has one place to import them from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    if kind.outliers or kind.huge_axes:
        choose.draw_outlier_axis(kind.axes(), *kind.outliers, huge=kind.huge_axes)
    known.update(far=choose.far, huge=choose.huge, box=box)
    value = choose.value
    for name, quantity, is_plain in said.drawn:
        if is_plain:
            known[name] = value(box, name, quantity.drawn(draft) if callable(quantity.drawn) else quantity.drawn or ())
        else:
            known.update(_drawn(choose, box, draft, name, quantity))
    unused = {name: said.defaults[name] for name, quantity in said.optional if not quantity(draft)}
    case = kind(**{name: unused.get(name, known[name]) for name in said.fields})
    assume(case.is_cheap() and next(iter(case.problems()), None) is None)
    return choose.tie_sizes(case, kind.tied, kind.values, kind.check, box) if kind.tied else case


def _drawn(choose: Chooser, box: Box, draft: Case, name: str, quantity: Quantity) -> Mapping[str, Any]:
    """Draw one quantity of a draft, and return it with the fields that it is kept in."""
    if quantity.draw is not None:
        value = quantity.draw(choose, box, draft)
    else:
        options = quantity.drawn(draft) if callable(quantity.drawn) else quantity.drawn
        assert options is not None  # noqa: S101 - what has no draw function has options
        value = choose.pick(_fitting(choose.options(box, name, options), draft, quantity))
    assume(quantity.assumes is None or quantity.assumes(draft, value))
    return {name: value} if quantity.into is None else {name: value, **quantity.into(value)}


def _smallest(options: Sequence[Any]) -> Any:  # noqa: ANN401 - the element type of the options
    """Return the smallest of numbers, and of texts the first: the simplest."""
    return options[0] if isinstance(options[0], str) else min(options)


def _fitting(options: Sequence[Any], draft: Case, quantity: Quantity) -> Sequence[Any]:
    """Leave out what does not go with the draft, and what a case may not cost; the smallest stays."""
    if quantity.fits is not None:
        options = [value for value in options if quantity.fits(draft, value)]
        assume(options)
    if quantity.affordable is not None:
        options = [value for value in options if quantity.affordable(draft, value)] or [_smallest(options)]
    return options
