"""A chooser draws one of several options: such that cases shrink well, draws are cheap, and a seed repeats them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from itertools import combinations, cycle, islice
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

from npudiff.draw.counts import PLACES, far_values, huge_values
from npudiff.model.constraints import Allowed, Axis, Box, Constraints, allows

Part = TypeVar("Part")
Sized = TypeVar("Sized")

Alike = Callable[[Part, Part], Part]
"""Two parts to the second, with what makes the first and it alike."""

CHOICES = 2**12
"""Values of one choice. Of a longer list of options a choice reaches this many, spread from end to end."""

FIRST_CHOICE = 918_273_645 * 10**9 + 546_372_819
"""Where choices start. Hypothesis mixes literals of the imported local modules into integers, so cases would depend on
what else is imported, and it draws small integers more often than large ones. Up here it does neither: no program
has such literals, this one included, and its distribution is flat."""

_SCATTER = 2_654_435_761  # Knuth's multiplicative hash: 2**32 divided by the golden ratio

OUTLIERS = (*["none"] * 23, *["far"] * 3, *["huge"] * 2)
"""How often an axis is an outlier, and beyond a thousand, where one can be."""

FAR_WEIGHT = 3
"""An outlier axis has each far value this many times as often as a usual one, the larger half twice that."""

TINY = 16
"""Sizes on other axes are at most this where one is beyond a thousand, or as small as there are."""

UNIFORM = (*["no"] * 8, "partly", *["wholly"] * 2, "but for one")
"""How often the parts of a list are alike: in what makes a batch uniform, altogether, or all but the one in the middle,
which is what looks alike from both ends."""

EQUAL_SHARE = 8
"""Two sizes are tied in one of so many cases."""

LISTED = 2**12
"""Most values of an axis that are listed for a component to filter."""

DISTINCT = 8
"""Different parts of an outlier batch; they repeat, since a choice for each of hundreds would cost too much."""

MOST_DISTINCT = 64
"""Parts of a batch above which they repeat as well: a case whose size a user asked for is no outlier."""

SOURCE = st.randoms(use_true_random=False)
"""The strategy that a ``Chooser`` draws from."""

_usual_only = ContextVar("_usual_only", default=False)


@contextlib.contextmanager
def usual_sizes() -> Iterator[None]:
    """Draw no case that is dear on purpose, while this lasts: none that goes beyond a thousand, no long history.

    A twentieth of all cases takes half of the time. What large sizes break shows where outputs are compared with the
    reference; a relation, which runs an implementation several times, need not look for it again.
    """
    token = _usual_only.set(True)
    try:
        yield
    finally:
        _usual_only.reset(token)


def assume(condition: object) -> None:
    """Refuse what was drawn so far unless a condition holds: there is no such case, and another one is drawn.

    Hypothesis has the same; but only in its own tests, and cases are drawn without it as well.
    """
    if not condition:
        raise UnsatisfiedAssumption


class Source(Protocol):
    """Where choices come from: a value of ``SOURCE``, or another ``Random``."""

    def randint(self, a: int, b: int, /) -> int:
        """Return an integer from ``a`` to ``b``."""


class Chooser:
    """Draws options of one case.

    Every choice is one integer, also among one option. The sequence of choices therefore keeps its alignment when an
    earlier one changes (another box, another page size), which is what lets Hypothesis shrink through such changes.

    The integers come from Hypothesis's shrinkable ``Random`` and not from a strategy each: Hypothesis then has no equal
    parts of a case to copy over each other, which made most cases variations of a few.

    Parameters
    ----------
    source : Source
        Gives the integers.

    Attributes
    ----------
    far : str
        The axis that goes far in this case, empty in most.
    huge : bool
        Whether it goes beyond a thousand.
    usual_only : bool
        Whether nothing does, and no history is long.
    """

    def __init__(self, source: Source) -> None:
        self._random = source
        self.usual_only = _usual_only.get()
        self.far, self.huge = "", False
        self._far_values: Sequence[Any] = ()
        self._counted: Collection[str] = ()

    def pick(self, options: Sequence[Any]) -> Any:  # noqa: ANN401 - the element type of the options
        """Draw one of the options; shrinks towards the first."""
        count = len(options)
        last = FIRST_CHOICE + max(2, min(count, CHOICES)) - 1
        return options[choice_index(self._random.randint(FIRST_CHOICE, last) - FIRST_CHOICE, count)]

    def draw_outlier_axis(self, axes: Mapping[str, Axis], *names: str, huge: Sequence[str] = ()) -> None:
        """Draw whether an axis is an outlier in this case, and which one.

        Its values then are the usual ones and, many times more often, ``far_values`` or ``huge_values`` as far as box
        and axis allow. The component filters them by what a case may cost, so that those which are too expensive are
        left out. Counts on other axes are tiny where one is huge; where one is far, the component takes small ones.

        Parameters
        ----------
        axes : mapping
            Axes of the component.
        names : str
            Axes that go far. One that stands here twice is drawn twice as often.
        huge : sequence of str
            Axes that go beyond a thousand.
        """
        kind = self.pick(OUTLIERS)
        huge = () if self.usual_only else huge
        self.far = self.pick({"far": names, "huge": huge}.get(kind) or ("",))
        self.huge = kind == "huge" and self.far != ""
        # Where nothing is far, one option: choices that mean nothing are room for Hypothesis to enlarge others.
        places = range(PLACES) if self.far else (0,)
        place, other = self.pick(places), self.pick(places)
        if self.far:
            legal = axes[self.far].legal
            self._far_values = huge_values(legal, place) if self.huge else far_values(legal, place, other)
        if self.huge:
            self._counted = {name for name, axis in axes.items() if isinstance(axis.legal, range)} - {self.far}

    def value(self, box: Box, axis: str, defaults: Sequence[Any]) -> Any:  # noqa: ANN401 - the axis's own type
        """Draw a value of an axis: a default that the box allows, or else anything that it allows."""
        return self.pick(self._values(box, axis, defaults))

    def options(self, box: Box, axis: str, defaults: Sequence[Any]) -> Sequence[Any]:
        """Return the values that ``value`` draws from, at most ``LISTED`` or so, for a component to leave some out."""
        return self._values(box, axis, defaults)[:LISTED]

    def _values(self, box: Box, axis: str, defaults: Sequence[Any]) -> Sequence[Any]:
        """Return the values of an axis.

        Where it goes far, usual ones stay at their places: a failure that needs no far count shrinks to the case that
        it would be without.
        """
        allowed = box.get(axis)
        usual = within(defaults, allowed)
        if axis in self._counted:
            return _tiny(usual)
        if axis != self.far:
            return usual
        far = [value for value in self._far_values if allowed is None or allows(allowed, value)]
        return [*usual[: LISTED // 2], *[*far, *far[len(far) // 2 :]] * FAR_WEIGHT]

    def tie_sizes(
        self,
        case: Sized,
        sizes: Sequence[str],
        values: Callable[[Sized], Mapping[str, Collection[Any]]],
        check: Callable[[Sized], None],
        box: Box,
    ) -> Sized:
        """Draw whether two sizes are tied, and return the case in which the larger one equals the smaller one.

        A layout that is guessed from a shape is wrong where axes are as long as each other, and sizes that are drawn
        from lists of their own seldom are.

        Parameters
        ----------
        case : dataclass
            What was drawn. It stays as it is where the other case would not be legal.
        sizes : sequence of str
            Fields of integers.
        values : callable
            Case to the values of each axis that it uses.
        check : callable
            Raises ``ValueError`` for a case that there is not.
        box : mapping
            Axis to allowed values.
        """
        pairs = list(combinations(sizes, 2))
        pair = self.pick([()] * ((EQUAL_SHARE - 1) * len(pairs)) + pairs)
        if not pair or self.huge:
            return case
        same: Sized = replace(case, **dict.fromkeys(pair, min(getattr(case, name) for name in pair)))  # type: ignore[type-var]
        try:
            check(same)
        except ValueError:
            return case
        return case if Constraints((box,)).reason_against(values(same)) else same

    def repeats(self, axis: str, count: int) -> bool:
        """Return whether of so many parts, which an axis counts, ``DISTINCT`` are drawn, and then come again."""
        return axis == self.far or count > MOST_DISTINCT

    def draw_list(
        self, box: Box, axis: str, sizes: Sequence[int], draw_part: Callable[[], Part], alike: Alike[Part] | None = None
    ) -> tuple[Part, ...]:
        """Draw a list whose length is a value of an axis, and now and then less."""
        return self.draw_list_of(box, axis, self.value(box, axis, sizes), draw_part, alike)

    def draw_list_of(
        self, box: Box, axis: str, most: int, draw_part: Callable[[], Part], alike: Alike[Part] | None = None
    ) -> tuple[Part, ...]:
        """Draw a list of ``most`` parts, and now and then fewer, or parts that are alike.

        Before each part comes a choice to stop. So each part and the choice before it can be left out by themselves,
        and a failure that needs only the last of three parts shrinks to that part.

        Of an axis that goes far, a few parts are drawn and repeated, or some of them left out; never fewer, or many
        copies of one part would be fewer choices than three parts, and what needs three would shrink to many. So
        choices that come later keep their meaning while the list gets shorter. Parts that are alike are drawn as others
        are, for the same reason.

        Parameters
        ----------
        box : mapping
            Axis to allowed values.
        axis : str
            What counts the parts.
        most : int
            How many there are.
        draw_part : callable
            Draws one.
        alike : callable, optional
            The first part and another to the other with as many new tokens as the first, where the list may be alike
            in that alone.
        """
        parts: list[Part] = []
        is_far = self.repeats(axis, most)
        while len(parts) < (DISTINCT if is_far else most):
            stops = self.pick((True, *[False] * 31))
            if stops and parts and not is_far and allows(box.get(axis, (len(parts),)), len(parts)):
                break
            parts.append(draw_part())
        parts = parts[:most]
        uniform = self.pick(UNIFORM)
        if uniform == "but for one":
            parts = but_for_one(parts, parts[0])
        elif uniform != "no":
            first = parts[0]
            parts = [first if uniform == "wholly" or alike is None else alike(first, part) for part in parts]
        return tuple(islice(cycle(parts), most)) if is_far else tuple(parts)


def but_for_one(parts: Sequence[Part], other: Part) -> list[Part]:
    """Return as many times the other part, but the one in the middle, which stays; of two that is the last."""
    return [part if place == len(parts) // 2 else other for place, part in enumerate(parts)]


def _tiny(usual: Sequence[Any]) -> Sequence[Any]:
    """Of usual values, those that are tiny, or the smallest one."""
    least = [value for value in usual[:LISTED] if value is None or value <= TINY]
    return least or [min(usual)]


def choice_index(choice: int, options: int) -> int:
    """Return which of ``options`` a choice means; 0 is the first.

    Up to ``CHOICES`` options there is a choice for each. Of more, each choice has a stretch of its own and means one
    place in it; the last choice means the last option.
    """
    if options <= CHOICES:
        return min(choice, options - 1)
    start, stop = choice * options // CHOICES, (choice + 1) * options // CHOICES
    if choice == CHOICES - 1:
        return stop - 1
    return start + choice * _SCATTER % 2**32 * (stop - start) // 2**32


def within(defaults: Sequence[Any], allowed: Allowed | None) -> Sequence[Any]:
    """Return the defaults that are allowed, or everything allowed if none of them is."""
    if allowed is None:
        return defaults
    chosen = [value for value in defaults if allows(allowed, value)]
    if chosen:
        return chosen
    return allowed if isinstance(allowed, range) else list(allowed)
