"""Hooks on the import of a module, in all Python processes of a program that somebody else wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

VARIABLE = "NPUDIFF_ON_IMPORT"
STARTUP = Path(__file__).parent / "startup"
"""Folder of the ``sitecustomize`` that installs the hooks."""

Execute = Callable[[ModuleType], None]
"""What executes a module that is being imported; a hook takes one and returns one."""


def hooked(environment: Mapping[str, str], hooks: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which hooks are called when modules are imported.

    Parameters
    ----------
    environment : mapping
        That of the program without them; hooks that it has already stay.
    hooks : mapping
        Name of a module to the place of its hook, ``package.module:function``. The hook's module must not import the
        module that it is called for.
    """
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(STARTUP)]
    inherited = _hooks(environment)
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join([str(STARTUP), *paths]),
        VARIABLE: " ".join(f"{name}={place}" for name, place in {**inherited, **hooks}.items()),
    }


def is_hooked(environment: Mapping[str, str], name: str) -> bool:
    """Whether the import of a module is hooked in an environment."""
    return name in _hooks(environment)


def _hooks(environment: Mapping[str, str]) -> dict[str, str]:
    return dict(hook.split("=") for hook in environment.get(VARIABLE, "").split())
