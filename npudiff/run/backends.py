"""Backends that a run names: found through entry points, imported once, with the implementations that call them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import logging
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

from npudiff.errors import UsageError, unknown
from npudiff.model.backend import Backend, Booted, Wish, wished
from npudiff.model.implementation import Implementation
from npudiff.run.defined import implementations_in


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group="npudiff.backends")}


def backend_names() -> list[str]:
    """Return the names of all backends, without importing them."""
    return sorted(_entry_points())


def load_backend(name: str) -> Backend:
    """Return what is known of a backend, which is not imported.

    Raises
    ------
    UsageError
        If there is none of this name.
    """
    points = _entry_points()
    if name not in points:
        raise unknown("backend", name, points)
    backend = points[name].load()
    if not isinstance(backend, Backend):
        raise UsageError(f"entry point {name!r} of npudiff.backends is no Backend")
    return backend


@dataclass(frozen=True)
class Room:
    """What a process has of a backend: the backend itself, and the implementations that call it."""

    booted: Booted
    implementations: tuple[Implementation, ...]
    left_out: Mapping[str, str]
    """Modules of implementations that do not import beside this version of it, and why."""


_rooms: dict[str, tuple[Wish, Room]] = {}
"""By name of a backend: a process can import one version of it."""


def room_of(wish: Wish) -> Room:
    """Import a backend and the implementations that call it, once in a process, which has its device by now.

    Raises
    ------
    BackendUnavailable
        If it cannot be imported here.
    UsageError
        If there is no such backend, or this process has another version of it.
    """
    if wish.name in _rooms:
        earlier, room = _rooms[wish.name]
        if earlier != wish:
            raise UsageError(f"--backend {wish.option}: this process has imported {earlier.option} already")
        return room
    backend = load_backend(wish.name)
    with _device_stays_closed():
        booted = backend.boot(wish.checkout)
        package = importlib.import_module(backend.implementations)
        found, left_out = _adapters_of(package, f"not applicable to {wish.name} {booted.version}")
    named = wish.selector
    chosen = tuple(
        replace(item, origin=named, selector=named, absent=backend.absent, adapters=backend.implementations)
        for item in found
    )
    _hush()
    room = Room(booted, tuple(_beside(chosen)), left_out)
    _rooms[wish.name] = wish, room
    return room


def _adapters_of(package: ModuleType, lacking: str) -> tuple[list[Implementation], dict[str, str]]:
    """Import the modules of a package; return the implementations in them, and why some modules do not import."""
    found, left_out = list[Implementation](), dict[str, str]()
    for info in pkgutil.iter_modules(package.__path__):
        try:
            module = importlib.import_module(f"{package.__name__}.{info.name}")
        except (ImportError, AttributeError, TypeError, RuntimeError) as error:  # a base class, a device
            left_out[info.name] = f"{lacking}: {error}"
            continue
        found += [item for item in implementations_in(module) if item.origin == module.__name__]
    return found, left_out


class DeviceClosed(RuntimeError):
    """Something opens the device while modules are imported."""


@contextlib.contextmanager
def _device_stays_closed() -> Iterator[None]:
    """Refuse to open the device for a while: what is forked later could not use it.

    Some modules of backends ask for its properties where they are imported, and go on without.
    """
    npu = getattr(sys.modules.get("torch_npu"), "npu", None)
    opens = getattr(npu, "_lazy_init", None)
    if npu is None or opens is None or npu.is_initialized():
        yield
        return

    def refuse() -> None:
        raise DeviceClosed("a device is not opened while modules are imported: processes that are forked need it")

    npu._lazy_init = refuse
    try:
        yield
    finally:
        npu._lazy_init = opens


class _OfAKind(logging.Filter):
    """Lets one message of a kind pass: what a backend says of every shape is said of hundreds here."""

    def __init__(self) -> None:
        super().__init__()
        self._said = set[tuple[str, int, str]]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether no message has been said yet that differs in numbers only."""
        kind = (record.name, record.levelno, re.sub(r"\d+", "0", str(record.msg)))
        new = kind not in self._said
        self._said.add(kind)
        return new


def _hush() -> None:
    """Let whatever writes messages of a backend write one of a kind."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = {handler for one in loggers if isinstance(one, logging.Logger) for handler in one.handlers}
    for handler in (*handlers, logging.lastResort):
        if handler is not None and not any(isinstance(one, _OfAKind) for one in handler.filters):
            handler.addFilter(_OfAKind())


def _beside(items: Sequence[Implementation]) -> Iterator[Implementation]:
    """Yield implementations, each with the others of its component."""
    for item in items:
        others = tuple(one for one in items if one is not item and one.component == item.component)
        yield replace(item, others=others)


def from_backend(selector: str) -> list[Implementation]:
    """Return the implementations that call a backend, which is imported for it."""
    (wish,) = wished([selector])
    return list(room_of(wish).implementations)
