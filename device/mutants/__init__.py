"""Wrong on purpose: implementations that re-create real bugs, each as a small difference from a correct one.

``wrong`` names the bug: its id in our catalogue of real bugs, and the link.

What the modules here define is found when this package is imported: a new one needs no entry anywhere.
"""

from npudiff.run.defined import implementations_below

_FOUND = implementations_below(__name__, __path__)
globals().update(_FOUND)
__all__ = sorted(_FOUND)  # noqa: PLE0605 - known when it is imported
