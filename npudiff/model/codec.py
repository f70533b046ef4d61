"""Cases to JSON and back, strictly: what does not fit the dataclass is refused, never coerced or executed."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from typing import Any

from npudiff.errors import unknown


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


def from_plain(kind: Any, plain: object, path: str = "case") -> Any:  # noqa: ANN401 - kind is a type form
    """Build a value of type ``kind`` from plain JSON values.

    Supported are frozen dataclasses, int, float, str, bool, None, literals, unions of these, and homogeneous tuples.
    Dataclasses of a union that have the same fields are told apart by a literal.

    Raises
    ------
    ValueError
        If the plain value does not fit; the message names the place.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, plain, path)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(kind, plain, path)
    if origin is tuple:
        return _tuple(kind, plain, path)
    if origin is typing.Literal:
        return _literal(kind, plain, path)
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


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _dataclass(kind: type, plain: object, path: str) -> object:
    if not isinstance(plain, dict):
        raise ValueError(f"{path}: expected an object, got {type(plain).__name__}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    earlier = {field.metadata["was"]: name for name, field in fields.items() if field.metadata.get("was")}
    given = {str(name): value for name, value in plain.items()}
    plain = {**{earlier[name]: given.pop(name) for name in earlier if name in given}, **given}
    strange = sorted(set(plain) - set(fields))
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in plain and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    if strange or missing:
        said = str(unknown("field", strange[0][:40], fields)) if strange else ""
        lacking = ", ".join(repr(name) for name in missing if f"did you mean {name!r}" not in said)
        raise ValueError(f"{path}: " + "; ".join(filter(None, [said, lacking and f"missing {lacking}"])))
    hints = _hints(kind)
    return kind(**{name: from_plain(hints[name], value, f"{path}.{name}") for name, value in plain.items()})


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
