"""Drawing cases: a declared case draws every quantity in its order.

``Case`` is what a component's cases derive from; ``axis``, ``part``, ``derived``, ``choice`` and ``seed`` make its
fields, and stand here with what draws them so that a component has one place to import them from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from npudiff.draw.chooser import Chooser, assume, usual_sizes, within
from npudiff.draw.chosen import chosen
from npudiff.draw.data import Stream
from npudiff.model.case import DeclaredCase, Quantity, axis, choice, declaration, derived, part, seed
from npudiff.model.constraints import Box, Constraints, allows, least

if TYPE_CHECKING:
    from hypothesis import strategies as st
    from typing_extensions import Self

__all__ = [
    "Case", "Chooser", "assume", "axis", "choice", "chosen", "derived", "part", "seed", "usual_sizes", "within",
]  # fmt: skip


class Case(DeclaredCase):
    """A declared case that is drawn as it is declared."""

    @classmethod
    def strategy(cls, constraints: Constraints) -> st.SearchStrategy[Self]:
        """Return a strategy of cases that lie within the constraints."""
        within = constraints if cls.rules is None else constraints.within(cls.rules)
        return chosen(partial(_draw_case, cls, within.boxes))

    @classmethod
    def drawn_by(cls, choose: Chooser, box: Box) -> Self:
        """Draw a case that lies in a box, of what a chooser draws: what a state machine begins with."""
        found: Self = _drawn_case(cls, choose, box)
        return found

    def normal(self, name: str, *shape: int, dtype: str | torch.dtype = "float32") -> torch.Tensor:
        """Return numbers of a normal distribution, the same of the case's seed and a name on every machine.

        Parameters
        ----------
        name : str
            What they are; those of other names have nothing to do with them.
        shape : int
            Sizes of the tensor.
        dtype : str or torch.dtype
            What they are rounded to.
        """
        kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return Stream(vars(self)["seed"], name).normal(shape, torch.float32).to(kind)


def _draw_case(kind: type[Case], boxes: Sequence[Box], choose: Chooser) -> Any:  # noqa: ANN401 - of that class
    assume(boxes)
    box = choose.pick(boxes)
    case = _drawn_case(kind, choose, box)
    assume(_computed_within(case, box))
    return case


def _computed_within(case: Case, box: Box) -> bool:
    """Whether axes that are computed, and that nothing was drawn for, have one of the values that a box allows."""
    said = declaration(type(case))
    computed = {name: one for name, one in said.quantities.items() if name in box and name not in said.fields}
    names = [name for name, one in computed.items() if not one.is_drawn and not one.each]
    values = case.values() if names else {}
    return all(allows(box[name], value) for name in names for value in values.get(name, ()))


def _drawn_case(kind: type[Case], choose: Chooser, box: Box) -> Any:  # noqa: ANN401 - of that class
    said = declaration(kind)
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
    case = kind(**{name: unused.get(name, known[name]) for name in said.fields if name in known})
    assume(case.is_cheap() and next(iter(case.problems()), None) is None)
    return choose.tie_sizes(case, kind.tied, kind.values, kind.check, box) if kind.tied else case


def _drawn(choose: Chooser, box: Box, draft: Case, name: str, quantity: Quantity) -> Mapping[str, Any]:
    """Draw one quantity of a draft, and return it with the fields that it is kept in."""
    if quantity.draw is not None:
        value = quantity.draw(choose, box, draft)
    else:
        options = quantity.drawn(draft) if callable(quantity.drawn) else quantity.drawn
        assert options is not None  # noqa: S101 - what has no draw function has options
        fitting = _fitting(choose.options(box, name, options), draft, quantity)
        most = [max(fitting)] * len(fitting) if choose.huge and name == choose.far else []
        value = choose.pick([*fitting, *most])  # half of the huge cases are as large as a case may be
    assume(quantity.assumes is None or quantity.assumes(draft, value))
    return {name: value} if quantity.into is None else {name: value, **quantity.into(value)}


def _smallest(options: Sequence[Any]) -> Any:  # noqa: ANN401 - the element type of the options
    """Return the smallest of numbers, and of texts the first: the simplest."""
    return options[0] if isinstance(options[0], str) else least(options)


def _fitting(options: Sequence[Any], draft: Case, quantity: Quantity) -> Sequence[Any]:
    """Leave out what does not go with the draft, and what a case may not cost; the smallest stays."""
    if quantity.fits is not None:
        options = [value for value in options if quantity.fits(draft, value)]
        assume(options)
    if quantity.affordable is not None:
        options = [value for value in options if quantity.affordable(draft, value)] or [_smallest(options)]
    return options
