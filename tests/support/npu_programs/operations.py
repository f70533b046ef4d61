"""The register of operations, by name."""

from __future__ import annotations

from collections.abc import Callable

from npu_programs.choices import Act, Choices

Operation = Callable[[Choices], Act]

OPERATIONS: dict[str, Operation] = {}
FAMILIES: dict[str, str] = {}
"""The module of each operation."""


def operation(function: Operation) -> Operation:
    """Register an operation under the name of its function."""
    return named(function.__name__, function)


def named(name: str, function: Operation) -> Operation:
    if name in OPERATIONS:
        raise ValueError(f"two operations {name}")
    OPERATIONS[name] = function
    FAMILIES[name] = function.__module__.rpartition(".")[2]
    return function
