"""Addresses that kernels load from and store to: those of the device's memory, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np

from npudiff.device.simulator.errors import DeviceFault
from npudiff.device.virtual import tasks


def check(what: str, addresses: Any, mask: Any, itemsize: int) -> None:  # noqa: ANN401
    """Look whether elements that a mask shows are in the device's memory.

    Parameters
    ----------
    what : str
        What is done with them, for the message.
    addresses : numpy.ndarray
        uint64 of any shape.
    mask : numpy.ndarray
        bool, of that shape or one that is broadcast to it.
    itemsize : int
        Bytes of an element.

    Raises
    ------
    DeviceFault
        If an element is not in memory that torch_npu's allocator holds.
    """
    used = addresses[np.broadcast_to(mask, addresses.shape)]
    if not used.size:
        return
    first, last = int(used.min()), int(used.max())
    if tasks.is_allocated(first, last - first + itemsize):
        return
    for address in np.unique(used):  # of several tensors
        if not tasks.is_allocated(int(address), itemsize):
            raise DeviceFault(f"{what}: {itemsize} bytes at {int(address):#x} are not in the device's memory")
