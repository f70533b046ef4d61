"""Mutants that keep a tensor of their first call: right by themselves, and wrong where a graph holds them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from npudiff import Implementation, Target
from npudiff.model.implementation import ImplementationFunction, InputsT, OutputsT


def keeping(of: Implementation[InputsT, OutputsT], *names: str) -> ImplementationFunction[InputsT, OutputsT]:
    """Return a function that gives a correct implementation copies of tensors that the first call had.

    A dummy run makes the copies, so that a graph which is captured after it reads them, and not what comes later.

    Parameters
    ----------
    of : Implementation
        The correct implementation.
    names : str
        Tensors of its inputs.
    """
    kept: dict[str, Any] = {}

    def function(inputs: InputsT, target: Target) -> OutputsT:
        for name in names:
            tensor = getattr(inputs, name)
            if name not in kept:
                kept[name] = None if tensor is None else tensor.clone()
        return of(replace(inputs, **kept), target)  # type: ignore[type-var]

    return function
