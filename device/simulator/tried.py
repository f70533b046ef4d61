"""Whether an operator is tried for its shapes: the values of its tensors are not there yet, and say nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_TRIED = ContextVar("npudiff_operator_is_tried", default=False)


def values_are_there() -> bool:
    """Whether what tensors hold may be looked at: not where a graph captures an operator."""
    return not _TRIED.get()


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Let operators be tried: what they say of values of tensors is left for the run."""
    token = _TRIED.set(True)
    try:
        yield
    finally:
        _TRIED.reset(token)
