"""What a forward pass knows."""

import contextlib
from types import SimpleNamespace

_CONTEXTS = []


class ForwardContext(SimpleNamespace):
    """The attention of a pass."""


@contextlib.contextmanager
def forward_context(context, *, forward_batch=None):
    """Be in a pass."""
    _CONTEXTS.append(context)
    try:
        yield
    finally:
        _CONTEXTS.pop()


def get_attn_backend():
    """The attention of the pass."""
    return _CONTEXTS[-1].attn_backend
