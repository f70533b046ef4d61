"""Make the operators callable: definitions where torch_npu has made none, and kernels."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from npudiff.device.simulator.schemas import namespace, qualified_name, unqualified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.library import Library


@dataclass(frozen=True)
class Operator:
    """One operator overload of the ``npu`` namespace."""

    schema: str
    """The registered schema, ``name[.overload](arguments) -> returns``."""
    cpu: Callable[..., Any]
    """Kernel for CPU tensors."""
    meta: Callable[..., Any]
    """Kernel that gives shapes and dtypes only."""
    formatted: tuple[str, ...] = ()
    """Arguments whose storage format the kernel looks at. It takes all others as their bytes lie."""


def install() -> None:
    """Give every simulated operator of ``torch.ops.npu`` a CPU kernel.

    Operators that do not exist yet are defined from the recorded schemas, with a Meta kernel beside the CPU
    one. Where torch_npu has been imported the operators are its own, with its own shape rules, and only CPU
    kernels are added. Idempotent. Import torch_npu, and sgl-kernel-npu's package, before the first call, never
    after: they cannot define what exists.
    """
    _register()


FAMILIES = ("fused_attention", "cache", "rotary", "norms", "mla", "activation", "quantisation", "moe", "grouped_matmul")
"""The packages beside this module that define operators, each in ``operators.OPERATORS``."""


def operators() -> Iterator[Operator]:
    """Yield every simulated operator; imports the kernels, and torch with them."""
    for family in FAMILIES:
        yield from importlib.import_module(f"npudiff.device.simulator.{family}.operators").OPERATORS


@cache
def _register() -> dict[str, Library]:
    """Register once; the cache keeps the libraries alive, and with them the registrations."""
    from torch.library import Library  # noqa: PLC0415 - torch is loaded when it is needed, not on import

    libraries: dict[str, Library] = {}
    for operator in operators():
        space, name = namespace(operator.schema), qualified_name(operator.schema)
        if space not in libraries:
            libraries[space] = Library(space, "FRAGMENT")  # type: ignore[no-untyped-call]
        library = libraries[space]
        if not _is_defined(space, name):
            library.define(unqualified(operator.schema))  # type: ignore[no-untyped-call]
            library.impl(name, operator.meta, "Meta")  # type: ignore[no-untyped-call]
        library.impl(name, operator.cpu, "CPU")  # type: ignore[no-untyped-call]
    return libraries


def _is_defined(space: str, qualified: str) -> bool:
    """Say whether an overload exists in a namespace."""
    import torch  # noqa: PLC0415

    name, _, overload = qualified.partition(".")
    schemas = torch._C._jit_get_schemas_for_operator(f"{space}::{name}")
    return any(schema.overload_name == overload for schema in schemas)
