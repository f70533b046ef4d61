"""Where an implementation is written: the file and line that a finding is shown at."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npudiff.model.implementation import Implementation


@dataclass(frozen=True)
class SourceLocation:
    """A line of a file."""

    path: str
    """Relative to the folder of the repository, or of the run, with ``/``."""
    line: int
    """From 1."""


def source_location_of(item: Implementation, root: Path) -> SourceLocation | None:
    """Return where an implementation is written, or None if that is in no file.

    What is not below the root, being installed, has the path that its module has in its package.
    """
    function = _inner(item.function)
    file = file_of(function)
    if file is None:
        return None
    line = max(1, function.__code__.co_firstlineno)
    if file.is_relative_to(root.resolve()):
        return SourceLocation(file.relative_to(root.resolve()).as_posix(), line)
    package = "/__init__" if file.name == "__init__.py" else ""
    return SourceLocation(f"{function.__module__.replace('.', '/')}{package}.py", line)


def file_of(function: Callable[..., Any] | None) -> Path | None:
    """Return the file in which a function is written."""
    code = getattr(_inner(function), "__code__", None)
    if code is None or not Path(code.co_filename).is_file():
        return None
    return Path(code.co_filename).resolve()


def _inner(function: Any) -> Any:  # noqa: ANN401 - whatever is called
    """What decorators and partials are around."""
    while hasattr(function, "func"):
        function = function.func
    return inspect.unwrap(function) if callable(function) else function


def root_of_files() -> Path:
    """Return the folder that files are named relative to: that of the repository around this folder, or this one."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)
