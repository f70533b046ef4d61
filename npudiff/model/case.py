"""A case that is declared, and cases as JSON.

Each field of a declared case says what it means, which values are legal, which are drawn, and how it reads.
``DeclaredCase`` derives axes, ``values``, ``check``, ``describe`` and ``features`` from that; ``npudiff.draw.cases``
derives the strategy. So what is drawn, what may be asked for and what is accepted cannot contradict each other.

JSON is read strictly: what does not fit the dataclass is refused, never coerced or executed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar, Generic, TypeVar, overload

from npudiff.errors import unknown
from npudiff.model.constraints import SEEDS, Allowed, Axis, Box, Constraints

Kept = TypeVar("Kept")

Options = Sequence[Any] | Callable[[Any], Sequence[Any]]
"""Values, or a function from the draft of a case to values. A draft has what was drawn so far, defaults for the rest,
``far`` (the axis that goes far), ``huge`` (whether beyond a thousand) and ``box`` (what the constraints allow)."""

Text = str | Callable[[Any], str]

HUGE_ELEMENTS = 2**20 + 2**18
"""Elements of a case whose one axis is beyond a thousand: ten for each of 2**17 rows."""


@dataclass(frozen=True)
class Quantity:
    """What a field, a derived axis or a choice says of itself."""

    meaning: str = ""
    """One line for listings; empty for what is no axis."""
    legal: Allowed = ()
    """Every value that a case may have; empty where the axes that derive from a field say it."""
    optional: bool = False
    """Whether None is legal, too."""
    drawn: Options | None = None
    """Values that are drawn, the simplest first; one that stands there often is drawn often."""
    fits: Callable[[Any, Any], bool] | None = None
    """Draft and value to whether the value goes with what was drawn before; the others are left out."""
    assumes: Callable[[Any, Any], bool] | None = None
    """Draft and value to whether the value goes with what was drawn before; if it does not, the case is drawn anew.
    Unlike with ``fits``, what was drawn before then is drawn less often."""
    affordable: Callable[[Any, Any], bool] | None = None
    """Draft and value to whether a case may cost as much; where none may, the smallest value is drawn."""
    draw: Callable[[Any, Any, Any], Any] | None = None
    """Chooser, box and draft to a value, where options are not enough."""
    into: Callable[[Any], Mapping[str, Any]] | None = None
    """Drawn value to the fields that it is kept in."""
    applies: Callable[[Any], bool] | None = None
    """Case to whether it uses the axis; one that it does not use has no value."""
    shown: Text | None = None
    """How a value reads that is not the default: a template, ``(s)`` for a plural, or a function of the case."""
    always: bool = False
    """Whether the default is shown as well."""
    region: Text = ""
    """Name of the region that values other than the default make, as a template or a function of the case."""
    each: bool = False
    """Whether an axis has several values, one per part of a case."""
    value: Callable[[Any], Any] | None = None
    """Case to the value of the axis, where that is not what the field holds."""

    @property
    def is_drawn(self) -> bool:
        """Whether the quantity has a draw of its own."""
        return self.drawn is not None or self.draw is not None

    @property
    def is_plain(self) -> bool:
        """Whether the quantity is drawn from options alone, as most are."""
        return not any((self.draw, self.fits, self.assumes, self.affordable, self.into))

    def refuse(self, name: str, given: object) -> None:
        """Raise ``ValueError`` for a value that is not legal."""
        reason = Axis(self.meaning, self.legal, self.optional).reason_against(name, given)
        if reason is not None:
            raise ValueError(reason)


def axis(
    meaning: str,
    legal: Allowed,
    default: Any = MISSING,  # noqa: ANN401 - of the field's own type
    *,
    optional: bool = False,
    drawn: Options | None = None,
    fits: Callable[[Any, Any], bool] | None = None,
    assumes: Callable[[Any, Any], bool] | None = None,
    affordable: Callable[[Any, Any], bool] | None = None,
    draw: Callable[[Any, Any, Any], Any] | None = None,
    applies: Callable[[Any], bool] | None = None,
    shown: Text | None = None,
    always: bool = False,
    region: Text = "",
    each: bool = False,
    value: Callable[[Any], Any] | None = None,
    was: str = "",
) -> Any:  # noqa: ANN401 - a field of the annotated type
    """Declare a field of a case that is an axis; see ``Quantity`` for the parameters.

    Parameters
    ----------
    default : object
        The simplest value, which texts leave out; none for how much a call is given, which every case says.
    was : str
        An earlier name of the field, under which findings are still read.
    """
    if drawn is None and draw is None:
        drawn = legal if isinstance(legal, Sequence) else ()
    said = Quantity(
        meaning, legal, optional, drawn, fits, assumes, affordable, draw, None, applies, shown, always, region,
        each, value,
    )  # fmt: skip
    return _declared(said, default, was)


def part(
    default: Any = MISSING,  # noqa: ANN401 - of the field's own type
    legal: Allowed = (),
    *,
    drawn: Options | None = None,
    draw: Callable[[Any, Any, Any], Any] | None = None,
    shown: Text = "",
    was: str = "",
) -> Any:  # noqa: ANN401 - a field of the annotated type
    """Declare a field that is no axis itself: axes derive from it (requests, the dims of a head), or nothing does."""
    return _declared(Quantity("", legal, drawn=drawn, draw=draw, shown=shown), default, was)


def seed() -> Any:  # noqa: ANN401 - a field of integers
    """Declare the seed of the data, which is no axis, is drawn like any field, and stands last in texts."""
    return part(0, range(SEEDS), drawn=range(1024), shown="seed {}")


def choice(drawn: Options) -> Any:  # noqa: ANN401 - a value of a draft
    """Declare a draw that is no field: what is drawn after it may depend on it."""
    return Quantity(drawn=drawn, shown="")


def _declared(said: Quantity, default: object, was: str) -> Any:  # noqa: ANN401 - a field of any type
    metadata = {"quantity": said, "was": was} if was else {"quantity": said}
    return dataclasses.field(metadata=metadata) if default is MISSING else dataclasses.field(
        default=default, metadata=metadata
    )  # fmt: skip


class Derived(Generic[Kept]):
    """An axis that is computed from the fields of a case, and read like a property."""

    def __init__(self, said: Quantity, function: Callable[[Any], Kept]) -> None:
        self.said = said
        self.function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, case: None, owner: type) -> Derived[Kept]: ...
    @overload
    def __get__(self, case: object, owner: type) -> Kept: ...
    def __get__(self, case: object | None, owner: type) -> Derived[Kept] | Kept:
        return self if case is None else self.function(case)


def derived(
    meaning: str,
    legal: Allowed,
    *,
    optional: bool = False,
    drawn: Options | None = None,
    fits: Callable[[Any, Any], bool] | None = None,
    assumes: Callable[[Any, Any], bool] | None = None,
    affordable: Callable[[Any, Any], bool] | None = None,
    into: Callable[[Any], Mapping[str, Any]] | None = None,
    applies: Callable[[Any], bool] | None = None,
    shown: Text = "",
    region: Text = "",
    each: bool = False,
) -> Callable[[Callable[[Any], Kept]], Derived[Kept]]:
    """Declare an axis that a method computes; with ``each`` it returns a collection, of which each is a value.

    Where the axis is what is drawn, ``into`` says which fields keep the value.
    """
    said = Quantity(
        meaning, legal, optional, drawn, fits, assumes, affordable, into=into, applies=applies, shown=shown,
        always=True, region=region, each=each,
    )  # fmt: skip
    return lambda function: Derived(said, function)


@dataclass(frozen=True)
class Declaration:
    """Everything that a class of cases declares."""

    quantities: Mapping[str, Quantity]
    """By name: fields, derived axes and choices."""
    defaults: Mapping[str, object]
    """By field, where there is a default."""
    fields: tuple[str, ...]
    """Names of the fields, in order."""
    axes: Mapping[str, Axis]
    """What constraints may name."""
    shown: tuple[str, ...]
    """What texts say, in order."""
    drawn: tuple[tuple[str, Quantity, bool], ...]
    """What is drawn, in order, and whether it is drawn from options alone."""
    optional: tuple[tuple[str, Callable[[Any], bool]], ...]
    """Fields that not every case uses, and whether a case does. They are drawn all the same, so that choices keep their
    alignment, and then have their default."""


OPTION = "option"
"""Metadata of a field that an option of the implementation has made, which declares nothing of the component."""


def _declaration(kind: Any) -> Declaration:  # noqa: ANN401 - a class of cases
    fields = {one.name: one for one in dataclasses.fields(kind) if OPTION not in one.metadata}
    found: dict[str, Quantity] = {name: one.metadata["quantity"] for name, one in fields.items()}
    for base in kind.__mro__[::-1]:
        for name, value in vars(base).items():
            if isinstance(value, Derived):
                found[name] = value.said
            elif isinstance(value, Quantity):
                found[name] = value
    defaults = {name: one.default for name, one in fields.items() if one.default is not MISSING}
    shown = [*kind.shown_first, *(name for name in found if name not in (*kind.shown_first, "seed"))]
    shown += [] if "seed" in shown else ["seed"]
    drawn = [*kind.drawn_first, *(name for name in found if name not in kind.drawn_first)]
    return Declaration(
        quantities=found,
        defaults=defaults,
        fields=tuple(fields),
        axes={name: _as_axis(said) for name, said in found.items() if said.meaning},
        shown=tuple(name for name in shown if name in found and found[name].shown != ""),
        drawn=tuple((name, found[name], found[name].is_plain) for name in drawn if found[name].is_drawn),
        optional=tuple(
            (name, applies) for name in fields if (applies := found[name].applies) is not None and name in defaults
        ),
    )


declaration: Callable[[type], Declaration] = functools.cache(_declaration)
"""Class of cases to what it declares."""


@dataclass(frozen=True)
class DeclaredCase:
    """What all declared cases are: frozen dataclasses whose fields are made by ``axis``, ``part`` and ``seed``."""

    drawn_first: ClassVar[tuple[str, ...]] = ()
    """What is drawn before the other fields, which follow in their order. Shrinking depends on the order: what comes
    first is made simpler first."""
    shown_first: ClassVar[tuple[str, ...]] = ()
    """What texts say before the other fields, which follow in their order."""
    outliers: ClassVar[tuple[str, ...]] = ()
    """Axes that go far now and then; one that stands here twice does so twice as often."""
    huge_axes: ClassVar[tuple[str, ...]] = ()
    """Axes of integers that go beyond a thousand and beyond 65,535 now and then, where all else is tiny."""
    tied: ClassVar[tuple[str, ...]] = ()
    """Fields of integers, two of which are equal now and then."""
    rules: ClassVar[Constraints | None] = None
    """Which values go together, as boxes."""
    far: ClassVar[str] = ""
    huge: ClassVar[bool] = False
    box: ClassVar[Box] = {}
    """Of a draft: the axis that goes far, whether it goes beyond a thousand, and what the constraints allow."""

    @classmethod
    def axes(cls) -> Mapping[str, Axis]:
        """Return every axis that constraints may name."""
        return declaration(cls).axes

    def values(self) -> Mapping[str, Collection[Any]]:
        """Return the values of each axis that the case uses."""
        said = declaration(type(self))
        return {name: _values(self, name, said.quantities[name]) for name in said.axes}

    def problems(self) -> Iterable[str]:
        """Say why fields that are legal one by one make no case, or one that is larger than a test should be."""
        return ()

    def is_cheap(self) -> bool:
        """Return whether a case that was drawn is worth what it costs; others are drawn anew."""
        return True

    def affords(self, elements: int, most: int) -> bool:
        """Return whether a draft may have so many elements: up to ``most``, or more where an axis is huge."""
        return elements <= (max(most, HUGE_ELEMENTS) if self.huge else most)

    def check(self) -> None:
        """Refuse a case that cannot be built, or that is larger than a test should be.

        Raises
        ------
        ValueError
            Naming the field or axis, what it may be and what was given.
        """
        said = declaration(type(self))
        plain = [name for name in said.fields if said.quantities[name].legal and said.quantities[name].value is None]
        for name in plain:
            said.quantities[name].refuse(name, getattr(self, name))
        for name in said.axes:
            if name not in plain:
                for value in _values(self, name, said.quantities[name]):
                    said.quantities[name].refuse(name, value)
        reason = self.reason_against()
        if reason is not None:
            raise ValueError(reason)

    def reason_against(self) -> str | None:
        """Return why fields that are legal one by one do not go together; None if they do."""
        if self.rules is not None:
            reason = self.rules.reason_against(self.values())
            if reason is not None:
                return f"these do not go together: {reason}"
        return next(iter(self.problems()), None)

    def describe(self) -> str:
        """Return the case as one short line; what is at its default is left out."""
        said = declaration(type(self))
        return " · ".join(text for name in said.shown if (text := _shown(self, name, said)))

    def regions(self) -> Mapping[str, bool]:
        """Return regions that no field makes alone, and whether the case is in them."""
        return {}

    def features(self) -> Collection[str]:
        """Return the regions of the input space that the case is in."""
        return [*_regions(self), *(name for name, holds in self.regions().items() if holds)]


def _as_axis(said: Quantity) -> Axis:
    usual = said.drawn if isinstance(said.drawn, tuple | list) else ()
    return Axis(said.meaning, said.legal, said.optional, tuple(dict.fromkeys(usual)))


def _applies(case: DeclaredCase, said: Quantity) -> bool:
    return said.applies is None or said.applies(case)


def _values(case: DeclaredCase, name: str, said: Quantity) -> Collection[Any]:
    if not _applies(case, said):
        return ()
    value = getattr(case, name) if said.value is None else said.value(case)
    return value if said.each else (value,)


def _regions(case: DeclaredCase) -> Iterator[str]:
    said = declaration(type(case))
    for name, quantity in said.quantities.items():
        if quantity.region and _applies(case, quantity):
            if callable(quantity.region):
                yield from filter(None, [quantity.region(case)])
            elif name not in said.defaults or getattr(case, name) != said.defaults[name]:
                yield quantity.region.format(getattr(case, name))


def _shown(case: DeclaredCase, name: str, said: Declaration) -> str:
    quantity = said.quantities[name]
    if callable(quantity.shown):
        return quantity.shown(case)
    value = getattr(case, name)
    if not quantity.always and name in said.defaults and value == said.defaults[name]:
        return ""
    return _text(name, value, quantity.shown) if _applies(case, quantity) else ""


def _text(name: str, value: object, template: str | None) -> str:
    if template is None:
        spelled = name.replace("_", " ")
        return (
            spelled
            if isinstance(value, bool)
            else f"{spelled} {value}"
            if isinstance(value, int | float)
            else str(value)
        )
    if value is None:
        return re.sub(r"\{[^}]*\}", "none", template)
    return template.format(value).replace("(s)", "" if value == 1 else "s")


def to_plain(value: object) -> object:
    """Turn a frozen dataclass of plain values into dictionaries and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def dumps(case: object) -> str:
    """Return a case as one line of JSON."""
    return json.dumps(to_plain(case), separators=(",", ":"))


def loads(kind: type, text: str) -> Any:  # noqa: ANN401 - returns an instance of kind
    """Read a case of dataclass ``kind`` from JSON.

    Raises
    ------
    ValueError
        If the text is not JSON, or does not fit the dataclass.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    return from_plain(kind, plain)


_SCALARS = frozenset({int, float, str, bool})


def from_plain(kind: Any, plain: object, path: str = "case") -> Any:  # noqa: ANN401 - kind is a type form
    """Build a value of type ``kind`` from plain JSON values.

    Supported are frozen dataclasses, int, float, str, bool, None, literals, unions of these, and homogeneous tuples.
    Dataclasses of a union that have the same fields are told apart by a literal.

    Raises
    ------
    ValueError
        If the plain value does not fit; the message names the place.
    """
    if kind is type(plain) and kind in _SCALARS:  # by far the most often
        return plain
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, plain, path)
    reader = _READERS.get(typing.get_origin(kind))
    if reader is not None:
        return reader(kind, plain, path)
    if kind is float and type(plain) is int:
        return _float(plain, path)
    expected = type(None) if kind is None else kind
    if type(plain) is not expected:
        raise ValueError(f"{path}: expected {expected.__name__}, got {type(plain).__name__}")
    return plain


def _literal(kind: object, plain: object, path: str) -> object:
    for option in typing.get_args(kind):
        if type(plain) is type(option) and plain == option:
            return option
    options = ", ".join(repr(option) for option in typing.get_args(kind))
    raise ValueError(f"{path}: expected {options}, got {str(plain)[:40]!r}")


def _float(plain: int, path: str) -> float:
    try:
        return float(plain)
    except OverflowError:
        raise ValueError(f"{path}: the integer is too large for a float") from None


@dataclasses.dataclass(frozen=True)
class _Fields:
    """What a dataclass is read from."""

    hints: dict[str, Any]
    earlier: dict[str, str]
    """Names that fields had, to those that they have."""
    required: tuple[str, ...]
    """Names of fields without a default."""


@functools.cache
def _fields(kind: type) -> _Fields:
    fields = [field for field in dataclasses.fields(kind) if field.init]
    unset = dataclasses.MISSING
    hints = typing.get_type_hints(kind)
    return _Fields(
        {field.name: hints[field.name] for field in fields},
        {field.metadata["was"]: field.name for field in fields if field.metadata.get("was")},
        tuple(field.name for field in fields if field.default is unset and field.default_factory is unset),
    )


def _dataclass(kind: type, plain: object, path: str) -> object:
    if not isinstance(plain, dict):
        raise ValueError(f"{path}: expected an object, got {type(plain).__name__}")
    fields = _fields(kind)
    given = {str(name): value for name, value in plain.items()}
    plain = {**{new: given.pop(old) for old, new in fields.earlier.items() if old in given}, **given}
    strange = sorted(plain.keys() - fields.hints.keys())
    missing = sorted(name for name in fields.required if name not in plain)
    if strange or missing:
        said = str(unknown("field", strange[0][:40], fields.hints)) if strange else ""
        lacking = ", ".join(repr(name) for name in missing if f"did you mean {name!r}" not in said)
        raise ValueError(f"{path}: " + "; ".join(filter(None, [said, lacking and f"missing {lacking}"])))
    return kind(**{name: from_plain(fields.hints[name], value, f"{path}.{name}") for name, value in plain.items()})


def _union(kind: object, plain: object, path: str) -> object:
    reasons = []
    for option in typing.get_args(kind):
        try:
            return from_plain(option, plain, path)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; or ".join(reasons))


def _tuple(kind: object, plain: object, path: str) -> tuple[object, ...]:
    if not isinstance(plain, list):
        raise ValueError(f"{path}: expected a list, got {type(plain).__name__}")
    item = typing.get_args(kind)[0]
    return tuple(from_plain(item, value, f"{path}[{index}]") for index, value in enumerate(plain))


_READERS: dict[object, Callable[[Any, object, str], object]] = {
    typing.Union: _union,
    types.UnionType: _union,
    tuple: _tuple,
    typing.Literal: _literal,
}
"""By the origin of a type form."""
