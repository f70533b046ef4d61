"""Which operators a call dispatches: whether what claims to be a kernel of a device is one.

What is launched past torch's dispatcher, as Triton does, is not seen, so nothing here is a verdict.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from npudiff.model.backend import is_backend
from npudiff.model.implementation import Implementation, Target
from npudiff.text import counted

ON_HOST = " (host)"
"""Behind the name of an operator that gave tensors of the host only, where the target is something else."""

_PLAIN = ("aten", "prim", "prims", "prim_like")
"""Namespaces that torch itself has."""

MOST_SHOWN = 4


class OperatorWatch(TorchDispatchMode):
    """Counts the operators that are dispatched while it is entered; what they call in turn is not counted.

    Attributes
    ----------
    operators : collections.Counter
        Name of an operator, ``aten::mul``, to how often it was called.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch has to keep its compiler out of here: it would import it for that, which takes two seconds."""
        return "torch._dynamo" in sys.modules

    def __init__(self, target: Target) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: Counter[str] = Counter()
        self._on_host = target.device == "cpu"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Count an operator, and run it."""
        result = func(*args, **(kwargs or {}))
        host = not self._on_host and {tensor.device.type for tensor in tensors_in(result)} == {"cpu"}
        self.operators[f"{func.namespace}::{func._opname}{ON_HOST if host else ''}"] += 1
        return result


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Yield the tensors of an argument, a result, or (nested) dataclasses of inputs, in their order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def doubts(item: Implementation, operators: Mapping[str, int] | None) -> list[str]:
    """Return why an implementation may not be what it says, a line each; none where nobody has looked.

    Parameters
    ----------
    item : Implementation
        The implementation.
    operators : mapping or None
        What its first call dispatched.
    """
    if operators is None or "triton" in sys.modules or is_backend(item.selector):  # whose plain ways are meant so
        return []
    if operators and all(name.endswith(ON_HOST) for name in operators):
        return [f"computes on the host: {_shown(operators)}"]
    plain = all(name.partition("::")[0] in _PLAIN for name in operators)
    if item.on_device and plain:
        seen = _shown(operators) if operators else "none of torch at all"
        return [f"says on_device=True, and runs no operator of a device: {seen}"]
    return []


def _shown(operators: Mapping[str, int]) -> str:
    names = sorted(operators, key=lambda name: -operators[name])
    more = f" and {counted(len(names) - MOST_SHOWN, 'other')}" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more
