"""Whether an adapter fits the version of a backend that it calls: what is raised in its own lines says if not.

An adapter is written for names and signatures. Where a checkout has others, Python raises in the line of the adapter
that calls it, and nothing of the backend has run. What the backend raises itself is a finding, whatever its type is.
"""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import CodeType, ModuleType, TracebackType

_BETWEEN = frozenset({"torch", "functools", "contextlib", "dataclasses", "unittest"})
"""Packages through which a call may go: ``Module.__call__``, a decorator, ``replace``, ``mock.patch.object``."""

_ARGUMENTS = re.compile(
    r"\(\) (got an unexpected keyword argument|got multiple values for |got some positional-only arguments"
    r"|missing \d+ required |takes .*argument)|\(\) takes no arguments$"
)
"""What Python says of a call whose arguments the function does not have."""

_OWN = "npudiff"
"""Package of what is the same in every version of a backend."""

_METHODS_BY_ATTRIBUTE = (3, 12)
"""From this version on, a method that is called is looked up by the instruction of other attributes, which says so."""


def misfit(error: BaseException, package: str) -> str:
    """Return how an adapter does not fit what it calls; an empty text where the error says nothing of that.

    Parameters
    ----------
    error : BaseException
        What a call of the adapter raised.
    package : str
        Package whose modules are adapters.
    """
    places = list(_places(error.__traceback__))
    own = [place for place in places if _package(place) not in _BETWEEN]
    if not own or not f"{_module(own[-1])}.".startswith(f"{package}."):
        return ""
    if isinstance(error, TypeError):
        said = _ARGUMENTS.search(str(error)) is not None
    elif isinstance(error, AttributeError):
        said = _package(places[-1]) == "unittest" or _lacks(error, own[-1])
    else:
        said = False
    return f"not applicable to this checkout: {error}" if said else ""


def _places(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _module(place: TracebackType) -> str:
    return str(place.tb_frame.f_globals.get("__name__", ""))


def _package(place: TracebackType) -> str:
    return _module(place).partition(".")[0]


def _lacks(error: AttributeError, place: TracebackType) -> bool:
    """Whether a module, a class or a declared type lacks a name, or an object a method that is called.

    An attribute that a method should have set, or the answer that a function did not give, is the backend's own matter.
    """
    owner = error.obj
    called = _calls(place.tb_frame.f_code, place.tb_lasti)
    if owner is None:
        return error.name is None and called  # a ``__getattr__`` raised it; else it is None that has no such name
    kind = owner if isinstance(owner, type) else type(owner)
    if kind.__module__.partition(".")[0] == _OWN:
        return False  # inputs of a case
    declared = is_dataclass(owner) or (isinstance(owner, tuple) and hasattr(owner, "_fields"))
    return isinstance(owner, ModuleType | type) or declared or called


def _calls(code: CodeType, offset: int) -> bool:
    """Whether the instruction at an offset looks up a method to call it."""
    found = next((one for one in dis.get_instructions(code) if one.offset == offset), None)
    if found is None:
        return False
    if sys.version_info >= _METHODS_BY_ATTRIBUTE:
        return found.opname == "LOAD_ATTR" and bool((found.arg or 0) & 1)
    return found.opname == "LOAD_METHOD"
