"""Adapters: one call path each, with the operators and arguments that a production backend uses.

Every adapter is an implementation of its own, and runs unchanged on every target.

What the modules here define is found when this package is imported: a new one needs no entry anywhere.
"""

from npudiff.run.defined import implementations_below

_FOUND = implementations_below(__name__, __path__)
globals().update(_FOUND)
__all__ = sorted(_FOUND)  # noqa: PLE0605 - known when it is imported
