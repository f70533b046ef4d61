"""Cases derived from a case: calls that a running backend of the same model gets before and after it.

Heads, widths, dtypes and layouts stay; what changes is how much a call is given, which is the first number or tuple of
a case, and the data. So nothing has to be stored beside a case: a finding has its neighbours as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from npudiff.model.anything import AnyCase
from npudiff.model.component import Subject
from npudiff.model.constraints import SEEDS

Size = Any
"""The size of a call: a number of rows, or a tuple of requests."""

_LENGTHS: tuple[Callable[[int], int], ...] = (
    lambda length: length // 2,
    lambda length: length + 1,
    lambda length: length - 1,
)


def shrunk(subject: Subject, case: AnyCase) -> AnyCase | None:
    """Return a case with half as many rows or requests, or with shorter ones; None where there is none."""
    return _first_legal(subject, case, _shrunk, 1)


def same_size(subject: Subject, case: AnyCase) -> AnyCase | None:
    """Return a case with as many rows or requests, of other lengths where they have lengths, and of other data.

    A graph that was captured for one of them is replayed for the other. None where there is none.
    """
    return _first_legal(subject, case, _same_size, 2)


def grown(subject: Subject, case: AnyCase) -> AnyCase | None:
    """Return a case with twice as many rows, or with one request more; None where there is none."""
    return _first_legal(subject, case, _grown, 3)


def longer(subject: Subject, case: AnyCase) -> Sequence[AnyCase]:
    """Return cases of as many requests, each longer than the longest, one case for each length that a request has.

    What keeps the most that it has seen, and writes it only where there is more, is then right for nothing smaller.
    """
    name = _field_of_size(case)
    parts = getattr(case, name) if name is not None else None
    if not isinstance(parts, tuple) or not parts:
        return []
    found = (_first_legal(subject, case, _beyond_the_longest(length), 4) for length in _lengths_of(parts[0]))
    return [other for other in found if other is not None]


def _first_legal(subject: Subject, case: AnyCase, sizes: Callable[[Size], Iterable[Size]], step: int) -> AnyCase | None:
    """The first case of some sizes that can be built and that the implementation supports."""
    name = _field_of_size(case)
    for size in () if name is None else sizes(getattr(case, name)):
        other = _of_other_data(dataclasses.replace(case, **{str(name): size}), step)
        if other != case and _is_legal(subject, other):
            return other
    return None


def _field_of_size(case: AnyCase) -> str | None:
    names = (field.name for field in dataclasses.fields(case))
    return next((name for name in names if type(getattr(case, name)) in (int, tuple)), None)


def _of_other_data(case: AnyCase, step: int) -> AnyCase:
    """The same case with another seed: a row left by another call must not be right by chance."""
    seed = getattr(case, "seed", None)
    return case if seed is None else dataclasses.replace(case, seed=(seed + step) % SEEDS)


def _is_legal(subject: Subject, case: AnyCase) -> bool:
    try:
        subject.component.check_case(case)
    except ValueError:
        return False
    return subject.reason_against(case) is None


def _shrunk(size: Size) -> Iterator[Size]:
    if isinstance(size, int):
        yield from (size // 2, size - 1)
    elif len(size) > 1:
        yield from (size[: len(size) // 2], size[:-1])
    else:
        yield from _other_lengths(size, _LENGTHS[::2])


def _same_size(size: Size) -> Iterator[Size]:
    if isinstance(size, tuple):
        yield from _other_lengths(size, _LENGTHS)
    yield size


def _grown(size: Size) -> Iterator[Size]:
    if isinstance(size, int):
        yield from (2 * size, size + 1)
    else:
        yield from (size + size[:1], size + size[-1:])
        yield from _other_lengths(size, _LENGTHS[1:2])


def _beyond_the_longest(name: str | None) -> Callable[[Size], Iterable[Size]]:
    """What gives every part the longest length of them all, and one more where that is legal."""

    def sizes(parts: Size) -> Iterator[Size]:
        most = max(part if name is None else getattr(part, name) for part in parts)
        for length in (most + 1, most):
            yield tuple(length if name is None else dataclasses.replace(part, **{name: length}) for part in parts)

    return sizes


def _other_lengths(parts: tuple[Any, ...], changes: Iterable[Callable[[int], int]]) -> Iterator[tuple[Any, ...]]:
    """As many parts, each of another length: a part is an integer, or has integers, of which one changes."""
    for change in changes:
        for name in _lengths_of(parts[0]) if parts else ():
            others = tuple(_with_length(part, name, change) for part in parts)
            if others != parts:
                yield others


def _lengths_of(part: AnyCase) -> Sequence[str | None]:
    """What may be a length in a part: its integers, the last one first; None for a part that is an integer."""
    if not dataclasses.is_dataclass(part):
        return [None] if type(part) is int else []
    return [field.name for field in dataclasses.fields(part) if type(getattr(part, field.name)) is int][::-1]


def _with_length(part: AnyCase, name: str | None, change: Callable[[int], int]) -> AnyCase:
    if name is None:
        return max(0, change(part))
    return dataclasses.replace(part, **{name: max(0, change(getattr(part, name)))})
