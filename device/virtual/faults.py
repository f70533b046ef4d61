"""Faults on request, for tests of everything above the device: lost devices, hangs, exhausted memory, wrong values.

A fault is one line of text, ``OPERATOR:WHAT`` or ``OPERATOR:WHAT@CALL``::

    npu_swiglu:507015@3     the third call fails with this error, and so does everything on the device from then on
    aten::mm:hang           the first call does not return
    *:memory@10             the tenth call of any operator fails, since the device has no memory left
    npu_rms_norm:value      the first call returns one wrong element

An operator is named with or without its namespace and overload; of a graph, its calls are those of replays. Several
faults are separated by commas, in the variable ``NPUDIFF_VIRTUAL_FAULTS`` of a process or in :func:`injected`.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

VARIABLE = "NPUDIFF_VIRTUAL_FAULTS"

_WRITTEN = re.compile(r"(?P<operator>\*|[\w:.]+?):(?P<what>\d{6}|hang|memory|value)(?:@(?P<call>[1-9]\d*))?")
_MORE_THAN_THERE_IS = 1 << 50


@dataclass
class Fault:
    """What is to happen to one call of an operator."""

    operator: str
    """A name, with or without namespace and overload, or ``*`` for any."""
    what: str
    """``hang``, ``memory``, ``value``, or the number of an error after which the device is lost."""
    call: int = 1
    """Which call of this operator, from 1."""
    _seen: int = field(default=0, repr=False)

    def strikes(self, operator: str) -> bool:
        """Count a call, and say whether it is the one."""
        space, _, rest = operator.rpartition("::")
        name = rest.partition(".")[0]
        if self.operator not in ("*", operator, rest, name, f"{space}::{name}"):
            return False
        self._seen += 1
        return self._seen == self.call


class _State:
    """Faults that wait, and the runtime in which devices are lost."""

    def __init__(self) -> None:
        self.runtime: ctypes.CDLL | None = None
        self.waiting: list[Fault] = []
        self.lost = False
        self.struck: Fault | None = None


_state = _State()


def parse(text: str) -> list[Fault]:
    """Read faults.

    Raises
    ------
    ValueError
        If one is not written as above.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _WRITTEN.fullmatch(part)
        if match is None:
            raise ValueError(
                f"{part!r} is no fault: expected OPERATOR:WHAT or OPERATOR:WHAT@CALL, where WHAT is the number of an "
                "error (507015), hang, memory or value"
            )
        found.append(Fault(match["operator"], match["what"], int(match["call"] or 1)))
    return found


def arm(runtime: ctypes.CDLL, faults: Iterable[Fault]) -> None:
    """Let faults happen in this process, on the device that a runtime is."""
    _state.runtime = runtime
    _state.waiting = list(faults)


@contextlib.contextmanager
def injected(text: str) -> Iterator[None]:
    """Let faults happen within a block; at its end the device is healed, which no real one is."""
    before_block = _state.waiting
    _state.waiting = parse(text)
    try:
        yield
    finally:
        _state.waiting = before_block
        if _state.lost:
            _lose(0, "")


def set_memory(size: int) -> None:
    """Give the device another amount of memory, in bytes; by default 64 GiB, of which only what is used is real."""
    runtime = _runtime()
    runtime.npudiff_set_memory.argtypes = [ctypes.c_uint64]
    runtime.npudiff_set_memory(size)


def memory() -> tuple[int, int, int]:
    """Return how many bytes the device has, how many torch_npu's allocator holds of them, and in how many blocks."""
    figures = [ctypes.c_uint64() for _ in range(3)]
    _runtime().npudiff_memory(*map(ctypes.byref, figures))
    total, used, blocks = (figure.value for figure in figures)
    return total, used, blocks


def before(operator: str) -> None:
    """Let what was asked for happen to a call that begins, if anything was.

    Raises
    ------
    RuntimeError
        As torch_npu raises it, if the device is lost, or is lost now.
    torch.OutOfMemoryError
        If its memory is to be exhausted.
    """
    if not _state.waiting and not _state.lost:
        return
    if _state.lost:
        _synchronize()
    striking = [fault for fault in _state.waiting if fault.strikes(operator)]  # each counts, whichever is first
    _state.struck = striking[0] if striking else None
    if _state.struck is None:
        return
    what = _state.struck.what
    if what.isdigit():
        _lose(int(what), f"{operator} failed on the virtual NPU, as {VARIABLE} or a test asked for")
        _synchronize()
    elif what == "memory":
        import torch  # noqa: PLC0415 - loaded long since

        torch.empty(_MORE_THAN_THERE_IS, dtype=torch.uint8, device="npu")
    while what == "hang":
        time.sleep(1)


def after(results: Iterable[Any]) -> None:
    """Make one element of a result wrong, if that was asked for: the middle one of the first tensor.

    Parameters
    ----------
    results : iterable
        Tensors on the host, over the device's memory, and other values.
    """
    if _state.struck is None or _state.struck.what != "value":
        return
    _state.struck = None
    import torch  # noqa: PLC0415 - loaded long since

    for tensor in results:
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            place = tuple(size // 2 for size in tensor.shape)
            wrong = ~tensor[place] if tensor.dtype == torch.bool else tensor[place] * 2 + 1
            tensor[place] = wrong
            return


def lost() -> int:
    """Return the error with which the device was lost, or 0."""
    status: int = _runtime().npudiff_device_status() if _state.lost else 0
    return status


def _runtime() -> ctypes.CDLL:
    if _state.runtime is None:
        raise RuntimeError("there is no virtual NPU in this process: npudiff.device.virtual.enable() comes first")
    return _state.runtime


def _lose(code: int, why: str) -> None:
    _state.lost = code != 0
    lose = _runtime().npudiff_lose_device
    lose.argtypes, lose.restype = [ctypes.c_int32, ctypes.c_char_p], None
    lose(code, why.encode())


def _synchronize() -> None:
    """Ask torch_npu for the device, which raises its own error where it is lost."""
    import torch  # noqa: PLC0415 - loaded long since

    torch.get_device_module("npu").synchronize()
