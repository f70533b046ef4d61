"""Where an implementation raised: the frames of a traceback that are of its own code."""

from __future__ import annotations

import functools
import itertools
import re
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

from npudiff.text import clipped, printable

MOST_FRAMES = 8
"""Frames that are told, the innermost ones."""

MOST_READ = 200
"""Frames that are looked at, the innermost ones."""

MOST_LETTERS = 200
"""Of a frame, as text."""

_NPUDIFF = Path(__file__).resolve().parents[1]
_INSIDE = {(_NPUDIFF / "device" / room).resolve() for room in ("simulator", "virtual")}
"""What stands for a card: whoever calls an operator is not helped by where it is refused."""
_ROOMS = {(_NPUDIFF / room).resolve() for room in ("device", "properties")}
"""What npudiff has that an implementation may be in: adapters, and what components share with them."""

_CALL = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+) in (?P<function>\S+)')
"""A call in a stack of faulthandler."""

_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
_PACKAGES = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
_NOBODYS = ("torch", "torch_npu", "hypothesis", "_pytest", "pluggy")
"""Packages whose frames say nothing about an implementation."""


def frames_of(error: BaseException) -> tuple[str, ...]:
    """Return the frames of the code that raised, the call first: ``kernels.py:12 in scale: return states[7]``.

    What npudiff did to call it, and what torch and the standard library do inside of it, is left out. None where they
    cannot be read: the code has names of files that are none, or has taken the folder away from under its process.
    """
    return _told(error, _as_text)[-MOST_FRAMES:]


def places_of(error: BaseException) -> tuple[str, ...]:
    """Return file and line of the same frames: ``kernels.py:12``."""
    return _told(error, lambda frame: _place(frame.filename, frame.lineno))


def place_here() -> str:
    """Return file and line of the innermost frame of own code that is running now; empty if there is none."""
    try:
        calls = itertools.islice(traceback.walk_stack(None), MOST_READ)  # it is asked for each tensor of a call
        return next(
            (_place(frame.f_code.co_filename, line) for frame, line in calls if _is_own(frame.f_code.co_filename)), ""
        )
    except Exception:  # noqa: BLE001 - it is foreign code
        return ""


def frames_of_stack(stack: str) -> tuple[str, ...]:
    """Return the same of a process that has died, or hangs, from what faulthandler wrote, the innermost call first."""
    try:
        calls = [(one["file"], int(one["line"]), one["function"]) for one in _CALL.finditer(stack)][:MOST_READ]
        inner = itertools.dropwhile(lambda call: not _is_own(call[0]), calls)
        own = [one for one in itertools.takewhile(lambda call: not _is_caller(call[0]), inner) if _is_own(one[0])]
        frames = [traceback.FrameSummary(file, line, function) for file, line, function in own[:MOST_FRAMES]]
        return tuple(_as_text(frame) for frame in reversed(frames))
    except Exception:  # noqa: BLE001 - it is foreign code
        return ()


def innermost_of_stack(stack: str) -> str:
    """Return the innermost call of what faulthandler wrote: function, file and line; empty if there is none."""
    call = _CALL.search(stack)
    return f"{call['function']} ({Path(call['file']).name}:{call['line']})" if call else ""


def _told(error: BaseException, said: Callable[[traceback.FrameSummary], str]) -> tuple[str, ...]:
    try:
        trace = traceback.extract_tb(error.__traceback__, limit=-MOST_READ)
        return tuple(said(frame) for frame in trace if _is_own(frame.filename))
    except Exception:  # noqa: BLE001 - it is foreign code, and the exception is worth more than where it came from
        return ()


def frames_as_sent(sent: object) -> tuple[str, ...]:
    """Return frames that another process has sent, which may send anything."""
    lines = [one for one in sent if isinstance(one, str)] if isinstance(sent, list | tuple) else []
    return tuple(_clipped(one) for one in lines[-MOST_FRAMES:])


@functools.lru_cache(4096)
def _is_own(name: str) -> bool:
    """Whether code in a file is what an implementation consists of."""
    file = Path(name)
    if not file.is_absolute():
        return not file.name.startswith("<frozen")  # made from text
    file = file.resolve()
    if any(file.is_relative_to(room) for room in _ROOMS):
        return not any(file.is_relative_to(room) for room in _INSIDE)
    if file.is_relative_to(_NPUDIFF):
        return False
    package = next((file.relative_to(one).parts[0] for one in _PACKAGES if file.is_relative_to(one)), None)
    if package is not None:
        return package not in _NOBODYS
    return not file.is_relative_to(_LIBRARY)


def _is_caller(name: str) -> bool:
    """Whether code in a file is what calls implementations: what is above it in a stack was there before."""
    file = Path(name).resolve()
    return file.is_relative_to(_NPUDIFF) and not any(file.is_relative_to(room) for room in _ROOMS)


def _as_text(frame: traceback.FrameSummary) -> str:
    place = _place(frame.filename, frame.lineno)
    return _clipped(f"{place} in {frame.name}: {frame.line or ''}".rstrip(": "))


def _place(name: str, line: int | None) -> str:
    """File and line, as seen from here, or from where packages are."""
    file = Path(name)
    seen = (file.relative_to(root) for root in (Path.cwd(), *_PACKAGES) if file.is_relative_to(root))
    return f"{next(seen, file)}:{line}"


def _clipped(text: str) -> str:
    return clipped(printable(text[: 4 * MOST_LETTERS]), MOST_LETTERS)
