"""Mutants that are a class of a correct implementation with one step of it overridden."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from npudiff import Implementation, Target, mutant
from npudiff.model.constraints import Box
from npudiff.model.implementation import snake_case

InputsT = TypeVar("InputsT")
OutputsT = TypeVar("OutputsT")
OutputT_co = TypeVar("OutputT_co", covariant=True)


class Runs(Protocol[OutputT_co]):
    """What computes a case."""

    def run(self) -> OutputT_co:
        """Return the outputs."""


def class_mutant(
    of: Implementation[InputsT, OutputsT],
    bug: str,
    *,
    name: str | None = None,
    supports: Box | Sequence[Box] | None = None,
) -> Callable[[Callable[[InputsT, Target], Runs[OutputsT]]], Implementation[InputsT, OutputsT]]:
    """Turn a class, of which an object runs one case, into a mutant with its name in small letters; see ``mutant``."""

    def decorate(kind: Callable[[InputsT, Target], Runs[OutputsT]]) -> Implementation[InputsT, OutputsT]:
        def function(inputs: InputsT, target: Target) -> OutputsT:
            return kind(inputs, target).run()

        function.__doc__, function.__module__ = kind.__doc__, kind.__module__
        return mutant(of, bug, name=name or snake_case(kind.__name__), supports=supports)(function)

    return decorate
