"""What an operation chooses, read from bytes: the next byte, modulo the number of alternatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Act = Callable[["Side"], Any]
"""What an operation does on one of the two devices."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int8, torch.uint8)
DTYPES = (*FLOATS, *INTEGERS, torch.bool, torch.complex64)
NUMBERS = (0.5, 2, -3, 0, 1, -1.25, 100, float("inf"), float("nan"), True)


class NotPossible(Exception):
    """No value that the operation could be applied to."""


class Side(list[Tensor]):
    """The values of a program on one device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self._first: dict[int, int] = {}

    def changes(self, place: int) -> int:
        """How often a value was written to since it was first looked at, as autograd counts; new ones may differ."""
        value = self[place]
        if value.is_inference():
            return 0
        return value._version - self._first.setdefault(place, value._version)

    def new(self, sizes: Sequence[int], dtype: torch.dtype = torch.float32, salt: int = 0) -> Tensor:
        """A tensor whose values depend on nothing but the arguments."""
        return pattern(sizes, dtype, salt).to(self.device)

    def whole(self, sizes: Sequence[int], limit: int, salt: int = 0, dtype: torch.dtype = torch.int64) -> Tensor:
        """Integers from 0 to below a limit."""
        return integers(sizes, limit, salt).to(dtype).to(self.device)

    def on_host(self, place: int) -> Tensor:
        """A copy on the host, on both devices."""
        return self[place].detach().to("cpu", copy=True)


class OnHost:
    """A result that is on the host, whatever the device of the program."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def integers(sizes: Sequence[int], limit: int, salt: int) -> Tensor:
    count = torch.Size(sizes).numel()
    return ((torch.arange(count) * 7919 + salt * 104729 + 13) % 65521 % max(limit, 1)).reshape(tuple(sizes))


def pattern(sizes: Sequence[int], dtype: torch.dtype, salt: int) -> Tensor:
    """Numbers with signs, fractions, ties and, for one salt in eight, what is not finite."""
    whole = integers(sizes, 37, salt)
    if dtype == torch.bool:
        return whole % 2 == 0
    if dtype == torch.uint8:
        return whole.to(dtype)
    if not (dtype.is_floating_point or dtype.is_complex):
        return (whole - 18).to(dtype)
    values = (whole - 18) / 8
    if salt % 8 == 7:
        for value, place in ((float("nan"), 3), (float("inf"), 5), (-0.0, 11)):
            values = torch.where(whole == place, value, values)
    return (
        torch.complex(values, values.flip(0) if values.dim() else values).to(dtype)
        if dtype.is_complex
        else values.to(dtype)
    )


class Choices:
    """Reads choices for one step, with the values of the program so far before its eyes."""

    def __init__(self, data: bytes, values: Sequence[Tensor] = ()) -> None:
        self._data, self._next, self._values = data, 0, values

    def __getitem__(self, place: int) -> Tensor:
        return self._values[place]

    def below(self, count: int) -> int:
        """A number from 0 to below a count; 0 when all bytes are read."""
        if count <= 0:
            raise NotPossible
        byte = self._data[self._next] if self._next < len(self._data) else 0
        self._next += 1
        return byte % count

    def of(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def flag(self) -> bool:
        return bool(self.below(2))

    def rarely(self) -> bool:
        return self.below(8) == 7

    def number(self, tensor: Tensor | None = None) -> float:
        """A number; for a tensor of integers mostly one that leaves its dtype alone."""
        if tensor is not None and not (tensor.is_floating_point() or tensor.is_complex()) and not self.rarely():
            return self.of((1, 2, 3, 0, True) if tensor.dtype in (torch.uint8, torch.bool) else (1, 2, -3, 0, True))
        return self.of(NUMBERS)

    def place(self, wanted: Callable[[Tensor], bool] = lambda _: True) -> int:
        """The place of a value, the newest first."""
        places = [place for place in reversed(range(len(self._values))) if wanted(self._values[place])]
        return self.of(places)

    def partner(self, tensor: Tensor, wanted: Callable[[Tensor], bool] = lambda _: True) -> int:
        """The place of a value that goes with a tensor by broadcasting: at least the tensor itself."""
        return self.place(lambda other: wanted(other) and broadcasts(tensor, other))

    def leaves(self) -> list[int]:
        """Places of tensors that gradients are kept of."""
        return [place for place, value in enumerate(self._values) if value.requires_grad and is_leaf(value)]

    def dim(self, tensor: Tensor) -> int:
        """A dimension, also from the end, and once in a while none that there is."""
        rank = max(tensor.dim(), 1)
        found = self.below(2 * rank)
        return found - 2 * rank if found >= rank else found

    def window(self, tensor: Tensor) -> Callable[[Tensor], Tensor]:
        """A view of a tensor to write to: the whole, a slice, a slice of a slice, or another order."""
        choice = self.below(8)
        if tensor.dim() == 0 or choice < 3:
            return lambda value: value
        if choice == 3:
            return lambda value: value[1:]
        if choice == 4:
            return lambda value: value[..., ::2]
        if choice == 5:
            return lambda value: value[1:][::2]
        if choice == 6:
            return lambda value: value.transpose(0, -1)
        return (lambda value: value[-1]) if tensor.size(0) else (lambda value: value)


def broadcasts(one: Tensor, other: Tensor) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(one.shape), reversed(other.shape), strict=False))


def is_leaf(tensor: Tensor) -> bool | None:
    """Whether nothing was computed to get a tensor; None where torch refuses to say, of a view that was written to."""
    try:
        return tensor.is_leaf
    except RuntimeError:
        return None


def expandable(source: Tensor, target: Tensor) -> bool:
    """Whether one can be written into the other."""
    return source.dim() <= target.dim() and all(
        a in (1, b) for a, b in zip(reversed(source.shape), reversed(target.shape), strict=False)
    )


def real(tensor: Tensor) -> bool:
    return not tensor.is_complex()


def floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def single(tensor: Tensor) -> bool:
    """Whether a tensor has a dtype that every kernel of the CPU knows."""
    return tensor.dtype in (torch.float32, torch.float64)


def inexact(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def numeric(tensor: Tensor) -> bool:
    return tensor.dtype != torch.bool


def ranked(least: int, most: int = 9) -> Callable[[Tensor], bool]:
    return lambda tensor: least <= tensor.dim() <= most


def both(*conditions: Callable[[Tensor], bool]) -> Callable[[Tensor], bool]:
    return lambda tensor: all(condition(tensor) for condition in conditions)


def filled(tensor: Tensor) -> bool:
    return tensor.numel() > 0


def laid_out_alike(tensor: Tensor) -> bool:
    """Whether torch_npu's ``empty_like`` gives a tensor the strides that torch's does.

    It takes its own way with tensors that are empty, or have dimensions of size 1 with strides of no use.
    """
    return tensor.numel() > 0 and (1 not in tensor.shape or tensor.stride() == torch.empty(tensor.shape).stride())


def writable(tensor: Tensor) -> bool:
    """Whether a tensor may be written to: no leaf of a graph, and nothing twice in one place."""
    return not (tensor.requires_grad and is_leaf(tensor)) and all(
        stride or size < 2 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
