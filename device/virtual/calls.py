"""One call of an operator: its schema, and the CPU tensors that stand for device tensors.

What a function writes into its arguments is in the device's memory at once, since it is the same memory. New results
are copied into memory that torch_npu's own allocator gives, so that its statistics are true.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npudiff.device.virtual import devices
from npudiff.device.virtual.memory import (
    Tiles,
    in_tiles,
    is_on_device,
    moved_to_device,
    noted,
    same_bytes,
    view_of,
)

_CPU = torch.device("cpu")

_ACROSS_DEVICES = frozenset({
    "aten::copy_", "aten::_to_copy", "aten::_foreach_copy_", "aten::index", "aten::index_put", "aten::index_put_",
    "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_unsafe_index_put", "aten::_pack_padded_sequence",
    "aten::_pad_packed_sequence", "aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu",
})  # fmt: skip
"""Operators that take tensors of the host beside those of the device: copies, indices, lengths of packed sequences."""

_INDICES = frozenset({
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index",
    "aten::_unsafe_index_put",
})  # fmt: skip
_MASKS = (torch.bool, torch.uint8)
"""Operators that take indices, and dtypes of indices that are masks: how many elements they choose is data."""


@dataclass(frozen=True)
class Signature:
    """What a kernel must know of an operator's schema."""

    name: str
    """``namespace::name.overload``, for messages."""
    arguments: tuple[str, ...]
    """Names, in order."""
    written: tuple[str, ...]
    """Arguments that the operator writes into, in order."""
    returned: tuple[str | None, ...]
    """For each result, the argument that it is, or None for a new tensor or a number."""
    out: frozenset[str]
    """Arguments that are resized to hold the result."""
    random: bool
    """Whether it draws from a generator."""
    dynamic: bool
    """Whether the values of tensors decide on sizes or numbers of its results, which the host has to wait for."""
    several: bool
    """Whether the results are a tuple."""
    host: frozenset[str] = frozenset()
    """Arguments that may be tensors of the host beside tensors of the device: their values are known at the call."""
    host_memory: frozenset[str] = frozenset()
    """Arguments that are memory of the host, used where it is."""
    pinned: bool = False
    """Whether that memory has to be pinned."""

    def is_dynamic(self, values: Mapping[str, Any]) -> bool:
        """Whether the host has to wait for the results of a call: an index with a mask does, another one does not."""
        name = self.name.partition(".")[0]
        if name in _INDICES:
            return any(isinstance(one, Tensor) and one.dtype in _MASKS for one in values.get("indices") or ())
        return self.dynamic and values.get("output_size") is None

    @property
    def copies(self) -> bool:
        """Whether it copies between tensors, which may be the host's."""
        return self.name.partition(".")[0] in ("aten::copy_", "aten::_foreach_copy_", "aten::_to_copy")

    @property
    def crosses_devices(self) -> bool:
        """Whether tensors of the host may be among the arguments."""
        return self.name.partition(".")[0] in _ACROSS_DEVICES


def signature_of(overload: Any) -> Signature:  # noqa: ANN401 - torch._ops.OpOverload
    """Read the schema of an overload."""
    schema = overload._schema
    written = [one for one in schema.arguments if one.alias_info is not None and one.alias_info.is_write]
    labels = {label: argument.name for argument in written for label in argument.alias_info.before_set}

    def argument_of(result: Any) -> str | None:  # noqa: ANN401 - torch._C.Argument
        if result.alias_info is None or not result.alias_info.is_write:
            return None
        return next((labels[label] for label in result.alias_info.before_set if label in labels), None)

    tags = getattr(overload, "tags", ())
    arguments = tuple(argument.name for argument in schema.arguments)
    return Signature(
        name=overload.name(),
        arguments=arguments,
        written=tuple(argument.name for argument in written),  # lists have no labels
        returned=tuple(argument_of(result) for result in schema.returns),
        out=frozenset(argument.name for argument in schema.arguments if argument.is_out),
        random=torch.Tag.nondeterministic_seeded in tags or "generator" in arguments,
        dynamic=torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags,
        several=len(schema.returns) > 1,
    )


class Call:
    """One call: device tensors that were given, and the CPU tensors that stand for them.

    Parameters
    ----------
    formatted : collection of str, optional
        Arguments whose format the function knows; None where it knows none and needs values.
    resized : collection of int, optional
        The ``id`` of tensors that stand on the host in memory of their own, which torch may resize.
    """

    def __init__(self, formatted: Collection[str] | None, resized: Collection[int] = ()) -> None:
        self._formatted, self._resized = formatted, resized
        self._origins: dict[int, torch.UntypedStorage] = {}
        self._standing: dict[tuple[int, bool], tuple[Tensor, Tensor, int]] = {}
        self.tiled: list[tuple[Tiles, Tensor]] = []
        """Storages in FRACTAL_NZ, and the copies that stand for them in logical order."""
        self.apart: Collection[str] = ()
        """Arguments that may be tensors of the host."""
        self.host_memory: Collection[str] = ()
        """Arguments that are."""
        self.given: list[Tensor] = []
        """Tensors of the host among the other arguments."""

    @property
    def mixes_devices(self) -> bool:
        """Whether there are tensors of the host among the arguments that are no numbers."""
        return any(tensor.dim() for tensor in self.given)

    def on_host(self, name: str, value: Any) -> Any:  # noqa: ANN401 - any value of an operator
        """Return what stands for an argument on the host: a tensor over the same memory, or the value itself."""
        if isinstance(value, Tensor):
            return self._tensor(name, value) if is_on_device(value) else self._beside_the_device(name, value)
        if isinstance(value, (list, tuple)):
            return type(value)([self.on_host(name, item) for item in value])
        if isinstance(value, torch.device):
            return _CPU
        return value

    def _tensor(self, name: str, value: Tensor) -> Tensor:
        looked_at = self._formatted is not None and name in self._formatted
        known = self._standing.get((id(value), looked_at))
        if known is not None:  # an output that is an input stays one
            return known[1]
        if in_tiles(value) and (self._formatted is None or looked_at):
            tiles = Tiles(value)
            copy = self._logical(tiles.view(value))
            self.tiled.append((tiles, copy))
            return copy
        view = self._same_memory(noted(value) if looked_at else same_bytes(value))
        if id(value) in self._resized:
            view = _own_copy(view)
        else:
            self._origins[view.untyped_storage().data_ptr()] = value.untyped_storage()
        self._standing[id(value), looked_at] = value, view, _version(view)
        return view

    def _beside_the_device(self, name: str, value: Tensor) -> Tensor:
        if name in self.host_memory:
            return value
        if name in self.apart:
            return value.clone()  # its values are read at the call
        self.given.append(value)
        return self._of_host(value)

    def _of_host(self, value: Tensor) -> Tensor:
        """Return what stands for a tensor of the host."""
        return value

    def _same_memory(self, view: Tensor) -> Tensor:
        """Return what stands for a device tensor, given a CPU tensor over its memory."""
        return view

    def _logical(self, copy: Tensor) -> Tensor:
        """Return what stands for a device tensor in FRACTAL_NZ, given a copy in logical order."""
        return copy

    def on_device(self, result: Any) -> Any:  # noqa: ANN401 - any value of an operator
        """Return a new result on the device: a view if it lies in the memory of an argument."""
        if isinstance(result, Tensor):
            somewhere = result.numel() and not result._is_zerotensor()
            origin = self._origins.get(result.untyped_storage().data_ptr()) if somewhere else None
            return self._new(result) if origin is None else view_of(origin, result)
        if isinstance(result, (list, tuple)):
            return type(result)([self.on_device(item) for item in result])
        return result

    def _new(self, result: Tensor) -> Tensor:
        return moved_to_device(result)

    def store(self) -> None:
        """Let tensors that were written to have what stands for them has: values, sizes, and changes that count."""
        for tiles, copy in self.tiled:
            tiles.store(copy)
        for tensor, standing in self.shaped():
            same_bytes(tensor).copy_(standing)

    def shaped(self) -> list[tuple[Tensor, Tensor]]:
        """Let tensors that were written to have sizes and changes of what stands for them, but not the values.

        Returns those whose values are elsewhere than on the device, and what stands for them.
        """
        elsewhere = []
        for tensor, standing, version in self._standing.values():
            if id(tensor) in self._resized:
                tensor.resize_(standing.shape)
                elsewhere.append((tensor, standing))
            if standing.shape != tensor.shape or standing.stride() != tensor.stride():
                tensor.set_(tensor.untyped_storage(), tensor.storage_offset(), standing.size(), standing.stride())
            for _ in range(_version(standing) - version):  # autograd counts them: operators within an operator
                torch.autograd.graph.increment_version(tensor)
        return elsewhere


def stand_ins(
    signature: Signature, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return what stands for the arguments of a call on the host.

    Raises
    ------
    RuntimeError
        As torch_npu raises it, if tensors of the host are among them where the operator takes none.
    """
    call.apart, call.host_memory = signature.host, signature.host_memory
    if signature.host_memory:
        _check_host_memory(signature, dict(zip(signature.arguments, args, strict=False)) | kwargs)
    given = [call.on_host(name, value) for name, value in zip(signature.arguments, args, strict=False)]
    named = {name: call.on_host(name, value) for name, value in kwargs.items()}
    if call.mixes_devices and not signature.crosses_devices:
        raise _on_two_devices(signature, devices.device(), _CPU)
    return given, named


def check_devices(signature: Signature, index: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let the host wait for other devices than that of a call, where it copies from them.

    Raises
    ------
    RuntimeError
        As torch raises it, if tensors of several devices are among the arguments of what is no copy.
    """
    others = devices.others([*args, *kwargs.values()], index)
    if others and index is not None and not signature.copies:
        raise _on_two_devices(signature, torch.device("npu", index), torch.device("npu", others[0]))
    devices.wait_for(others)


def _on_two_devices(signature: Signature, one: torch.device, other: torch.device) -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {one} and {other}! "
        f"(when checking the arguments of {signature.name})"
    )


def _check_host_memory(signature: Signature, given: Mapping[str, Any]) -> None:
    for name in sorted(signature.host_memory & given.keys()):
        for one in each(given[name]):
            if is_on_device(one):
                raise RuntimeError(f"{signature.name}: {name} must be on CPU, got {one.device}")
            if signature.pinned and one.numel() and not one.is_pinned():
                raise RuntimeError(f"{signature.name}: {name} must use pinned memory")


def results_of(
    signature: Signature,
    call: Call,
    result: Any,  # noqa: ANN401
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # noqa: ANN401
    """Return the results on the device; what an operator returns of its arguments are those very tensors."""
    if not signature.returned:
        return None
    given = dict(zip(signature.arguments, args, strict=False)) | kwargs
    results = result if signature.several else (result,)
    answers = tuple(
        call.on_device(value) if name is None else given[name]
        for name, value in zip(signature.returned, results, strict=True)
    )
    return answers if signature.several else answers[0]


def outputs_of(signature: Signature, result: Any, given: dict[str, Any]) -> Iterator[Any]:  # noqa: ANN401
    """Yield what a call gives: its results, then the arguments that it writes into."""
    for value in (result, *(given[name] for name in signature.written if name in given)):
        yield from each(value)


def each(value: Any) -> Iterable[Any]:  # noqa: ANN401
    """Return the values of a list, or the value."""
    return value if isinstance(value, (list, tuple)) else (value,)


def _own_copy(view: Tensor) -> Tensor:
    """Return a copy in memory of its own with the same strides, unless they lay several elements in one place."""
    if not all(view.stride()):
        return view.clone()
    return torch.empty_strided(view.size(), view.stride(), dtype=view.dtype).copy_(view)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; nobody counts in inference mode."""
    return 0 if tensor.is_inference() else tensor._version
