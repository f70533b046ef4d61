"""What inputs are before a call, to be compared with what they are behind it: no implementation may write into them."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class InputsChanged(Exception):
    """An implementation wrote into the tensors that it was given; on a device that corrupts a cache or a table."""


def fingerprint(inputs: object, path: str = "", *, kept: bool = True) -> dict[str, tuple[object, ...]]:
    """Return what changes, per tensor of (nested) dataclass inputs, when it is written to or made another one.

    Parameters
    ----------
    inputs : object
        A tensor, or (nested) dataclasses of them.
    path : str
        Name of the inputs, which those of tensors begin with.
    kept : bool
        Whether it says of this moment what it says now; otherwise it is for being compared at once, and copies nothing.
    """
    if hasattr(inputs, "untyped_storage"):
        tensor: Any = inputs
        form = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.requires_grad)
        return {path: (_contents(tensor, kept=kept), *form)}
    if not dataclasses.is_dataclass(inputs):
        return {}
    parts = ((field.name, getattr(inputs, field.name)) for field in dataclasses.fields(inputs))
    return {
        name: digest
        for part, value in parts
        for name, digest in fingerprint(value, f"{path}.{part}" if path else part, kept=kept).items()
    }


def changed_tensors(given: object, before: Mapping[str, tuple[object, ...]]) -> list[str]:
    """Return the names of tensors that are not what they were; one may have become something else altogether."""
    try:
        after = fingerprint(given, kept=False)
    except Exception:  # noqa: BLE001 - of something else altogether
        return list(before)
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


MOST_COPIED = 2**26
"""Bytes of a storage up to which it is copied to be compared later; a larger one is hashed, which takes no memory."""

_SMALL = 2**16
"""Bytes of a storage up to which it is copied to a Python object, which takes a tenth of what an array of it does."""

_BLOCK = 2**16
"""Bytes that are hashed at once; they stay in the cache of a processor."""


def _contents(tensor: Any, *, kept: bool) -> object:  # noqa: ANN401 - a tensor; torch is imported by those who have one
    """Return what equals all bytes of the storage, gaps between the rows of a view included.

    A comparison with a copy takes a fifth of the time of a hash, and most inputs are compared several times. Python's
    hash of bytes depends on each of them and on its place, and is faster than cryptographic ones. A sum of weighted
    words loses two changes of the highest bit of a word, which is what negates an element.
    """
    import torch  # noqa: PLC0415

    storage = (tensor if tensor.device.type == "cpu" else tensor.detach().cpu()).untyped_storage()
    if storage.nbytes() <= _SMALL:
        return ctypes.string_at(storage.data_ptr(), storage.nbytes())
    lying = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    if len(lying) > MOST_COPIED:
        return hash(tuple(hash(lying[start : start + _BLOCK].tobytes()) for start in range(0, len(lying), _BLOCK)))
    return _Bytes(lying.copy() if kept else lying)


class _Bytes:
    """Bytes that are compared as a whole."""

    __hash__ = None  # type: ignore[assignment] # they may be written to

    def __init__(self, lying: np.ndarray) -> None:
        words = len(lying) // 8 * 8  # eight at once, and those that are left
        self._parts = lying[:words].view("u8"), lying[words:]

    def __eq__(self, other: object) -> bool:
        import numpy as np  # noqa: PLC0415 - the engine's words do not need it

        parts = zip(self._parts, other._parts, strict=True) if isinstance(other, _Bytes) else ()
        return isinstance(other, _Bytes) and all(np.array_equal(one, another) for one, another in parts)
