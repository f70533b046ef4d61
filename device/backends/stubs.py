"""Stand-ins for packages that a backend imports and that are not here: CUDA kernels, tokenisers, image readers.

Only packages of a list are stood in for, and only where they are not installed. A stand-in can be imported, inherited
from and looked at; what is called of it while a module is being imported returns another stand-in, as decorators do,
and raises otherwise. How many of its names were touched is counted.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from abc import ABCMeta
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any

VERSION = "99.0"
"""Version of a stand-in: new enough for whoever asks for a minimum."""


class StubCalled(RuntimeError):
    """A backend called something that only stands in for a package that is not here."""


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for packages.

    Parameters
    ----------
    missing : collection of str
        Top-level packages that are stood in for where they are not installed.
    always : collection of str
        Those that are stood in for even if they are, since they fail late without hardware.
    absent : collection of str
        Modules of these packages that are not found, where the backend takes another way without them.
    """

    def __init__(self, missing: Collection[str], always: Collection[str] = (), absent: Collection[str] = ()) -> None:
        self._absent = frozenset(absent)
        self._names = {name for name in missing if importlib.util.find_spec(name) is None} | set(always)
        self._touched: Counter[str] = Counter()
        self._importing = False

    def standing_in_for(self, package: str) -> bool:
        """Whether a package is not here."""
        return package in self._names

    @property
    def touched(self) -> Mapping[str, int]:
        """How many names of each package were looked up."""
        return dict(sorted(self._touched.items()))

    def install(self) -> None:
        """Let imports find stand-ins, before all else, and forget what was imported under their names."""
        for name in [one for one in sys.modules if one.partition(".")[0] in self._names]:
            del sys.modules[name]
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a stand-in, or any module below one."""
        del path, target
        if fullname.partition(".")[0] not in self._names or fullname in self._absent:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Make the stand-in of a module."""
        return StubModule(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is executed."""

    def named(self, name: str) -> object:
        """Return the stand-in for what a module has under a dotted name."""
        self._touched[name.partition(".")[0]] += 1
        return _class_named(name, self) if name.rpartition(".")[2][:1].isupper() else _Value(name, self)

    def called(self, name: str) -> object:
        """Return what a call of a stand-in gives.

        Raises
        ------
        StubCalled
            If no module is being imported.
        """
        if not _is_importing():
            raise StubCalled(f"{name} was called, whose package is not installed and only stood in for")
        return self.named(f"{name}()")


def _is_importing() -> bool:
    """Whether an import is under way: whether one of Python's own frames that execute a module is among the callers."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


class StubModule(ModuleType):
    """A module in which everything is found."""

    __version__ = VERSION

    def __init__(self, name: str, stubs: Stubs) -> None:
        super().__init__(name, "Stands in for a package that is not installed.")
        self.__path__ = []
        self._npudiff_stubs = stubs

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of any module
        if name.startswith("__"):
            raise AttributeError(name)
        return self._npudiff_stubs.named(f"{self.__name__}.{name}")


class _Value:
    """A function, a constant, or whatever a module has in small letters."""

    def __init__(self, name: str, stubs: Stubs) -> None:
        self._npudiff_name, self._npudiff_stubs = name, stubs

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of any object
        if name.startswith("__"):
            raise AttributeError(name)
        return self._npudiff_stubs.named(f"{self._npudiff_name}.{name}")

    def __call__(self, *arguments: object, **named: object) -> object:
        if len(arguments) == 1 and not named and callable(arguments[0]):
            return arguments[0]  # a decorator
        return self._npudiff_stubs.called(self._npudiff_name)

    def __repr__(self) -> str:
        return f"<stand-in for {self._npudiff_name}>"


class _Kind(ABCMeta):
    """The class of a stand-in for a class: it has every attribute, as an enumeration does."""

    def __getattr__(cls, name: str) -> Any:  # noqa: ANN401 - of any class
        if name.startswith("_"):
            raise AttributeError(name)
        return cls.npudiff_stubs.named(f"{cls.npudiff_name}.{name}")


def _class_named(name: str, stubs: Stubs) -> type:
    """Make a class that can be inherited from, asked for by ``isinstance``, and named in annotations."""

    def refused(*arguments: object, **named: object) -> None:
        del arguments, named
        stubs.called(name)

    def schema(source: object, handler: object) -> Any:  # noqa: ANN401 - pydantic's
        del source, handler
        from pydantic_core import core_schema  # noqa: PLC0415 - of a backend that has pydantic

        return core_schema.any_schema()

    given = {"__init__": refused, "__get_pydantic_core_schema__": staticmethod(schema)}
    return _Kind(name.rpartition(".")[2], (), {**given, "npudiff_name": name, "npudiff_stubs": stubs})
