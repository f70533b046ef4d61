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
from typing import Any


class _Lookout:
    """Lets a hook replace what executes a module, when the module is imported first."""

    def __init__(self, hooks: dict[str, str]) -> None:
        self.hooks = hooks
        self._asks_others: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module as if nobody looked out for it, and hand its execution to its hook.

        Who only asks where a module is executes nothing: the hook waits for the import.
        """
        del path, target
        if name not in self.hooks or name in self._asks_others:
            return None
        self._asks_others.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asks_others.discard(name)
        if spec is not None and spec.loader is not None:
            self._hook(name, spec.loader)
        return spec

    def _hook(self, name: str, loader: Any) -> None:  # noqa: ANN401 - two of its methods are replaced
        """Have a loader call the hook when it makes the module, before the module counts as imported."""
        create = loader.create_module

        def create_hooked(spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
            hook = self.hooks.pop(name, None)
            if hook is not None:  # else it was found before, and made
                place, _, function = hook.partition(":")
                loader.exec_module = getattr(importlib.import_module(place), function)(loader.exec_module)
            made: ModuleType | None = create(spec)
            return made

        loader.create_module = create_hooked


def _run_the_next() -> None:
    """Run the ``sitecustomize`` that this one stands before, if there is one."""
    here = os.path.realpath(os.path.dirname(__file__))  # noqa: PTH120 - pathlib would be imported by every program
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != here]  # so that each runs once
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _Lookout(dict(hook.split("=") for hook in os.environ.get("NPUDIFF_ON_IMPORT", "").split())))
_run_the_next()
