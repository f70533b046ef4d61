"""The tape that calls are recorded on, and the form that arguments and tensors have on it.

An event is a line of plain values; the bytes of tensors lie beside. Both are files without a name, which outlive the
process that writes them. A call is written down before it is made, so that one that kills its process is the last.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


class Refused(Exception):
    """Something cannot stand in a script; the message says what, and is read after "no script: "."""


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Yield the tensors of an argument or a result, in their order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


_NAMED = {torch.dtype: "dtype", torch.device: "device", torch.layout: "layout", torch.memory_format: "memory format"}


def plain(value: object, tensor: Callable[[torch.Tensor], Any], storage: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """Return an argument as a value that JSON can hold.

    Parameters
    ----------
    value : object
        What the dispatcher was given.
    tensor, storage : callable
        Say what stands for a tensor, or for a storage by itself.

    Raises
    ------
    Refused
        If no script can hold it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return tensor(value)
    if isinstance(value, list | tuple):
        return [plain(item, tensor, storage) for item in value]
    if isinstance(value, torch.UntypedStorage | torch.TypedStorage):
        return storage(value)
    for kind, name in _NAMED.items():
        if isinstance(value, kind):
            return {name: str(value)}
    if isinstance(value, torch.Generator):
        raise Refused("an operator is given a random generator, whose numbers are others on another device")
    raise Refused(f"an operator is given a {type(value).__name__}")


@dataclass(frozen=True)
class Words:
    """How arguments are written."""

    device: str
    """The kind of the device on which it was recorded, which is the script's ``DEVICE``; any other stands as it is."""
    names: Callable[[str], str] = str
    """Turns a variable into what stands for it."""

    def of(self, value: Any) -> str:  # noqa: ANN401 - what ``plain`` returns
        """Return an argument as Python."""
        if isinstance(value, list):
            return f"[{', '.join(map(self.of, value))}]"
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        return self._named(value) if isinstance(value, dict) else repr(value)

    def _named(self, value: dict[str, Any]) -> str:
        kind, said = next(iter(value.items()))
        if kind == "device":
            return "DEVICE" if said.partition(":")[0] == self.device else repr(said)
        if kind == "view":
            return f"torch.as_strided({self.names(said)}, {value['shape']}, {value['stride']}, {value['offset']})"
        if kind in ("tensor", "storage"):
            return self.names(said) + (".untyped_storage()" if kind == "storage" else "")
        return str(said)  # torch.float32, torch.strided, torch.preserve_format


def names_in(value: Any) -> Iterator[str]:  # noqa: ANN401 - what ``plain`` returns
    """Yield the variables that an argument refers to."""
    if isinstance(value, list):
        for item in value:
            yield from names_in(item)
    elif isinstance(value, dict):
        yield from (str(value[kind]) for kind in ("tensor", "view", "storage") if kind in value)


Key = tuple[object, ...]

_MOST_SEALED = 2**26
"""Bytes of a memory that is looked at before each call."""


def key_of(tensor: torch.Tensor) -> Key:
    """What is alike for tensors that are the same elements in the same order."""
    lies = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
    return (tensor.untyped_storage()._cdata, tensor.dtype, *lies)


def place(tensor: torch.Tensor) -> dict[str, Any]:
    """Return where the elements of a tensor are in its memory."""
    return {"shape": list(tensor.shape), "stride": list(tensor.stride()), "offset": tensor.storage_offset()}


def described(tensor: torch.Tensor) -> dict[str, Any]:
    """Return what is said of a tensor beside its name."""
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "device": str(tensor.device)}


def check_kind(tensor: torch.Tensor) -> None:
    """Raise ``Refused`` for a tensor that is more than elements at a place in memory."""
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise Refused(f"an operator is given a {type(tensor).__name__}, which makes calls of its own")
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        raise Refused(f"an operator is given a tensor that is not strided: {tensor.layout}, {tensor.dtype}")
    if tensor.is_conj() or tensor.is_neg():
        raise Refused("an operator is given a conjugate or negative that torch has not computed yet")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all bytes of the storage of a tensor, on the host."""
    if tensor.device.type != "cpu":
        count = tensor.untyped_storage().nbytes() // tensor.itemsize
        tensor = torch.as_strided(tensor.detach(), (count,), (1,), 0).cpu()
    return torch.empty(0, dtype=torch.uint8).set_(tensor.detach().untyped_storage())


def checksum(tensor: torch.Tensor) -> int | None:
    """Return a number that changes when the memory of a tensor does; None where it is large, or cannot be read."""
    if tensor.untyped_storage().nbytes() > _MOST_SEALED:
        return None
    try:
        return zlib.crc32(whole(tensor).numpy().data)
    except RuntimeError:  # a device may have a format of which no other view can be read
        return None


def labelled(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of (nested) dataclasses, mappings and lists with the names of their places."""
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided:
            yield name or "given", value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from labelled(getattr(value, field.name), f"{name}_{field.name}" if name else field.name)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from labelled(item, f"{name}_{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from labelled(item, f"{name}_{number}")


Event = dict[str, Any]

MOST_BYTES = 2**27
"""Bytes of tensors on a tape. A script has fewer: what only judges a result on the way there is taken out."""

MOST_EVENTS = 20_000


class Tape:
    """A recording that is being made, or has been made.

    Attributes
    ----------
    refusal : str
        Why nothing more is recorded; empty if all is well.
    """

    def __init__(self) -> None:
        self._lines = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the tape is
        self._bytes = tempfile.TemporaryFile()  # noqa: SIM115
        self._size = self._count = 0
        self.refusal = ""

    def close(self) -> None:
        """Let go of the files."""
        self._lines.close()
        self._bytes.close()

    @property
    def written(self) -> int:
        """Bytes of lines that were written, by whichever process."""
        return os.fstat(self._lines.fileno()).st_size

    def note(self, kind: str, **said: Any) -> None:  # noqa: ANN401 - plain values of any event
        """Write a line; it is with the system when this returns."""
        if self.refusal:
            return
        self._count += 1
        if self._count > MOST_EVENTS:
            self.refuse(f"it makes more than {MOST_EVENTS:,} calls")
            return
        self._line({"kind": kind, **said})

    def refuse(self, why: str) -> None:
        """Say why there is no recording; nothing is written after it."""
        if not self.refusal:
            self.refusal = why
            self._line({"kind": "refused", "why": why})

    def keep(self, content: memoryview) -> int:
        """Write bytes, and return where they begin; 0 once there are too many."""
        start = self._size
        if start + content.nbytes > MOST_BYTES:
            self.refuse(f"the tensors of its calls have more than {MOST_BYTES >> 20} MiB")
            return 0
        self._size += content.nbytes
        self._bytes.write(content)
        self._bytes.flush()
        return start

    def _line(self, event: Event) -> None:
        self._lines.write(json.dumps(event).encode() + b"\n")
        self._lines.flush()

    def events(self) -> list[Event]:
        """Return all that was written; of a process that was killed while it wrote, all but the last line."""
        self._lines.seek(0)
        lines = self._lines.read().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def content(self, start: int, count: int) -> bytes:
        """Return bytes that were kept."""
        self._bytes.seek(start)
        return self._bytes.read(count)
