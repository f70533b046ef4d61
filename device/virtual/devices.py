"""Several devices in one process: which of them a call is for, as torch chooses it by the first of its tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

_KIND = "npu"


class _State:
    """What torch_npu says of devices. With a single one nobody asks it."""

    several = False
    current: Callable[[], int] = staticmethod(lambda: 0)
    choose: Callable[[int], None] = staticmethod(lambda _: None)


_state = _State()


def connect(count: int) -> None:
    """Say how many devices this process sees."""
    import torch_npu  # noqa: PLC0415 - imported already

    _state.several = count > 1
    if _state.several:
        _state.current, _state.choose = torch_npu._C._npu_getDevice, torch_npu._C._npu_setDevice


def several() -> bool:
    """Whether there is more than one."""
    return _state.several


def current() -> int:
    """Return the number of the device that the calling thread has chosen; 0 if it has chosen none."""
    return _state.current()


def device() -> torch.device:
    """Return the device that the calling thread has chosen."""
    return _numbered(_state.current())


@cache
def _numbered(index: int) -> torch.device:
    return torch.device(_KIND, index)


@contextlib.contextmanager
def chosen(index: int | None) -> Iterator[None]:
    """Let a device be the chosen one within a block; None leaves the one that is."""
    before = _state.current()
    if index is None or index == before:
        yield
        return
    _state.choose(index)
    try:
        yield
    finally:
        _state.choose(before)


def of_call(args: Iterable[Any], named: dict[str, Any]) -> int | None:
    """Return the device of a call: that of its first tensor on one, or else the one that it names."""
    first = next(_indices([*args, *named.values()]), None)
    wanted = named.get("device")
    if first is None and wanted is not None:
        return torch.device(wanted).index
    return first


def others(values: Iterable[Any], index: int | None) -> list[int]:
    """Return the other devices of tensors that are no numbers, in their order."""
    found = dict.fromkeys(_indices(values, numbers=False))
    return [one for one in found if one != index]


def wait_for(indices: Iterable[int]) -> None:
    """Let the host wait for devices, whose memory a call for another device looks at."""
    for index in indices:
        torch.get_device_module(_KIND).synchronize(index)


def _indices(values: Iterable[Any], *, numbers: bool = True) -> Iterator[int]:
    for value in values:
        if isinstance(value, Tensor):
            if value.device.type == _KIND and (numbers or value.dim()):
                yield value.device.index
        elif isinstance(value, (list, tuple)):
            yield from _indices(value, numbers=numbers)
