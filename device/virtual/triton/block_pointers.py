"""Block pointers, which newer Tritons have not, and the Triton of an NPU has: ``tl.make_block_ptr``, ``tl.advance``.

A block pointer says where a block of a larger array is; loads and stores look at the array's borders where they are
asked to, as Triton 3.5's documentation of ``make_block_ptr``, ``load`` and ``store`` has it.
"""

# ruff: noqa: ANN401 - arguments are what Triton has: integers, blocks of one element, constants
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

_PADDINGS = {"": None, "zero": 0.0, "nan": float("nan")}
"""What elements beyond the border are; nothing is said of them where no padding is."""


@dataclass(frozen=True)
class BlockPointer:
    """Where a block of an array is.

    Parameters
    ----------
    base : tl.tensor
        Pointer to the array's first element.
    shape, strides, offsets : tuple of int
        Of the array, in elements, and where in it the block begins.
    block_shape : tuple of int
        Of the block.
    """

    base: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offsets: tuple[int, ...]
    block_shape: tuple[int, ...]

    @property
    def dtype(self) -> Any:
        """The type of the pointer, which has that of its elements."""
        return self.base.dtype

    @property
    def type(self) -> Any:
        """The same."""
        return self.base.type

    def pointers(self) -> Any:
        """Return a pointer for each element of the block."""
        size = max(1, self.base.dtype.element_ty.primitive_bitwidth // 8)
        places: Any = np.zeros(self.block_shape, dtype=np.int64)
        for axis, stride in enumerate(self.strides):
            places = places + self._along(axis) * stride
        first = np.asarray(self.base.handle.data).reshape(-1)[0]
        data = (np.int64(first) + places * size).astype(np.asarray(self.base.handle.data).dtype)
        return tl.tensor(TensorHandle(data, self.base.dtype), tl.block_type(self.base.dtype, list(self.block_shape)))

    def within(self, axes: Sequence[int]) -> Any:
        """Return which elements are within the borders of some axes of the array."""
        inside: Any = np.ones(self.block_shape, dtype=np.bool_)
        for axis in axes:
            along = self._along(axis)
            inside = inside & (along >= 0) & (along < self.shape[axis])
        return tl.tensor(TensorHandle(inside, tl.int1), tl.block_type(tl.int1, list(self.block_shape)))

    def _along(self, axis: int) -> Any:
        """Index of each element along an axis, in a shape that broadcasts."""
        shape = [1] * len(self.block_shape)
        shape[axis] = self.block_shape[axis]
        return (self.offsets[axis] + np.arange(self.block_shape[axis], dtype=np.int64)).reshape(shape)


def _number(value: Any) -> int:
    if isinstance(value, tl.constexpr):
        return _number(value.value)
    if isinstance(value, tl.tensor):
        return int(np.asarray(value.handle.data).reshape(-1)[0])
    return int(value)


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(_number(one) for one in values)


def _axes(boundary_check: Any) -> tuple[int, ...]:
    found = boundary_check.value if isinstance(boundary_check, tl.constexpr) else boundary_check
    return _numbers(found if isinstance(found, (tuple, list, tl.tuple)) else (found,))


@tl.core.builtin  # type: ignore[untyped-decorator]
def make_block_ptr(
    base: Any,
    shape: Any,
    strides: Any,
    offsets: Any,
    block_shape: Any,
    order: Any,
    _semantic: Any = None,
) -> BlockPointer:
    """Return a pointer to a block; in which order it lies says nothing about what is read."""
    del order, _semantic
    return BlockPointer(base, *(_numbers(one) for one in (shape, strides, offsets, block_shape)))


@tl.core.builtin  # type: ignore[untyped-decorator]
def advance(base: BlockPointer, offsets: Any, _semantic: Any = None) -> BlockPointer:
    """Return a pointer to a block so many elements further."""
    del _semantic
    moved = tuple(old + more for old, more in zip(base.offsets, _numbers(offsets), strict=True))
    return replace(base, offsets=moved)


_load, _store = tl.core.load, tl.core.store


@tl.core.builtin  # type: ignore[untyped-decorator]
def load(
    pointer: Any, mask: Any = None, other: Any = None, boundary_check: Any = (), padding_option: Any = "",
    _semantic: Any = None, **more: Any,
) -> Any:  # fmt: skip
    """Triton's, of a block as well."""
    if not isinstance(pointer, BlockPointer):
        return _load(pointer, mask=mask, other=other, _semantic=_semantic, **more)
    padding = _PADDINGS[getattr(padding_option, "value", padding_option)]
    return _load(
        pointer.pointers(), mask=pointer.within(_axes(boundary_check)), other=padding, _semantic=_semantic, **more
    )


@tl.core.builtin  # type: ignore[untyped-decorator]
def store(
    pointer: Any,
    value: Any,
    mask: Any = None,
    boundary_check: Any = (),
    _semantic: Any = None,
    **more: Any,
) -> Any:
    """Triton's, of a block as well."""
    if not isinstance(pointer, BlockPointer):
        return _store(pointer, value, mask=mask, _semantic=_semantic, **more)
    where = pointer.within(_axes(boundary_check))
    return _store(pointer.pointers(), value, mask=where, _semantic=_semantic, **more)


def install() -> None:
    """Have Triton's language know them, unless the installed Triton does."""
    if "boundary_check" in getattr(tl.core.load, "__wrapped__", tl.core.load).__code__.co_varnames:
        return
    for module in (tl, tl.core):
        for function in (make_block_ptr, advance, load, store):
            setattr(module, function.__name__, function)
