"""Running a program on the host and on a device in step, and comparing all that can be seen of its values."""

from __future__ import annotations

import ctypes
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from npu_programs.choices import DTYPES, Choices, NotPossible, OnHost, Side, is_leaf, pattern
from npu_programs.operations import OPERATIONS

_MOST_VALUES, _MOST_ELEMENTS = 40, 3000
_DEVICE_WORDS = re.compile(
    r"(?<=\[)(?:torch\.|npu|CPU)(?=\w+(?:Type|Tensor) \[)|(?<=\w)(?:Type|Tensor)(?= \[)|"  # [npuHalfType [2, 3]]
    r"\b(?:npu|cpu)(?::0)?\b|\b(?:Autograd)?PrivateUse1\b",
    re.IGNORECASE,
)
_OF_TORCH_NPU = (
    "Cannot create tensor with internal format while allow_internal_format=False",
    "Device do not support double dtype now",
)
"""What torch_npu warns of on hardware too: ``empty_like`` with a memory format, and, once, float64, for which torch asks
where it prints numbers."""


@dataclass(frozen=True)
class Step:
    """One operation, and the bytes that it reads its choices from."""

    kind: str
    choices: bytes


@dataclass(frozen=True)
class Program:
    """Input tensors and steps."""

    inputs: tuple[bytes, ...]
    steps: tuple[Step, ...]


@dataclass
class Outcome:
    """How often each operation ran, raised on both devices, or had nothing to run on."""

    ran: Counter[str] = field(default_factory=Counter)
    raised: Counter[str] = field(default_factory=Counter)
    impossible: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


class Difference(AssertionError):
    """Two devices do not agree."""


@dataclass(frozen=True)
class _Raised:
    type: type[Exception]
    message: str


def run(program: Program, device: str = "npu") -> Outcome:
    """Run a program on the host and on a device.

    Raises
    ------
    Difference
        At the first step after which something differs.
    """
    host, other, outcome = Side("cpu"), Side(device), Outcome()
    done = []
    for data in program.inputs:
        _input(Choices(data), host, other)
    _agree(host, other, "the inputs")
    for step in program.steps:
        try:
            act = OPERATIONS[step.kind](Choices(step.choices, host))
        except NotPossible:
            outcome.impossible[step.kind] += 1
            continue
        done.append(f"{step.kind} {_numbers(act)}")
        here = f"step {len(done)}, after {'; '.join(done)}"
        (expected, warned), (found, warned_too) = _attempt(act, host), _attempt(act, other)
        if warned != warned_too:
            raise Difference(f"{here}: warns {sorted(warned_too)}, and on the host {sorted(warned)}")
        outcome.ran[step.kind] += 1
        if isinstance(expected, _Raised):
            outcome.raised[step.kind] += 1
            outcome.errors[f"{step.kind}: {expected.message[:90]}"] += 1
        _results(expected, found, host, other, here)
        _agree(host, other, here)
    return outcome


def _input(choices: Choices, host: Side, other: Side) -> None:
    """Add an input: a base, and mostly another view of it."""
    dtype = choices.of((*DTYPES, torch.complex64, *[torch.float32] * 7))
    sizes = [choices.of((2, 3, 4, 1, 5, 2, 3, 4, 2, 3, 0)) for _ in range(choices.of((2, 3, 1, 3, 4, 3, 0, 3)))]
    salt, layout = choices.below(256), choices.below(8)
    for side in (host, other):
        base = pattern(sizes, dtype, salt).to(side.device)
        side.append(base)
        if layout == 1 and (dtype.is_floating_point or dtype.is_complex):  # a leaf, and something computed from it
            base.requires_grad_()
            side.append(base * 2)
        if not sizes or layout < 2:
            continue
        views = (base.t() if len(sizes) == 2 else base.transpose(0, -1), base[1:], base[..., ::2], base[:1].expand(3, *sizes[1:]) if sizes[0] else base, base[1::2], base.unsqueeze(0))  # fmt: skip
        side.append(views[layout - 2])


def _attempt(act: Any, side: Side) -> tuple[Any, set[str]]:
    """Return what an operation gives, or raises, and what it warns of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = act(side)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is to be the same on both
            result = _Raised(type(error), _neutral(str(error)))
    said = {_neutral(str(warning.message)) for warning in warned}
    return result, {message for message in said if not message.startswith(_OF_TORCH_NPU)}


def _neutral(message: str) -> str:
    """Return a message without the names of devices, and without the line that torch_npu adds to those of its own."""
    first = message.partition("\nException raised from")[0].partition("\n[ERROR] ")[0]
    return _DEVICE_WORDS.sub("DEVICE", first).strip()


def _numbers(act: Any) -> str:
    """Describe an act by what its choices were."""
    cells = zip(act.__code__.co_freevars, act.__closure__ or (), strict=True)
    return ", ".join(f"{name}={cell.cell_contents!r:.80}" for name, cell in cells if not callable(cell.cell_contents))


def _results(expected: Any, found: Any, host: Side, other: Side, here: str) -> None:
    """Compare results, and keep tensors among them as values."""
    if isinstance(expected, _Raised) or isinstance(found, _Raised):
        if expected != found:
            raise Difference(f"{here}: {_said(found)}, and on the host {_said(expected)}")
        return
    pairs = list(_flat(expected)), list(_flat(found))
    if len(pairs[0]) != len(pairs[1]):
        raise Difference(f"{here}: {len(pairs[1])} results, and on the host {len(pairs[0])}")
    for one, two in zip(*pairs, strict=True):
        if isinstance(one, OnHost):
            _same(one.tensor, two.tensor, "cpu", f"{here}, a copy on the host")
        elif isinstance(one, Tensor) and isinstance(two, Tensor):
            _same_object(one, two, host, other, here)
            if len(host) < _MOST_VALUES and one.numel() <= _MOST_ELEMENTS:
                host.append(one)
                other.append(two)
            else:
                _same(one, two, other.device, here)
        elif repr(one) != repr(two) or type(one) is not type(two):
            raise Difference(f"{here}: {two!r}, and on the host {one!r}")


def _said(result: Any) -> str:
    return f"raises {result.type.__name__}: {result.message}" if isinstance(result, _Raised) else f"gives {result}"


def _flat(result: Any) -> Iterator[Any]:
    if isinstance(result, (list, tuple)):
        for item in result:
            yield from _flat(item)
    else:
        yield result


def _same_object(one: Tensor, two: Tensor, host: Side, other: Side, here: str) -> None:
    """Where an operation returns a tensor that it was given, it does so on both devices."""
    places = [[i for i, value in enumerate(side) if value is result] for side, result in ((host, one), (other, two))]
    if places[0] != places[1]:
        raise Difference(f"{here}: returns the values {places[1]} themselves, and on the host {places[0]}")


def _agree(host: Side, other: Side, here: str) -> None:
    """Compare all values, their gradients, and which of them share memory."""
    for place, (one, two) in enumerate(zip(host, other, strict=True)):
        if host.changes(place) != other.changes(place):
            raise Difference(
                f"{here}: value {place} changed {other.changes(place)} times (host: {host.changes(place)})"
            )
        _same(one, two, other.device, f"{here}: value {place}")
        if one.requires_grad and (is_leaf(one) or one.retains_grad):
            if (one.grad is None) != (two.grad is None):
                raise Difference(f"{here}: value {place} has a gradient on one device only")
            if one.grad is not None and two.grad is not None:
                _same(one.grad, two.grad, other.device, f"{here}: gradient of value {place}")
    if _sharing(host) != _sharing(other):
        raise Difference(f"{here}: share memory {_sharing(other)}, and on the host {_sharing(host)}")
    bases = zip(_bases(host), _bases(other), strict=True)
    if any(one != two for one, two in bases if None not in (one, two)):  # None: of something that is no value
        raise Difference(f"{here}: are views of {_bases(other)}, and on the host {_bases(host)}")


def _sharing(side: Side) -> list[int]:
    """Return for each value the first one with the same storage."""
    firsts: dict[int, int] = {}
    return [firsts.setdefault(value.untyped_storage()._cdata, place) for place, value in enumerate(side)]


def _bases(side: Side) -> list[int | None]:
    """Return for each value the one that autograd takes it for a view of, if that is a value of the program."""
    places = {id(value): place for place, value in enumerate(side)}
    return [places.get(id(value._base)) if value._is_view() else None for value in side]


def _same(one: Tensor, two: Tensor, device: str, here: str) -> None:
    """Compare two tensors bit by bit, but for the payload of a NaN."""
    said, said_too = _description(one), _description(two)
    if said != said_too:
        words = ", ".join(
            f"{name} {said_too[name]} (host: {value})" for name, value in said.items() if said_too[name] != value
        )
        raise Difference(f"{here}: {words}")
    if two.device.type != device or one.device.type != "cpu":
        raise Difference(f"{here}: is on {two.device}")
    if not one.numel():
        return
    left, right = elements(one), elements(two)
    if left == right:
        return
    for value, other in zip(_words(left, one), _words(right, two), strict=True):
        if not torch.equal(value, other):
            raise Difference(f"{here}: {two.detach().cpu()}\non the host: {one.detach()}")


def _description(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": tensor.dtype,
        "shape": tuple(tensor.shape),
        "strides": _strides(tensor),
        "offset": tensor.storage_offset(),
        "requires_grad": tensor.requires_grad,
        "is_leaf": is_leaf(tensor),
        "is_conj": tensor.is_conj(),
        "is_neg": tensor.is_neg(),
        "is_inference": tensor.is_inference(),
    }


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of dimensions that have several elements; torch_npu's own ``empty_like`` chooses the others."""
    return tuple(
        stride if tensor.numel() and size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def elements(tensor: Tensor) -> bytes:
    """Return a tensor's elements, read from memory with nothing of what is tested."""
    if not tensor.numel():
        return b""
    storage = tensor.untyped_storage()
    raw = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(raw, dtype=torch.uint8)
    width = tensor.itemsize
    sizes, strides = (*tensor.shape, width), (*(stride * width for stride in tensor.stride()), 1)
    view = flat.as_strided(sizes, strides, tensor.storage_offset() * width)
    return view.contiguous().numpy().tobytes()


def _words(data: bytes, tensor: Tensor) -> Iterator[Tensor]:
    """Yield numbers with every NaN the same, then bits with every NaN zero."""
    values = torch.frombuffer(bytearray(data), dtype=tensor.dtype)
    if tensor.is_complex():
        values = torch.view_as_real(values)
    wrong = values.isnan()
    yield wrong
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize]
    yield values.view(width).masked_fill(wrong, 0)
