"""Illegal inputs: what a legal case becomes when one thing in it is wrong, and who says that it is.

A component lists what is wrong in its own words (a page beyond the pool, a negative length); wrong dtypes, axes and
rows of any tensor follow from the inputs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from npudiff.model.anything import AnyInputs

Place = int | tuple[int, ...]
Where = str | Callable[[AnyInputs], str]
"""Names of fields, from the outside in, with dots between them; or what gives them, where inputs differ in that."""


MOST_OF_TENSORS = 40
"""Things that are made wrong with the tensors of one case at most."""


@dataclass(frozen=True)
class Illegal:
    """One thing that is wrong."""

    what: str
    """In words: ``a page beyond the pool``."""
    change: Callable[[AnyInputs], AnyInputs | None]
    """Legal inputs to illegal ones; None where these have nothing that could be wrong so."""
    no_answer: bool = True
    """Whether there is no right answer. Otherwise the reference says whether there is one: a row that is gone
    may be one that nobody reads."""


def wrong_element(
    what: str,
    path: Where,
    value: Callable[[AnyInputs], int | None],
    place: Callable[[AnyInputs], Place | None] = lambda _: 0,
) -> Illegal:
    """Return that one element of a tensor, or of a tuple, of integers is wrong.

    Parameters
    ----------
    what : str
        In words.
    path : Where
        The field; one that holds nothing cannot be wrong.
    value : callable
        Inputs to the wrong value; None where there is none.
    place : callable
        Inputs to the index of the element; of a single number, among all elements. None where there is no such one.
    """

    def change(inputs: AnyInputs) -> AnyInputs | None:
        name = _path(path, inputs)
        before = field_of(inputs, name)
        if before is None or not (before.numel() if isinstance(before, torch.Tensor) else len(before)):
            return None
        wrong, at = value(inputs), place(inputs)
        if wrong is None or at is None:
            return None
        if isinstance(before, torch.Tensor):
            after: torch.Tensor = before.clone(memory_format=torch.contiguous_format)
            (after if isinstance(at, tuple) else after.view(-1))[at] = wrong
            return with_field(inputs, name, after)
        numbers = list(before)
        numbers[at if isinstance(at, int) else at[0]] = wrong
        return with_field(inputs, name, tuple(numbers))

    return Illegal(what, change)


def constant(value: int) -> Callable[[AnyInputs], int]:
    """Return what gives a value for all inputs."""
    return lambda _: value


def beyond(path: Where) -> Callable[[AnyInputs], int]:
    """Return what gives the first index beyond the rows of a tensor."""
    return lambda inputs: len(field_of(inputs, _path(path, inputs)))


def width_of(path: Where, inputs: AnyInputs) -> int:
    """Return the columns of a tensor."""
    return int(field_of(inputs, _path(path, inputs)).shape[1])


def _path(path: Where, inputs: AnyInputs) -> str:
    return path if isinstance(path, str) else path(inputs)


def illegal_inputs(kinds: Sequence[Illegal], inputs: AnyInputs) -> Iterator[tuple[Illegal, AnyInputs]]:
    """Yield what can be wrong with inputs, and those that are; none whose own class refuses them.

    Parameters
    ----------
    kinds : sequence of Illegal
        What a component says can be wrong, besides its tensors.
    inputs : object
        Legal ones.
    """
    for kind in (*kinds, *itertools.islice(of_tensors(inputs), MOST_OF_TENSORS)):
        try:
            changed = kind.change(inputs)
        except ValueError:
            continue
        if changed is not None:
            yield kind, changed


def of_tensors(inputs: AnyInputs) -> Iterator[Illegal]:
    """Yield what can be wrong with each tensor: another dtype, an axis more, a row less.

    One thing of every tensor comes first, another of each the next time: whoever takes some of them sees all tensors.
    """
    paths = list(_tensors(inputs, ""))
    for turn in range(len(_OF_A_TENSOR)):
        for number, path in enumerate(paths):
            what, change = _OF_A_TENSOR[(turn + number) % len(_OF_A_TENSOR)]
            yield Illegal(f"{path} {what}", _changes(path, change), no_answer=False)


def _changes(
    path: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> Callable[[AnyInputs], AnyInputs | None]:
    def changed(inputs: AnyInputs) -> AnyInputs | None:
        after = change(field_of(inputs, path))
        return None if after is None else with_field(inputs, path, after)

    return changed


def _other_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """Integers as floats, and floats as wider ones: no value is another."""
    return tensor.to(
        torch.float64 if tensor.dtype.is_floating_point and tensor.dtype != torch.float64 else torch.float32
    )


def _row_less(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor[:-1] if tensor.dim() and len(tensor) else None


_OF_A_TENSOR: tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor | None]], ...] = (
    ("of another dtype", _other_dtype),
    ("with an axis more", lambda tensor: tensor[None]),
    ("with a row less", _row_less),
)


def _tensors(part: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - any inputs
    if isinstance(part, torch.Tensor):
        yield path
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        for one in dataclasses.fields(part):
            if one.init:
                yield from _tensors(getattr(part, one.name), f"{path}.{one.name}" if path else one.name)


def field_of(inputs: Any, path: str) -> Any:  # noqa: ANN401 - any inputs
    """Return a field of a field; None where one on the way holds nothing."""
    for name in path.split("."):
        inputs = None if inputs is None else getattr(inputs, name)
    return inputs


def with_field(inputs: Any, path: str, value: object) -> Any:  # noqa: ANN401 - any inputs
    """Return inputs with another value of a field of a field."""
    name, _, rest = path.partition(".")
    inner = with_field(getattr(inputs, name), rest, value) if rest else value
    return dataclasses.replace(inputs, **{name: inner})


def place_of_last_page(
    table: Where, page_size: Callable[[AnyInputs], int], read: Callable[[AnyInputs], Sequence[int]]
) -> Callable[[AnyInputs], Place | None]:
    """Return what gives the entry of a block table that leads to the last token which a request reads.

    Parameters
    ----------
    table : Where
        The table.
    page_size : callable
        Inputs to the tokens of a page.
    read : callable
        Inputs to the tokens of each request up to the last one that is read; 0 for a request that reads none.
    """

    def place(inputs: AnyInputs) -> Place | None:
        size, width = page_size(inputs), width_of(table, inputs)
        last = [(request, (tokens - 1) // size) for request, tokens in enumerate(read(inputs)) if tokens > 0]
        return next((one for one in last if one[1] < width), None)

    return place
