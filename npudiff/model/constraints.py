"""What cases may look like: boxes of allowed values per axis, that strategies draw within.

An axis is a named quantity of a case (``page_size``, ``query_length``, ``dtype``). A box allows a set of values for
some axes and anything for the others. Constraints are a union of boxes, so that joint limits (``head_dim 192 only
without a window``) can be said without a predicate that would reject draws.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npudiff.errors import UsageError, did_you_mean, unknown
from npudiff.text import clipped


@dataclass(frozen=True)
class Numbers(Collection[float]):
    """All floats from the lowest to the highest, both included."""

    lowest: float
    highest: float

    def __contains__(self, value: object) -> bool:
        return type(value) is float and self.lowest <= value <= self.highest

    def __iter__(self) -> Iterator[float]:
        return iter((self.lowest, self.highest))

    def __len__(self) -> int:
        return 2

    def __str__(self) -> str:
        return f"{self.lowest:g}..{self.highest:g}"

    def within(self, other: Numbers) -> Collection[float]:
        """Return the numbers in both."""
        lowest, highest = max(self.lowest, other.lowest), min(self.highest, other.highest)
        return Numbers(lowest, highest) if lowest <= highest else ()

    def own(self, given: object) -> object:
        """Return an integer as a float."""
        return float(given) if type(given) is int and abs(given) < 2**53 else given


@dataclass(frozen=True)
class Joined(Collection[str]):
    """Sizes joined by a slash, as one text: ``512/64``."""

    sizes: tuple[range, ...]
    """What each size may be."""
    short: bool = False
    """Whether the second of two is left out where it equals the first: ``128`` for ``128/128``."""

    def __contains__(self, value: object) -> bool:
        texts = value.split("/") if isinstance(value, str) and len(value) < 64 else []
        if not texts or not all(text.isascii() and text.isdigit() and str(int(text)) == text for text in texts):
            return False
        sizes = [int(text) for text in texts]
        if self.short and len(sizes) == 1:
            sizes *= 2
        elif self.short and len(set(sizes)) == 1:
            return False
        return len(sizes) == len(self.sizes) and all(
            size in legal for size, legal in zip(sizes, self.sizes, strict=True)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(("/".join(str(legal[0]) for legal in self.sizes), "/".join(str(legal[-1]) for legal in self.sizes)))

    def __len__(self) -> int:
        return 2

    def __str__(self) -> str:
        text = "/".join(describe(legal) for legal in self.sizes)
        return f"{describe(self.sizes[0])} or {text}" if self.short else text

    def within(self, other: Joined) -> Collection[str]:
        """Return the sizes in both; where one joins fewer, those are alike in the other."""
        count = min(len(self.sizes), len(other.sizes))
        (mine, theirs) = (one.sizes if len(one.sizes) == count else (_of_all(one.sizes),) for one in (self, other))
        sizes = tuple(_common_range(first, second) for first, second in zip(mine, theirs, strict=True))
        return Joined(sizes, short=count > 1 and self.short and other.short) if all(sizes) else ()

    def own(self, given: object) -> object:
        """Return a single size as text."""
        return str(given) if type(given) is int else given


def _of_all(sizes: Sequence[range]) -> range:
    """Numbers that each of some sizes may be."""
    return functools.reduce(_common_range, sizes)


Allowed = Collection[Any]
Box = Mapping[str, Allowed]


def allows(allowed: Allowed, value: object) -> bool:
    """Whether a value is in a collection; a range holds integers only, and is never searched."""
    if isinstance(allowed, range):
        return type(value) is int and value in allowed
    return value in allowed


def least(allowed: Allowed) -> Any:  # noqa: ANN401 - the type of the axis's values
    """Return the smallest of allowed numbers; of a range it is not searched for."""
    return min(allowed[0], allowed[-1]) if isinstance(allowed, range) else min(allowed)


@dataclass(frozen=True)
class Axis:
    """A named quantity of a case."""

    meaning: str
    """One line for listings."""
    legal: Allowed
    """Every value that it can have: a range, or a few names or numbers."""
    optional: bool = False
    """Whether it can also be None."""
    usual: Sequence[Any] = ()
    """Values that are drawn where nothing else is asked for; listings show them where the legal ones are no list."""

    @property
    def options(self) -> str:
        """Every value, in words."""
        usual = f", usually {describe(self.usual)}" if self.usual and isinstance(self.legal, Numbers | Joined) else ""
        return describe(self.legal) + (" or none" if self.optional else "") + usual

    def reason_against(self, name: str, given: object) -> str | None:
        """Return why a value in its own form is not legal, naming it; None if it is."""
        if (given is None and self.optional) or allows(self.legal, given):
            return None
        none = "be none or " if self.optional else ""
        if isinstance(self.legal, range):
            many = "" if self.legal.step == 1 else f"be a multiple of {self.legal.step} and "
            return f"{name} must {many}{none}lie in {self.legal[0]}..{self.legal[-1]}, got {given}"
        if isinstance(self.legal, Numbers):
            return f"{name} must {none}lie in {self.legal}, got {given}"
        words = str(self.legal) if isinstance(self.legal, Joined) else ", ".join(map(str, self.legal))
        return f"{name} is one of {words}{' or none' if self.optional else ''}, got {given}"

    def has(self, given: object) -> bool:
        """Whether ``given`` is a value of the axis, in its form or as text."""
        try:
            self.value("", given, "")
        except UsageError:
            return False
        return True

    def value(self, name: str, given: object, owner: str) -> object:
        """Return a value in the axis's own form, raise ``UsageError`` if it has none.

        For an axis of names ``128`` is ``"128"``, and ``None`` is ``"none"``.
        """
        if given is None and self.optional:
            return None
        for candidate in (given, "none" if given is None else str(given)):
            if isinstance(self.legal, range):
                if allows(self.legal, candidate):
                    return candidate
            elif isinstance(self.legal, Numbers | Joined):
                own = self.legal.own(candidate)
                if own in self.legal:
                    return own
            elif candidate in self.legal:
                return next(value for value in self.legal if value == candidate)
        names = () if isinstance(self.legal, range) else [one for one in self.legal if isinstance(one, str)]
        raise UsageError(f"{owner}: {name} is one of {self.options}, got {given!r}{did_you_mean(str(given), names)}")


@dataclass(frozen=True)
class Constraints:
    """A union of boxes."""

    boxes: tuple[Box, ...] = ({},)
    """Axis name to a collection of allowed values; a ``range`` is a collection. An axis that a box does not name is
    free."""

    @classmethod
    def of(cls, supports: Box | Sequence[Box]) -> Constraints:
        """Build constraints from one mapping or a sequence of alternatives."""
        return cls((dict(supports),) if isinstance(supports, Mapping) else tuple(dict(box) for box in supports))

    def within(self, other: Constraints) -> Constraints:
        """Return the intersection of two constraints; it may be empty."""
        merged = (_intersect(mine, theirs) for mine in self.boxes for theirs in other.boxes)
        return Constraints(tuple(box for box in merged if box is not None))

    def __bool__(self) -> bool:
        """Whether any case is allowed at all."""
        return bool(self.boxes)

    def reason_against(self, values: Mapping[str, Collection[Any]]) -> str | None:
        """Return why a case with these axis values is outside, or None when it is inside.

        The reason is that of the box which comes closest.
        """
        reasons = sorted((list(_violations(box, values)) for box in self.boxes), key=len)
        if not reasons:
            return "nothing is allowed"
        return "; ".join(reasons[0]) or None

    def allows(self, values: Mapping[str, Collection[Any]]) -> bool:
        """Whether a case with these axis values is inside."""
        return any(
            all(all(allows(allowed, value) for value in values.get(axis, ())) for axis, allowed in box.items())
            for box in self.boxes
        )

    def inside(self, other: Constraints, axes: Mapping[str, Axis]) -> bool:
        """Whether each box lies within one of the other's, so that everything that is allowed is allowed there."""
        return all(any(_box_inside(mine, theirs, axes) for theirs in other.boxes) for mine in self.boxes)

    def touches(self, values: Mapping[str, Collection[Any]]) -> bool:
        """Whether any part of a case lies inside: of an axis with several values (one per request), one is enough."""
        return any(
            all(any(allows(allowed, value) for value in values.get(axis, ())) for axis, allowed in box.items())
            for box in self.boxes
        )

    def summary(self) -> list[str]:
        """Return one line per box: its axes and allowed values; nothing for a box that allows everything."""
        return ["; ".join(f"{axis} {describe(allowed)}" for axis, allowed in box.items()) for box in self.boxes if box]

    def checked(self, axes: Mapping[str, Axis], owner: str) -> Constraints:
        """Return the same constraints with every value in the form that its axis has.

        Raises
        ------
        UsageError
            If a box names an axis that there is not, or a value that the axis cannot have.
        """
        return Constraints(
            tuple({axis: _checked(axis, allowed, axes, owner) for axis, allowed in box.items()} for box in self.boxes)
        )

    def legal(self, axes: Mapping[str, Axis]) -> Constraints:
        """Return the part of the constraints that some axes can have, in their form; other axes stay as they are.

        Components may have axes of the same name that differ in what is legal, and share one ``--where``.
        """
        boxes = [
            {axis: _legal(allowed, axes[axis]) if axis in axes else allowed for axis, allowed in box.items()}
            for box in self.boxes
        ]
        return Constraints(tuple(box for box in boxes if all(box.values())))


def _box_inside(mine: Box, theirs: Box, axes: Mapping[str, Axis]) -> bool:
    return all(
        _all_in(mine[name] if name in mine else axes[name].legal, allowed)
        and (name in mine or not axes[name].optional or allows(allowed, None))
        for name, allowed in theirs.items()
    )


def _all_in(mine: Allowed, theirs: Allowed) -> bool:
    """Whether every value of one collection is in another; False also where that cannot be told without a search."""
    if isinstance(mine, range) and isinstance(theirs, range) and mine.step > 0 and theirs.step > 0:
        return _common_range(mine, theirs) == mine
    if isinstance(mine, Numbers | Joined):
        return type(mine) is type(theirs) and intersection(mine, theirs) == mine
    too_many = isinstance(mine, range) and mine[len(theirs) :]
    return not too_many and all(allows(theirs, value) for value in mine)


def _legal(allowed: Allowed, axis: Axis) -> Allowed:
    if isinstance(allowed, range | Numbers | Joined):
        return intersection(allowed, axis.legal)
    return tuple(axis.value("", value, "") for value in allowed if axis.has(value))


def _checked(name: str, allowed: Allowed, axes: Mapping[str, Axis], owner: str) -> Allowed:
    if name not in axes:
        raise UsageError(f"{owner}: {unknown('axis', name, axes)}")
    axis = axes[name]
    if isinstance(allowed, Numbers | Joined) and type(allowed) is type(axis.legal):
        return allowed
    if not isinstance(allowed, range):
        return tuple(axis.value(name, value, owner) for value in allowed)
    if isinstance(axis.legal, range) and allowed and all(allows(axis.legal, end) for end in (allowed[0], allowed[-1])):
        return allowed if allowed.step > 0 else allowed[::-1]
    raise UsageError(f"{owner}: {name} is one of {describe(axis.legal)}, got {describe(allowed)}")


def _violations(box: Box, values: Mapping[str, Collection[Any]]) -> Iterator[str]:
    for axis, allowed in box.items():
        outside = [value for value in values.get(axis, ()) if not allows(allowed, value)]
        if outside:
            yield f"{axis} {outside[0]} is not in {describe(allowed)}"


def _intersect(mine: Box, theirs: Box) -> dict[str, Allowed] | None:
    box = dict(mine)
    for axis, allowed in theirs.items():
        box[axis] = intersection(box[axis], allowed) if axis in box else allowed
        if not box[axis]:
            return None
    return box


def intersection(first: Allowed, second: Allowed) -> Allowed:
    """Return the values in both collections, in the order of the first; two of a kind that is no list give another."""
    if isinstance(first, range) and isinstance(second, range) and first.step > 0 and second.step > 0:
        return _common_range(first, second)
    if isinstance(first, Numbers | Joined) and isinstance(second, Numbers | Joined):
        return first.within(second)  # type: ignore[arg-type]
    if isinstance(first, range | Numbers | Joined):
        return tuple(value for value in second if allows(first, value))
    return tuple(value for value in first if allows(second, value))


def _common_range(first: range, second: range) -> range:
    """The integers in both of two rising ranges, by the Chinese remainder theorem: none is searched for."""
    if first.step == second.step == 1:
        return range(max(first.start, second.start), min(first.stop, second.stop))
    divisor = math.gcd(first.step, second.step)
    apart = second.start - first.start
    if apart % divisor:
        return range(0)
    step = first.step * second.step // divisor
    steps = apart // divisor * pow(first.step // divisor, -1, second.step // divisor)
    meeting = first.start + first.step * steps  # in both progressions, wherever they start
    start = max(first.start, second.start)
    return range(start + (meeting - start) % step, min(first.stop, second.stop), step)


def describe(allowed: Allowed) -> str:
    """Return a short text of a collection: ``16..1024 step 16`` or ``{a, b}``."""
    if isinstance(allowed, Numbers | Joined):
        return str(allowed)
    if isinstance(allowed, range) and allowed and abs(allowed[-1] - allowed[0]) >= 4 * abs(allowed.step):
        return f"{allowed[0]}..{allowed[-1]}" + (f" step {allowed.step}" if allowed.step != 1 else "")
    return "{" + ", ".join(dict.fromkeys("none" if value is None else str(value) for value in allowed)) + "}"


MOST_VALUES, MOST_CHARACTERS = 256, 400
"""Values of a restriction, and characters of each."""


def parse_where(texts: Sequence[str]) -> Constraints:
    """Parse ``axis=value[,value...]`` and ``axis=low..high`` into constraints.

    Values are numbers, ``none``, ``true``, ``false`` or names.

    Raises
    ------
    UsageError
        If a text has another form.
    """
    box: dict[str, Allowed] = {}
    for text in texts:
        axis, equals, values = text.partition("=")
        if not equals or not axis or not values:
            raise UsageError(f"--where {text!r}: expected AXIS=VALUE[,VALUE...] or AXIS=LOW..HIGH")
        allowed = _parse_values(text, values)
        box[axis] = intersection(box[axis], allowed) if axis in box else allowed
        if not box[axis]:
            raise UsageError(f"--where {text!r}: nothing is left of {axis} after the restrictions before it")
    return Constraints((box,))


def _parse_values(text: str, values: str) -> Allowed:
    low, dots, high = values.partition("..")
    if not dots:
        parts = values.split(",", MOST_VALUES)
        if len(parts) > MOST_VALUES:
            raise UsageError(f"--where {clipped(text, 80)!r}: more than {MOST_VALUES} values")
        return tuple(_parse_value(text, value) for value in parts)
    try:
        allowed = range(0) if len(values) > MOST_CHARACTERS else range(int(low), int(high) + 1)
    except ValueError:
        raise UsageError(f"--where {clipped(text, 80)!r}: a range needs two integers") from None
    if not allowed:
        raise UsageError(f"--where {clipped(text, 80)!r}: the range is empty")
    return allowed


def _parse_value(where: str, text: str) -> object:
    words: dict[str, object] = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"--where {clipped(where, 80)!r}: a value of more than {MOST_CHARACTERS} characters")
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", text) else text


SEEDS = 2**63
"""Seeds of a case are below."""


def check_values(values: Mapping[str, Collection[Any]], axes: Mapping[str, Axis]) -> None:
    """Raise ``ValueError``, naming the axis, for values of a case that its axes do not have."""
    for name, used in values.items():
        for value in used:
            reason = axes[name].reason_against(name, value)
            if reason is not None:
                raise ValueError(reason)


@dataclass(frozen=True)
class Exclusion:
    """A region of cases that are not run."""

    where: Constraints
    """The cases: all of which any part lies inside."""
    reason: str
    """What the account says of a case that was drawn and not run."""
