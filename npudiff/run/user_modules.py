"""Importing what ``--impl`` names: a file, which has the modules beside it, or a module."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from npudiff.errors import UsageError
from npudiff.model.anything import AnyInputs, AnyOutputs
from npudiff.model.frames import places_of
from npudiff.model.implementation import Implementation

_INSTALLED = {"site-packages", "dist-packages"}


class Neighbours:
    """The modules beside a file, which its imports find before all others but those of the standard library.

    They do so while the file is imported and while one of its implementations is called. Another module of the same
    name, as another file may have beside it, is set aside for that time; an installed one that is imported already
    stays.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        beside = {info.name for info in pkgutil.iter_modules([self.folder])}
        self.names = beside - sys.stdlib_module_names - {"npudiff"}
        self._kept: dict[str, ModuleType] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module beside the file."""
        del path
        return importlib.machinery.PathFinder.find_spec(name, [self.folder], target) if name in self.names else None

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """Let imports find these modules first."""
        shared = {name for name in self.names if self._is_of_others(sys.modules.get(name))}
        theirs = _taken(shared)
        sys.modules.update(self._kept)
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)
            self._kept = _taken(shared)
            sys.modules.update(theirs)

    def around(self, item: Implementation) -> Implementation:
        """Return an implementation whose imports find these modules first when it is called."""
        factory = item.factory
        opens = None if factory is None else self._around(lambda: self._around(factory()), factory)
        return replace(item, function=self._around(item.function, item.function), factory=opens)

    def _around(self, function: Callable[..., Any], wrapped: Callable[..., Any] | None = None) -> Callable[..., Any]:
        # Of a class, Python 3.12 has a __type_params__ that no function takes.
        @functools.wraps(wrapped or function, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
        def call(*arguments: AnyInputs) -> AnyOutputs:
            with self.first():
                return function(*arguments)

        return call

    def _is_of_others(self, module: ModuleType | None) -> bool:
        place = os.path.realpath(getattr(module, "__file__", None) or os.devnull)
        own = place.startswith(self.folder + os.sep)
        return module is not None and not own and not _INSTALLED & set(Path(place).parts)


def _taken(tops: Collection[str]) -> dict[str, ModuleType]:
    """Take modules and all below them out of those that are imported."""
    names = [name for name in sys.modules if name.partition(".")[0] in tops] if tops else []
    return {name: sys.modules.pop(name) for name in names}


@dataclass(frozen=True)
class UserModule:
    """What ``--impl`` names, imported."""

    module: ModuleType
    neighbours: Neighbours | None = None
    """For a file, the modules beside it."""


def import_named(selector: str, option: str = "--impl") -> UserModule:
    """Import a file or a module, which an option of the command line has named.

    Raises
    ------
    UsageError
        If there is no such file, or it fails to import.
    """
    if not is_file_name(selector):
        with _failing(f"{option} {selector}"):
            return UserModule(importlib.import_module(selector))
    path = Path(selector)
    if not path.is_file():
        raise UsageError(f"{option} {path}: no such file")
    return _execute(path, path.resolve(), path.stat().st_mtime_ns, option)


def is_file_name(selector: str) -> bool:
    """Whether a selector names a file."""
    return selector.endswith(".py") or "/" in selector


def is_importable(name: str) -> bool:
    """Whether there is a module of this name, which may fail to import."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        return error.name is not None and not f"{name}.".startswith(f"{error.name}.")
    except ValueError:
        return False
    except (Exception, SystemExit):  # noqa: BLE001 - its package exists and fails to import, which the import will say
        return True


@functools.cache
def _execute(path: Path, resolved: Path, changed: int, option: str) -> UserModule:
    """Execute a file once, however often it is named, unless it changes."""
    name = f"npudiff_impl_{path.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    del changed  # part of the key only
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise UsageError(f"{option} {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    neighbours = Neighbours(resolved.parent)
    if neighbours.folder not in sys.path:
        sys.path.append(neighbours.folder)  # for what is imported neither now nor in a call: in a thread, by a method
    importlib.invalidate_caches()
    sys.modules[name] = module
    try:
        with _failing(f"{option} {path}"), neighbours.first():
            spec.loader.exec_module(module)
    except UsageError:
        del sys.modules[name]
        raise
    return UserModule(module, neighbours)


@contextlib.contextmanager
def _failing(named: str) -> Iterator[None]:
    """Say in one line why something does not import, also if it would leave the process."""
    try:
        with _staying():
            yield
    except UsageError as error:  # of the decorator
        raise UsageError(f"{named}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        where = "".join(f" ({place})" for place in places_of(error)[-1:])  # a SyntaxError says it itself
        raise UsageError(f"{named}: fails to import: {said}{where}") from error


@contextlib.contextmanager
def _staying() -> Iterator[None]:
    """Have ``os._exit`` raise, as ``sys.exit`` does: pytest would end with 0, and nothing would have been tested."""

    def leave(code: int) -> NoReturn:
        raise SystemExit(f"os._exit({code})")

    before = os._exit
    os._exit = leave  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = before
