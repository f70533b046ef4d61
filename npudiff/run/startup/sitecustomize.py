"""Found first on ``PYTHONPATH`` where :mod:`npudiff.run.on_import` has put it; Python runs it when it starts.

It only looks out for the modules that ``NPUDIFF_ON_IMPORT`` names, so that a program that imports none of them pays
nothing: it may be one of another environment, which has no npudiff.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType


class _Lookout:
    """Lets a hook replace what executes a module, when the module is imported first."""

    def __init__(self, hooks: dict[str, str]) -> None:
        self.hooks = hooks

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module as if nobody looked out for it, and hand its execution to its hook."""
        del path, target
        hook = self.hooks.pop(name, None)
        spec = None if hook is None else importlib.util.find_spec(name)
        if hook is None or spec is None or spec.loader is None:
            return None
        place, _, function = hook.partition(":")
        wrap = getattr(importlib.import_module(place), function)
        spec.loader.exec_module = wrap(spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _run_the_next() -> None:
    """Run the ``sitecustomize`` that this one stands before, if there is one."""
    here = os.path.realpath(os.path.dirname(__file__))  # noqa: PTH120 - pathlib would be imported by every program
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != here]  # so that each runs once
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _Lookout(dict(hook.split("=") for hook in os.environ.get("NPUDIFF_ON_IMPORT", "").split())))
_run_the_next()
