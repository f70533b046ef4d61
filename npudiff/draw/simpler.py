"""Simpler cases: what one field of a failing case may be instead, from the simplest value on.

Hypothesis makes the choices simpler by which a case was drawn, and a size that was drawn as an outlier stays one:
smaller sizes are other choices. So what it ends with is gone through once more, field by field, in the words of the
case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from npudiff.model.anything import AnyCase

SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 33, 64)
"""Small sizes that are tried whatever a field is: some have to be odd, others whole tiles."""

SMALL = 32
"""Numbers up to here stay as they are: Hypothesis has chosen them, and by what comes first in the words of the axis."""

SEED = "seed"
"""The field whose numbers are no sizes."""

LARGEST = 512
"""A case with a larger number keeps its words: all experts of a thousand, say, would be another amount of data."""


def simpler_cases(case: AnyCase) -> Iterator[AnyCase]:
    """Yield cases that differ in one field, which is simpler; they need not be legal.

    First every field is as it usually is, then each has its usual value, large numbers are smaller, and tuples shorter.
    A number that is the usual one stays: a head of 64 says more than one of 3.
    """
    usual = {one.name: one.default for one in _fields(case) if one.default is not dataclasses.MISSING}
    plain = {name: value for name, value in usual.items() if isinstance(value, str | bool | float)}
    changed = [name for name, value in plain.items() if getattr(case, name) != value]
    is_small = all(number <= LARGEST for number in _numbers(case))
    if len(changed) > 1 and is_small:
        yield dataclasses.replace(case, **{name: plain[name] for name in changed})
    for one in _fields(case):
        if one.name in plain and not is_small:
            continue
        for value in _simpler(getattr(case, one.name), usual.get(one.name, dataclasses.MISSING)):
            yield dataclasses.replace(case, **{one.name: value})
            if one.name == SEED:
                break  # the usual one, and no other is simpler


def _numbers(part: Any) -> Iterator[int]:  # noqa: ANN401 - any field
    """Yield the sizes in a field; seeds are none."""
    if isinstance(part, int):
        yield part
    elif isinstance(part, tuple):
        for one in part:
            yield from _numbers(one)
    elif dataclasses.is_dataclass(part):
        for field in _fields(part):
            if field.name != SEED:
                yield from _numbers(getattr(part, field.name))


def _fields(part: Any) -> list[dataclasses.Field[Any]]:  # noqa: ANN401 - any dataclass
    return [one for one in dataclasses.fields(part) if one.init]


def _simpler(value: Any, usual: Any = dataclasses.MISSING) -> Iterator[Any]:  # noqa: ANN401 - any field
    """Yield simpler values of a field, the simplest first."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield from _smaller(value, usual)
    elif isinstance(value, tuple):
        yield from _shorter(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for one in _fields(value):
            for inner in _simpler(getattr(value, one.name), one.default):
                yield dataclasses.replace(value, **{one.name: inner})
    elif usual is not dataclasses.MISSING and value != usual:
        yield usual


def _smaller(value: int, usual: object) -> Iterator[int]:
    """Yield the usual number, if that is smaller, and other smaller ones: small ones, and halves."""
    if value <= SMALL or value == usual:
        return
    if isinstance(usual, int) and usual < value:
        yield usual
    yield from dict.fromkeys(one for one in (*SIZES, value // 4, value // 2) if 0 < one < value)


def _shorter(value: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of one element, without one of them, and with one of them simpler."""
    if len(value) > 2:
        yield from ((one,) for one in value)
    if len(value) > 1:
        yield from (value[:place] + value[place + 1 :] for place in range(len(value)))
    for place, part in enumerate(value):
        for inner in _simpler(part):
            yield (*value[:place], inner, *value[place + 1 :])
