"""What can be asked of the judge: one JSON object, read strictly, since a misspelt limit would be none."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from npudiff.errors import UsageError, did_you_mean

MOST_BYTES = 2**22
"""Bytes of a request."""

MOST_EXAMPLES, MOST_SECONDS = 100_000, 3_600.0
"""Cases and seconds that may be asked for."""

LEAST_MEMORY = 2**26
"""Bytes below which no candidate could begin."""


@dataclass(frozen=True)
class CheckRequest:
    """A candidate, and how it is judged."""

    component: str
    """Name of the component that it computes."""
    source: str
    """Text of a Python file. It has a function that is decorated with ``npudiff.implementation``, or ``function``."""
    function: str = ""
    """Name of a function ``f(inputs, target)`` in it that is not decorated."""
    supports: tuple[str, ...] = ()
    """``axis=values`` that such a function is made for; everything by default."""
    where: tuple[str, ...] = ()
    """``axis=values`` within which cases are drawn."""
    model: str | None = None
    """Model within whose sizes cases are drawn."""
    examples: int = 100
    """Cases of equivalence; other properties have a part of that."""
    seed: int | None = None
    """Seed of the draws; none for one that nobody knows before, which the answer tells."""
    thorough: bool = False
    """Whether other properties are judged after one that does not hold."""
    timed: bool = False
    """Whether its time is compared with that of an implementation that is built in."""
    seconds: float = 60.0
    """Time until the verdict; what was not judged by then is no verdict."""
    call_seconds: float = 10.0
    """Time of a call."""
    memory: int = 2**32
    """Bytes that the candidate may take, beside what torch has taken before it."""


@dataclass(frozen=True)
class ComponentsRequest:
    """Asks for the contract of components."""

    names: tuple[str, ...] = ()
    """Their names; all by default."""


@dataclass(frozen=True)
class CancelRequest:
    """Gives up a request that is being answered: its answer is that it was cancelled."""

    of: Any
    """Its ``id``."""


@dataclass(frozen=True)
class HelloRequest:
    """Asks what the judge is."""


AnyRequest = CheckRequest | ComponentsRequest | CancelRequest | HelloRequest

_KINDS: Mapping[str, type[Any]] = {
    "check": CheckRequest,
    "components": ComponentsRequest,
    "cancel": CancelRequest,
    "hello": HelloRequest,
}
"""By what a request has under ``do``; ``check`` where there is nothing."""


def read_request(message: object) -> tuple[Any, AnyRequest]:
    """Read a request; return its ``id`` and what it asks for.

    Raises
    ------
    UsageError
        If it asks for nothing that there is.
    """
    if not isinstance(message, dict):
        raise UsageError("a request is a JSON object")
    rest = {name: value for name, value in message.items() if name not in ("id", "do")}
    do = message.get("do", "check")
    if not isinstance(do, str) or do not in _KINDS:
        raise UsageError(f"do {do!r}: there is {', '.join(_KINDS)}{did_you_mean(str(do), _KINDS)}")
    kind = _KINDS[do]
    known = {one.name: one for one in fields(kind)}
    hints = typing.get_type_hints(kind)
    for name, value in rest.items():
        if name not in known:
            raise UsageError(
                f"{do}: unknown field {name!r}{did_you_mean(name, known) or '; there is ' + ', '.join(known)}"
            )
        rest[name] = _read(f"{do}: {name}", hints[name], value)
    try:
        request: AnyRequest = kind(**rest)
    except TypeError:
        given = [name for name in known if name not in rest and name in ("component", "source", "of")]
        raise UsageError(f"{do}: {', '.join(given)} must be given") from None
    if isinstance(request, CheckRequest):
        _check_limits(request)
    return message.get("id"), request


def _read(name: str, kind: Any, value: Any) -> Any:  # noqa: ANN401 - of whatever type the field has
    """Return a value in the form that a field has."""
    if kind is Any:
        return value
    if isinstance(kind, types.UnionType):
        return None if value is None else _read(name, typing.get_args(kind)[0], value)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise UsageError(f"{name}: expected a list of texts")
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        words = {str: "text", int: "an integer", float: "a number", bool: "true or false"}
        raise UsageError(f"{name}: expected {words[kind]}, got {value!r:.100}")
    return value


def _check_limits(request: CheckRequest) -> None:
    if not 1 <= request.examples <= MOST_EXAMPLES:
        raise UsageError(f"check: examples must lie in 1..{MOST_EXAMPLES}, got {request.examples}")
    for name in ("seconds", "call_seconds"):
        value = getattr(request, name)
        if not 0 < value <= MOST_SECONDS:
            raise UsageError(f"check: {name} must be positive and at most {MOST_SECONDS:g}, got {value:g}")
    if request.memory < LEAST_MEMORY:
        raise UsageError(f"check: memory is in bytes, {LEAST_MEMORY} at least, got {request.memory}")
    if request.function and not request.function.isidentifier():
        raise UsageError(f"check: function {request.function!r:.100} is no name")
    if request.supports and not request.function:
        raise UsageError("check: supports is of a function; one that is decorated says itself what it supports")
