"""A kernel of the virtual NPU: run a CPU function on the memory of device tensors, and give device tensors back.

What the function writes into its arguments is in the device's memory at once, since it is the same memory. New results
are copied into memory that torch_npu's own allocator gives, so that its statistics are true.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npudiff.device.virtual import faults
from npudiff.device.virtual.generators import host_generator, with_host_generator
from npudiff.device.virtual.memory import (
    in_tiles,
    is_on_device,
    logical,
    moved_to_device,
    noted,
    same_bytes,
    store_logical,
    view_of,
)

_CPU = torch.device("cpu")
_UNRESIZABLE = "not resizable"

_ACROSS_DEVICES = frozenset({
    "aten::copy_", "aten::_foreach_copy_", "aten::index", "aten::index_put", "aten::index_put_",
    "aten::_index_put_impl_", "aten::_unsafe_index", "aten::_unsafe_index_put", "aten::_pack_padded_sequence",
    "aten::_pad_packed_sequence", "aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu",
})  # fmt: skip
"""Operators that take tensors of the host beside those of the device: copies, indices, lengths of packed sequences."""


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
    several: bool
    """Whether the results are a tuple."""

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
    return Signature(
        name=overload.name(),
        arguments=tuple(argument.name for argument in schema.arguments),
        written=tuple(argument.name for argument in written),  # lists have no labels
        returned=tuple(argument_of(result) for result in schema.returns),
        out=frozenset(argument.name for argument in schema.arguments if argument.is_out),
        random=torch.Tag.nondeterministic_seeded in tags,
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
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._standing: dict[tuple[int, bool], tuple[Tensor, Tensor, int]] = {}
        self.mixes_devices = False

    def on_host(self, name: str, value: Any) -> Any:  # noqa: ANN401 - any value of an operator
        """Return what stands for an argument on the host: a tensor over the same memory, or the value itself."""
        if isinstance(value, Tensor):
            if is_on_device(value):
                return self._tensor(name, value)
            self.mixes_devices |= value.dim() > 0  # numbers may come as tensors of the host
            return value
        if isinstance(value, (list, tuple)):
            return type(value)([self.on_host(name, item) for item in value])
        if isinstance(value, torch.device):
            return _CPU
        if isinstance(value, torch.Generator):
            return host_generator(value)
        return value

    def _tensor(self, name: str, value: Tensor) -> Tensor:
        looked_at = self._formatted is not None and name in self._formatted
        known = self._standing.get((id(value), looked_at))
        if known is not None:  # an output that is an input stays one
            return known[1]
        if in_tiles(value) and (self._formatted is None or looked_at):
            copy = logical(value)
            self._copies.append((value, copy))
            return copy
        view = noted(value) if looked_at else same_bytes(value)
        if id(value) in self._resized:
            view = _own_copy(view)
        else:
            self._origins[view.untyped_storage().data_ptr()] = value.untyped_storage()
        self._standing[id(value), looked_at] = value, view, _version(view)
        return view

    def on_device(self, result: Any) -> Any:  # noqa: ANN401 - any value of an operator
        """Return a new result on the device: a view if it lies in the memory of an argument."""
        if isinstance(result, Tensor):
            somewhere = result.numel() and not result._is_zerotensor()
            origin = self._origins.get(result.untyped_storage().data_ptr()) if somewhere else None
            return moved_to_device(result) if origin is None else view_of(origin, result)
        if isinstance(result, (list, tuple)):
            return type(result)([self.on_device(item) for item in result])
        return result

    def store(self) -> None:
        """Let tensors that were written to have what stands for them has: values, sizes, and changes that count."""
        for tensor, copy in self._copies:
            store_logical(tensor, copy)
        for tensor, standing, version in self._standing.values():
            own = id(tensor) in self._resized
            if own:
                tensor.resize_(standing.shape)
            if standing.shape != tensor.shape or standing.stride() != tensor.stride():
                tensor.set_(tensor.untyped_storage(), tensor.storage_offset(), standing.size(), standing.stride())
            if own:
                same_bytes(tensor).copy_(standing)
            for _ in range(_version(standing) - version):  # autograd counts them: operators within an operator
                torch.autograd.graph.increment_version(tensor)


def _own_copy(view: Tensor) -> Tensor:
    """Return a copy in memory of its own with the same strides, unless they lay several elements in one place."""
    if not all(view.stride()):
        return view.clone()
    return torch.empty_strided(view.size(), view.stride(), dtype=view.dtype).copy_(view)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; nobody counts in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def device_kernel(
    signature: Signature, function: Callable[..., Any], formatted: Collection[str] | None = None
) -> Callable[..., Any]:
    """Return a kernel for device tensors that runs a function of CPU tensors.

    Parameters
    ----------
    signature : Signature
        Of the operator.
    function : callable
        Takes and returns what the operator does.
    formatted : collection of str, optional
        Arguments whose storage format the function looks at: in FRACTAL_NZ it gets them in logical order, with a note
        of the format, and all others as their bytes lie. By default it knows nothing of formats, and gets every tensor
        in logical order, as torch_npu converts tensors for ``aten`` operators.
    """
    if signature.random:
        function = with_host_generator(function, signature.arguments)

    def attempt(args: tuple[Any, ...], kwargs: dict[str, Any], resized: Collection[int]) -> Any:  # noqa: ANN401
        call = Call(formatted, resized)
        names = signature.arguments
        given = [call.on_host(name, value) for name, value in zip(names, args, strict=False)]
        named = {name: call.on_host(name, value) for name, value in kwargs.items()}
        if call.mixes_devices and not signature.crosses_devices:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, npu:0 and cpu! "
                f"(when checking the arguments of {signature.name})"
            )
        try:
            result = function(*given, **named)
        except Exception as error:
            if signature.written and not (signature.out and _UNRESIZABLE in str(error)):
                call.store()  # what was done before the error is done
            raise
        faults.after(_outputs(signature, result, dict(zip(names, given, strict=False)) | named))
        if signature.written:
            call.store()
        return _results(signature, call, result, args, kwargs)

    def kernel(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        faults.before(signature.name)
        try:
            return attempt(args, kwargs, ())
        except RuntimeError as error:
            if not signature.out or _UNRESIZABLE not in str(error):
                raise
            outputs = (kwargs.get(name) for name in signature.out)
            return attempt(args, kwargs, {id(tensor) for output in outputs for tensor in _each(output)})

    kernel.__name__ = signature.name
    return kernel


def _outputs(signature: Signature, result: Any, given: dict[str, Any]) -> Iterator[Any]:  # noqa: ANN401
    """Yield what a call gives: its results, then the arguments that it writes into."""
    for value in (result, *(given[name] for name in signature.written if name in given)):
        yield from _each(value)


def _each(value: Any) -> Iterable[Any]:  # noqa: ANN401
    return value if isinstance(value, (list, tuple)) else (value,)


def _results(
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
