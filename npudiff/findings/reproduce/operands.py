"""Arguments of operators as plain values, and those as text of a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


class Refused(Exception):  # noqa: N818 - what happened
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
