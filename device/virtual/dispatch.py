"""The dispatcher's own listing: which operators have kernels for what, and the operators by their names."""

from __future__ import annotations

from typing import Any

import torch

KEY, AUTOGRAD_KEY = "PrivateUse1", "AutogradPrivateUse1"
"""Dispatch keys of the device, and of gradients on it."""
COMPOSITE_KEY = "CompositeImplicitAutograd"
"""Dispatch key of kernels for all devices."""


def registered(key: str, *namespaces: str) -> set[str]:
    """Return the operators of some namespaces that have a kernel for a dispatch key, ``namespace::name.overload``."""
    names: list[str] = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name for name in names if name.partition("::")[0] in namespaces}


def composites(*namespaces: str) -> set[str]:
    """Return the operators of some namespaces that have one kernel for all devices."""
    names = {
        schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.partition("::")[0] in namespaces
    }
    return {name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, COMPOSITE_KEY)}


def overload_of(qualified: str) -> Any | None:  # noqa: ANN401 - torch._ops.OpOverload
    """Return an operator; None for a kernel whose operator nobody has defined."""
    if not torch._C._dispatch_has_kernel(qualified):
        return None
    space, _, name = qualified.partition("::")
    packet, _, overload = name.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, space), packet), overload or "default")
    except AttributeError:
        return None
