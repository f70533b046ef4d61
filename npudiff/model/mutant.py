"""Mutants: implementations that are wrong on purpose, each by a small difference from a correct one."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from npudiff.model.constraints import Box, Constraints
from npudiff.model.implementation import (
    Implementation,
    ImplementationFunction,
    InputsT,
    OutputsT,
    implementation,
    refuse_unknown,
)
from npudiff.model.target import Target

_REPORT = re.compile(r"(?<![\w./-])[\w.-]+/[\w.-]+/(?:issues|pull)/\d+")
"""A report on GitHub, as its address has it behind the host."""

_ANY = inspect.Parameter.POSITIONAL_OR_KEYWORD


@overload
def mutant(
    of: Implementation[InputsT, OutputsT],
    bug: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    stateful: Literal[False] = False,
) -> Callable[[ImplementationFunction[InputsT, OutputsT]], Implementation[InputsT, OutputsT]]: ...


@overload
def mutant(
    of: Implementation[InputsT, OutputsT],
    bug: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    stateful: Literal[True],
) -> Callable[[Callable[[], ImplementationFunction[InputsT, OutputsT]]], Implementation[InputsT, OutputsT]]: ...


def mutant(
    of: Implementation,
    bug: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    stateful: bool = False,
    **unknown: object,
) -> Callable[[Callable[..., Any]], Implementation]:
    """Turn a function into a mutant: an implementation that re-creates a bug, and that a run is expected to find.

    Its component, what it supports, and whether its inputs are on the device are those of the correct implementation.

    Parameters
    ----------
    of : Implementation
        The correct implementation that it is made from, in whose place ``npudiff score --suite`` puts it.
    bug : str
        ``where it was reported: what is wrong``. A report on GitHub may be written ``owner/repository/pull/1`` or
        ``owner/repository/issues/1``; whoever reads it sees the whole link.
    name : str, optional
        Name in listings; that of the function by default.
    supports : mapping or sequence of mappings, optional
        Where the bug shows, within what ``of`` supports; everywhere by default.
    stateful : bool, optional
        As for ``npudiff.implementation``.

    Raises
    ------
    ValueError
        If ``of`` supports no case of ``supports``.

    Examples
    --------
    >>> import npudiff
    >>> @npudiff.mutant(mine, "you/kernels/issues/7: the last row is not written", supports={"batch": range(2, 9)})
    ... def last_row_missing(inputs, target):
    ...     return mine(inputs, target)[:-1]
    """
    refuse_unknown("npudiff.mutant", unknown)
    return _made(of, bug, name, supports, on_device=of.on_device, stateful=stateful)


def perturbed(
    of: Implementation[InputsT, OutputsT], bug: str, *, supports: Box | Sequence[Box] | None = None
) -> Callable[[Callable[[InputsT], InputsT]], Implementation[InputsT, OutputsT]]:
    """Turn a function of inputs into a mutant that gives a correct implementation other inputs; see ``mutant``.

    Inputs are on the host, as those of ``of`` are before it moves them.

    Examples
    --------
    >>> import dataclasses, npudiff
    >>> @npudiff.perturbed(mine, "you/kernels/issues/8: the window does not arrive", supports={"window": (64,)})
    ... def without_window(inputs):
    ...     return dataclasses.replace(inputs, window=None)
    """

    def decorate(perturb: Callable[[InputsT], InputsT]) -> Implementation[InputsT, OutputsT]:
        @functools.wraps(perturb)
        def function(inputs: InputsT, target: Target) -> OutputsT:
            return of(perturb(inputs), target)

        # What it is written as takes inputs only; whoever asks for a signature asks how it is called.
        vars(function)["__signature__"] = inspect.Signature(
            [inspect.Parameter(name, _ANY) for name in ("inputs", "target")]
        )
        return _made(of, bug, None, supports, on_device=False)(function)

    return decorate


def _made(
    of: Implementation,
    bug: str,
    name: str | None,
    supports: Box | Sequence[Box] | None,
    *,
    on_device: bool,
    stateful: bool = False,
) -> Callable[[Callable[..., Any]], Implementation]:
    constraints = of.constraints if supports is None else Constraints.of(supports).within(of.constraints)
    if not constraints:
        raise ValueError(f"a mutant of {of.component}.{of.name}: that supports no case of {supports}")
    given: dict[str, Any] = {"wrong": with_links(bug), "mutant_of": of.name, "stateful": stateful}
    return implementation(of.component, name=name, supports=constraints.boxes, on_device=on_device, **given)


def with_links(text: str) -> str:
    """Return a text in which every report on GitHub has its whole address."""
    return _REPORT.sub(lambda found: f"https://github.com/{found.group()}", text)
