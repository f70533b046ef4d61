"""Operator schemas as torch_npu 2.13.0 registers them, of all operators that are simulated.

A schema is written as the dispatcher sees it, ``name[.overload](arguments) -> returns``; one that is not of the ``npu``
namespace has its own in front, as in ``atb::_npu_reshape_and_cache(...)``.
"""

from __future__ import annotations

from device.simulator.cache.schemas import SCHEMAS as CACHE
from device.simulator.fused_attention.schemas import SCHEMAS as FUSED_ATTENTION
from device.simulator.norms.schemas import SCHEMAS as NORMS
from device.simulator.rotary.schemas import SCHEMAS as ROTARY

SCHEMAS = (*FUSED_ATTENTION, *CACHE, *ROTARY, *NORMS)
"""Every schema that the simulator can define, in the order in which it defines them."""

DEFAULT_NAMESPACE = "npu"


def namespace(schema: str) -> str:
    """Return the namespace of a schema string."""
    before, separator, _ = schema.partition("(")[0].partition("::")
    return before if separator else DEFAULT_NAMESPACE


def qualified_name(schema: str) -> str:
    """Return ``name`` or ``name.overload`` of a schema string, without its namespace."""
    return schema.partition("(")[0].rpartition("::")[2]


def unqualified(schema: str) -> str:
    """Return a schema string without its namespace."""
    return schema.removeprefix(f"{namespace(schema)}::")
