"""What goes between the judge and a candidate: inputs as a tree of values, tensors by their bytes, outputs as data.

Tensors keep their strides, and those that share memory still do: rows that are slices of wider ones arrive as such.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from npudiff.model.constraints import Joined, Numbers
from npudiff.run.isolation.ipc import flat_bytes
from npudiff.run.untrusted.contracts import REFERENCE

ALIGNED = 64
MOST_BYTES = 2**33
"""Bytes of outputs that are read of one call."""

MOST_OUTPUTS, MOST_DIMS = 64, 32

_DTYPES = {str(one)[len("torch.") :]: one for one in vars(torch).values() if isinstance(one, torch.dtype)}


class Malformed(Exception):
    """What a candidate sent is not what it may send; the message says what it is."""


def pack(value: object, file: int, *, trusted: bool = False) -> object:
    """Return a value as plain JSON values; the bytes of its tensors are written into a file.

    Who is ``trusted`` is a fork of this process: what is sent may have classes of any module, and not only contracts.

    Raises
    ------
    TypeError
        If there is something in it that is no part of a contract.
    """
    writer = _Writer(trusted=trusted)
    plain = writer.plain(value)
    os.ftruncate(file, 0)
    for storage, at in writer.storages.values():
        content = torch.empty(0, dtype=torch.uint8).set_(storage)
        _write(file, content, at)
    return plain


class _Writer:
    def __init__(self, *, trusted: bool) -> None:
        self._trusted = trusted
        self.storages: dict[int, tuple[torch.UntypedStorage, int]] = {}
        self._end = 0

    def plain(self, value: object) -> object:
        """A scalar as it is; everything else as an object that says what it is."""
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float and math.isfinite(value):
            return value
        return self._tensor(value) if isinstance(value, torch.Tensor) else self._object(value)

    def _object(self, value: object) -> dict[str, Any]:
        if isinstance(value, float):
            return {"is": "float", "text": str(value)}
        if isinstance(value, torch.dtype):
            return {"is": "dtype", "name": str(value)[len("torch.") :]}
        if isinstance(value, tuple | list):
            return {"is": type(value).__name__, "items": [self.plain(item) for item in value]}
        if isinstance(value, Mapping):
            return {"is": "dict", "items": [[self.plain(key), self.plain(item)] for key, item in value.items()]}
        if isinstance(value, enum.Enum):
            return {"is": "enum", "type": self._type_name(value), "name": value.name}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {one.name: self.plain(getattr(value, one.name)) for one in dataclasses.fields(value) if one.init}
            return {"is": "object", "type": self._type_name(value), "fields": fields}
        raise TypeError(f"a {type(value).__name__} cannot be sent to a candidate")

    def _tensor(self, tensor: torch.Tensor) -> object:
        storage = tensor.detach().untyped_storage()
        key = storage.data_ptr() or id(tensor)
        if key not in self.storages:
            self.storages[key] = (storage, self._end)
            self._end += -(-storage.nbytes() // ALIGNED) * ALIGNED
        return {
            "is": "tensor",
            "dtype": str(tensor.dtype)[len("torch.") :],
            "shape": list(tensor.shape),
            "stride": list(tensor.stride()),
            "offset": tensor.storage_offset(),
            "at": self.storages[key][1],
            "bytes": storage.nbytes(),
        }

    def _type_name(self, value: object) -> str:
        kind = type(value)
        if not self._trusted and not kind.__module__.startswith(REFERENCE + "."):
            raise TypeError(f"{kind.__module__}.{kind.__qualname__} is no contract of npudiff.reference")
        return f"{kind.__module__}.{kind.__qualname__}"


def unpack(plain: Any, file: int, *, trusted: bool = False) -> Any:  # noqa: ANN401 - whatever was packed, by the judge
    """Return the value that the judge has packed, in memory of its own; a fork of it knows classes of any module."""
    return _Reader(file, trusted=trusted).value(plain)


class _Reader:
    def __init__(self, file: int, *, trusted: bool) -> None:
        self._file, self._trusted = file, trusted
        self._storages: dict[tuple[int, int], torch.UntypedStorage] = {}

    def value(self, plain: Any) -> Any:  # noqa: ANN401 - as above
        if not isinstance(plain, dict):
            return plain
        read = {"tensor": self._tensor, "float": _float, "dtype": _dtype, "tuple": self._items, "list": self._items}
        kind = plain["is"]
        if kind in read:
            return read[kind](plain)
        if kind == "dict":
            return {self.value(key): self.value(item) for key, item in plain["items"]}
        module, _, name = plain["type"].rpartition(".")
        if not self._trusted and not module.startswith(REFERENCE + "."):
            raise Malformed(f"{module} is no module of contracts")
        found = getattr(sys.modules.get(module) or importlib.import_module(module), name)
        if kind == "enum":
            return found[plain["name"]]
        return found(**{field: self.value(item) for field, item in plain["fields"].items()})

    def _items(self, plain: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a tuple or a list
        items = [self.value(item) for item in plain["items"]]
        return tuple(items) if plain["is"] == "tuple" else items

    def _tensor(self, plain: Mapping[str, Any]) -> torch.Tensor:
        at = plain["at"]
        place = at, plain["bytes"]  # one without bytes lies where the next one does
        if place not in self._storages:
            self._storages[place] = _read(self._file, plain["bytes"], at).untyped_storage()
        tensor = torch.empty(0, dtype=_DTYPES[plain["dtype"]])
        return tensor.set_(self._storages[place], plain["offset"], plain["shape"], plain["stride"])


def _float(plain: Mapping[str, Any]) -> float:
    return float(plain["text"])


def _dtype(plain: Mapping[str, Any]) -> torch.dtype:
    return _DTYPES[plain["name"]]


def pack_outputs(outputs: Mapping[str, torch.Tensor], file: int) -> list[dict[str, Any]]:
    """Return the outputs of a candidate as plain values; their elements are written into a file."""
    os.ftruncate(file, 0)
    told, end = [], 0
    for name, tensor in outputs.items():
        flat = flat_bytes(tensor.detach().cpu().resolve_conj().resolve_neg())
        _write(file, flat, end)
        told.append(
            {"name": str(name), "dtype": str(tensor.dtype)[len("torch.") :], "shape": list(tensor.shape), "at": end}
        )
        end += -(-flat.numel() // ALIGNED) * ALIGNED
    return told


def unpack_outputs(told: object, file: int) -> dict[str, torch.Tensor]:
    """Return the outputs that a candidate has told of, trusting nothing.

    Raises
    ------
    Malformed
        If they are not what ``pack_outputs`` makes, or larger than what is read.
    """
    if not isinstance(told, list) or len(told) > MOST_OUTPUTS:
        raise Malformed("the candidate sent no list of outputs")
    outputs: dict[str, torch.Tensor] = {}
    left = MOST_BYTES
    for one in told:
        name, dtype, shape, at = _checked(one)
        count = math.prod(shape) * dtype.itemsize
        left -= count
        if left < 0:
            raise Malformed(f"the candidate sent more than {MOST_BYTES >> 30} GiB")
        if name in outputs:
            raise Malformed(f"the candidate sent {name!r} twice")
        content = _read(file, count, at)
        outputs[name] = content.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)
    return outputs


def _checked(one: object) -> tuple[str, torch.dtype, list[int], int]:
    if not isinstance(one, dict):
        raise Malformed("an output is no object")
    name, dtype, shape, at = (one.get(key) for key in ("name", "dtype", "shape", "at"))
    if not isinstance(name, str) or len(name) > 200 or not isinstance(dtype, str) or dtype not in _DTYPES:
        raise Malformed("an output has no name, or no known dtype")
    if not isinstance(shape, list) or len(shape) > MOST_DIMS or not all(_is_size(size) for size in (*shape, at)):
        raise Malformed(f"the shape of {name!r} is none")
    return name, _DTYPES[dtype], shape, int(at)  # type: ignore[arg-type] # checked with the sizes


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _write(file: int, content: torch.Tensor, at: int) -> None:
    view = _bytes(content)
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done:], at + done)


def _bytes(content: torch.Tensor) -> memoryview:
    return content.numpy().data if content.numel() else memoryview(b"")


def _read(file: int, count: int, at: int) -> torch.Tensor:
    """Return bytes of a file as a tensor; a file that a candidate cuts off is read as too short, and nothing worse."""
    if count and os.fstat(file).st_size < at + count:  # no memory is taken for what is only claimed
        raise Malformed(f"{count} bytes were told of, and {max(0, os.fstat(file).st_size - at)} are there")
    content = torch.empty(count, dtype=torch.uint8)
    view = _bytes(content)
    done = 0
    while done < count:
        got = os.preadv(file, [view[done:]], at + done)
        if not got:
            raise Malformed(f"{count} bytes were told of, and {done} are there")
        done += got
    return content


def pack_boxes(boxes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the boxes of constraints as plain values."""
    return [{axis: _pack_values(values) for axis, values in box.items()} for box in boxes]


def _pack_values(values: Any) -> object:  # noqa: ANN401 - a collection of scalars
    if isinstance(values, range):
        return {"range": [values.start, values.stop, values.step]}
    if isinstance(values, Numbers):
        return {"numbers": [values.lowest, values.highest]}
    if isinstance(values, Joined):
        return {"joined": [_pack_values(one) for one in values.sizes], "short": values.short}
    return list(values)


def unpack_boxes(plain: object) -> list[dict[str, Any]]:
    """Return boxes of constraints that a candidate has told of; the axes and values are checked by who uses them.

    Raises
    ------
    Malformed
        If they are none.
    """
    if not isinstance(plain, list) or not all(isinstance(box, dict) for box in plain) or len(plain) > 1000:
        raise Malformed("the candidate sent no constraints")
    return [{str(axis): _unpack_values(values) for axis, values in box.items()} for box in plain]


def _unpack_values(plain: object) -> Any:  # noqa: ANN401 - as above
    if isinstance(plain, list) and all(one is None or isinstance(one, bool | int | float | str) for one in plain):
        return tuple(plain)
    numbers = next(iter(plain.values()), None) if isinstance(plain, dict) else None
    if not isinstance(plain, dict) or not isinstance(numbers, list):
        raise Malformed("the candidate sent values of an axis that are none")
    if "joined" in plain:
        sizes = tuple(_unpack_values(one) for one in numbers)
        if all(isinstance(one, range) for one in sizes):
            return Joined(sizes, short=plain.get("short") is True)
    elif "numbers" in plain and len(numbers) == 2 and all(type(one) is float for one in numbers):
        return Numbers(*numbers)
    elif "range" in plain and len(numbers) == 3 and all(type(one) is int for one in numbers) and numbers[2]:
        return range(*numbers)
    raise Malformed("the candidate sent values of an axis that are none")
