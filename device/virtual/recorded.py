"""Kernels that run later: those that a graph captures, and those that wait for their turn on a stream.

A card knows all of a kernel's arguments when it is captured, but not the values of tensors. So does this: to learn what
the operator refuses, and what its results look like, its function is run on tensors of zeros. What is recorded then
takes addresses, and numbers and lists as they are now; later it reads and writes what is at those addresses.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from npudiff.device.simulator.cache.formats import note, noted_format
from npudiff.device.simulator.tried import without_values
from npudiff.device.virtual import faults, tasks
from npudiff.device.virtual.calls import Call, Signature, outputs_of, results_of, stand_ins
from npudiff.device.virtual.generators import Draw, noted, repeated
from npudiff.device.virtual.memory import Fill, NotOnVirtualNpu, Tiles, allocated

_VALUES = (0, 1, None)
"""What tensors hold when a function is tried: some have no result for zeros, and a few need the true values (None)."""

_LARGE = 1 << 16
"""Bytes from which on zeros are pages that nobody has touched."""


def record(
    signature: Signature,
    function: Callable[..., Any],
    formatted: Collection[str] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    resized: Collection[int] = (),
) -> Any:  # noqa: ANN401 - an operator's
    """Launch a kernel that runs later, and return its results, whose memory holds what it held before.

    Parameters
    ----------
    signature, function, formatted
        As of :func:`npudiff.device.virtual.kernels.device_kernel`.
    args, kwargs
        Arguments of the call.
    resized : collection of int, optional
        The ``id`` of tensors that torch may resize.
    """
    tried, result, asked = _tried(signature, function, formatted, args, kwargs, resized)
    if signature.written:
        tried.shaped()
    answers = results_of(signature, tried, result, args, kwargs)
    call = _Later(formatted)
    given, named = stand_ins(signature, call, args, kwargs)
    draws = [Draw(generator) for generator in asked]
    kernel = _Kernel(signature, function, given, named, call.tiled, draws, tried.fills)
    kernel.needs([*given, *named.values(), *(tiles.tiles for tiles, _ in call.tiled)], answers)
    tasks.launch(signature.name, kernel.run)
    return answers


class _Kernel:
    """A function with its arguments: tensors over the device's memory, which may be gone when it runs."""

    def __init__(
        self,
        signature: Signature,
        function: Callable[..., Any],
        given: Sequence[Any],
        named: dict[str, Any],
        tiled: Sequence[tuple[Tiles, Tensor]],
        draws: Sequence[Draw],
        fills: Sequence[Fill | None],
    ) -> None:
        self._signature, self._function = signature, function
        self._given, self._named, self._tiled = given, named, tiled
        self._draws, self._fills = draws, fills
        self._ranges: set[tuple[int, int]] = set()
        self._frees = -1

    def needs(self, hosts: Sequence[Any], results: Any) -> None:  # noqa: ANN401
        """Note which memory has to be the device's: that under tensors of the host, and that of results."""
        self._frees = tasks.frees()
        for tensor in _tensors(hosts):
            storage = tensor.untyped_storage()
            if storage.nbytes() and tasks.is_allocated(storage.data_ptr(), storage.nbytes()):
                self._ranges.add((storage.data_ptr(), storage.nbytes()))
        for tensor in _tensors(results):
            if tensor.device.type == "npu":
                self._ranges.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))

    def run(self) -> None:
        """Run it on what is in memory now.

        Raises
        ------
        RuntimeError
            If memory that it needs has been given back by torch_npu's allocator.
        """
        if self._frees != tasks.frees():
            self._frees = tasks.frees()
            if not all(tasks.is_allocated(*one) for one in self._ranges):
                raise RuntimeError("memory that was there at the capture has been freed")
        with torch.inference_mode(), repeated(self._draws) if self._draws else contextlib.nullcontext():
            for tiles, copy in self._tiled:
                tiles.load(copy)
            result = self._function(*self._given, **self._named)
            given = dict(zip(self._signature.arguments, self._given, strict=False)) | self._named
            faults.after(outputs_of(self._signature, result, given))
            if self._signature.written:
                for tiles, copy in self._tiled:
                    tiles.store(copy)
            self._fill(result)

    def _fill(self, result: Any) -> None:  # noqa: ANN401
        """Put new results where they were promised."""
        if not self._fills:
            return
        results = result if self._signature.several else (result,)
        new = [value for name, value in zip(self._signature.returned, results, strict=True) if name is None]
        for fill, values in zip(self._fills, _tensors(new), strict=True):
            if fill is not None:
                fill(values)


def _tensors(values: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """Yield the tensors among values and lists of them."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


class _Later(Call):
    """A call that runs later: numbers of the host are as they were, and pinned memory is read when its turn comes."""

    def _of_host(self, value: Tensor) -> Tensor:
        return value if value.dim() and value.is_pinned() else value.clone()


class _Tried(Call):
    """A call whose tensors hold one value, in other memory with the same sizes, strides, formats and overlaps."""

    def __init__(self, formatted: Collection[str] | None, resized: Collection[int], value: int | None) -> None:
        super().__init__(formatted, resized)
        self._value = value
        self._storages: dict[int, torch.UntypedStorage] = {}
        self.fills: list[Fill | None] = []
        """For each result, what puts it where it was promised; None for a view of an argument."""

    def _of_host(self, value: Tensor) -> Tensor:
        return value.clone()

    def _same_memory(self, view: Tensor) -> Tensor:
        if view.is_inference() and not torch.is_inference_mode_enabled():
            with torch.inference_mode():
                return self._same_memory(view)
        real = view.untyped_storage()
        storage = self._storages.get(real.data_ptr())
        if storage is None:
            storage = self._storages[real.data_ptr()] = self._storage(view, real)
        stand_in = torch.empty(0, dtype=view.dtype).set_(storage, view.storage_offset(), view.size(), view.stride())
        described = noted_format(view)
        if described is not None:
            note(stand_in, described)
        if view.is_conj():
            torch._C._set_conj(stand_in, True)
        if view.is_neg():
            torch._C._set_neg(stand_in, True)
        return stand_in

    def _storage(self, view: Tensor, real: torch.UntypedStorage) -> torch.UntypedStorage:
        if self._value is None:
            copy: torch.UntypedStorage = real.clone()  # type: ignore[no-untyped-call]
            return copy
        storage = _zeros(real.nbytes())
        if self._value:
            torch.empty(0, dtype=view.dtype).set_(storage).fill_(self._value)
        return storage

    def _logical(self, copy: Tensor) -> Tensor:
        if self._value is not None:
            torch.empty(0, dtype=copy.dtype).set_(copy.untyped_storage()).fill_(self._value)
        return copy

    def on_device(self, result: Any) -> Any:  # noqa: ANN401 - any value of an operator
        count = len(self.fills)
        made = super().on_device(result)
        if isinstance(result, Tensor) and len(self.fills) == count:
            self.fills.append(None)
        return made

    def _new(self, result: Tensor) -> Tensor:
        made, fill = allocated(result)
        self.fills.append(fill)
        return made


def _zeros(size: int) -> torch.UntypedStorage:
    """Return a storage of zeros; a large one takes no memory where nobody writes into it."""
    if size < _LARGE:
        return torch.zeros(size, dtype=torch.uint8).untyped_storage()
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()


def _tried(
    signature: Signature,
    function: Callable[..., Any],
    formatted: Collection[str] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    resized: Collection[int],
) -> tuple[_Tried, Any, list[torch.Generator]]:
    """Run a function without consequences; return the call, what it gave, and the generators that it drew from."""
    first: Exception | None = None
    for value in _VALUES:
        call = _Tried(formatted, resized, value)
        given, named = stand_ins(signature, call, args, kwargs)
        try:
            with without_values(), noted() as asked:
                return call, function(*given, **named), asked
        except NotOnVirtualNpu:
            raise
        except Exception as error:  # noqa: BLE001 - an operator's
            first = first or error
    assert first is not None  # noqa: S101 - or it had returned
    raise first


def copied_to_host(tensor: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """Launch a copy to the host that is made later, and return pinned memory for it.

    Parameters
    ----------
    tensor : Tensor
        Of the device.
    convert : callable
        Returns what is to be copied, of a tensor over the same memory.
    """
    call = _Later(None)
    source = call.on_host("self", tensor)
    like = convert(source)
    made, tiled = torch.empty_strided(like.size(), like.stride(), dtype=like.dtype, pin_memory=True), call.tiled

    def run() -> None:
        for tiles, copy in tiled:
            tiles.load(copy)
        made.copy_(convert(source))

    tasks.launch("aten::_to_copy", run)
    return made
