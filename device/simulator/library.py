"""Make the operators callable: definitions where torch_npu has made none, and kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.library import Library


@dataclass(frozen=True)
class Operator:
    """One operator overload of the ``npu`` namespace.

    Attributes
    ----------
    schema : str
        The registered schema, ``name[.overload](arguments) -> returns``.
    cpu : callable
        Kernel for CPU tensors.
    meta : callable
        Kernel that gives shapes and dtypes only.
    """

    schema: str
    cpu: Callable[..., Any]
    meta: Callable[..., Any]


def install() -> None:
    """Give every simulated operator of ``torch.ops.npu`` a CPU kernel.

    Operators that do not exist yet are defined from the recorded schemas, with a Meta kernel beside the CPU
    one. Where torch_npu has been imported the operators are its own, with its own shape rules, and only CPU
    kernels are added. Idempotent. Import torch_npu before the first call, never after: it cannot define
    what exists.
    """
    _register()


@cache
def _register() -> Library:
    """Register once; the cache keeps the library alive, and with it the registrations."""
    from torch.library import Library  # noqa: PLC0415 - torch is loaded when it is needed, not on import

    from device.simulator.fused_attention import operators  # noqa: PLC0415 - the kernels too
    from device.simulator.schemas import qualified_name  # noqa: PLC0415

    library = Library("npu", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in operators.OPERATORS:
        name = qualified_name(operator.schema)
        if not _is_defined(name):
            library.define(operator.schema)  # type: ignore[no-untyped-call]
            library.impl(name, operator.meta, "Meta")  # type: ignore[no-untyped-call]
        library.impl(name, operator.cpu, "CPU")  # type: ignore[no-untyped-call]
    return library


def _is_defined(qualified_name: str) -> bool:
    """Say whether an overload exists in the ``npu`` namespace."""
    import torch  # noqa: PLC0415

    name, _, overload = qualified_name.partition(".")
    schemas = torch._C._jit_get_schemas_for_operator(f"npu::{name}")
    return any(schema.overload_name == overload for schema in schemas)
