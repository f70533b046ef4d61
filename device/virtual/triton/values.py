"""Elements of blocks: bfloat16 is a number and not its bits, and 16-bit floats are added up in float32.

Triton's own interpreter keeps bfloat16 as uint16, computes with these integers, and cuts float32 off when it converts.
Here NumPy has the dtype, from ``ml_dtypes``: an operation is computed in float32 and rounded to nearest even once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import triton.language as tl
from triton._C.libtriton import interpreter as native
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

from npudiff.device.virtual.triton.addresses import check

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_BITS = np.dtype(np.uint16)
_HALVES = (np.dtype(np.float16), BFLOAT16)

_own_dtype: Callable[[Any], Any] = interpreter._get_np_dtype

_UPDATES: dict[Any, Callable[[Any, Any], Any]] = {
    ir.ATOMIC_OP.FADD: np.add,
    ir.ATOMIC_OP.XCHG: lambda _, new: new,
}


def numpy_dtype(kind: Any) -> Any:  # noqa: ANN401 - tl.dtype
    """Return the dtype in which NumPy has elements of a type of Triton."""
    scalar = kind.element_ty if isinstance(kind, tl.block_type) else kind
    return BFLOAT16 if scalar == tl.bfloat16 else _own_dtype(kind)


class Builder(InterpreterBuilder):  # the methods that Triton's language calls
    """Triton's interpreter with bfloat16, and with a look at addresses."""

    def get_bf16(self, value: float) -> Any:  # noqa: ANN401 - TensorHandle
        """Return a number; Triton 3.7 has none."""
        return TensorHandle(np.array([value], dtype=BFLOAT16), tl.bfloat16)

    def cast_impl(self, src: Any, dst_type: Any) -> Any:  # noqa: ANN401
        """Return elements in another dtype, rounded to nearest even."""
        if _is_small(src.dtype) or _is_small(dst_type):
            return super().cast_impl(src, dst_type)
        return TensorHandle(src.data.astype(numpy_dtype(dst_type)), dst_type.scalar)

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:  # noqa: ANN401
        """Return the result of an operation; that of a comparison is bool, which Triton's interpreter forgets."""
        made = super().binary_op(lhs, rhs, op)
        return TensorHandle(made.data, tl.int1) if made.data.dtype == np.bool_ else made

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:  # noqa: ANN401
        """Return elements in another dtype of floats, rounded as asked."""
        if _is_small(src.dtype) or _is_small(dst_type):
            return super().create_fp_to_fp(src, dst_type, rounding_mode)
        made = src.data.astype(numpy_dtype(dst_type))
        if rounding_mode == ir.ROUNDING_MODE.RTZ and made.dtype in _HALVES:
            too_far = np.abs(made.astype(np.float64)) > np.abs(src.data.astype(np.float64))
            made = (made.view(_BITS) - too_far.astype(_BITS)).view(made.dtype)
        return TensorHandle(made, dst_type.scalar)

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *options: Any) -> Any:  # noqa: ANN401
        """Return what is at addresses; ``other``, or zeros, where the mask is false."""
        dtype = numpy_dtype(ptrs.get_element_ty())
        check("load", ptrs.data, mask.data, dtype.itemsize)
        if dtype != BFLOAT16:
            return super().create_masked_load(ptrs, mask, other, *options)
        filling = np.zeros(ptrs.data.shape, _BITS) if other is None else other.data.view(_BITS)
        loaded = native.load(ptrs.data, mask.data, filling, _BITS)
        return TensorHandle(loaded.view(BFLOAT16), ptrs.get_element_ty())

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *options: Any) -> Any:  # noqa: ANN401
        """Put elements to addresses where the mask is true."""
        check("store", ptrs.data, mask.data, value.data.itemsize)
        return super().create_masked_store(ptrs, _bits(value), mask, *options)

    def create_atomic_rmw(self, rmw_op: Any, ptr: Any, val: Any, mask: Any, *options: Any) -> Any:  # noqa: ANN401
        """Update memory, and return what was there; of bfloat16, Triton has sums and exchanges."""
        check("atomic", ptr.data, mask.data, val.data.itemsize)
        if val.data.dtype != BFLOAT16:
            return super().create_atomic_rmw(rmw_op, ptr, val, mask, *options)
        update, before = _UPDATES[rmw_op], np.zeros(ptr.data.shape, BFLOAT16)
        for place in zip(*np.nonzero(mask.data), strict=True):  # one after another: addresses may be equal
            address, always = ptr.data[place].reshape(1), np.ones(1, bool)
            before[place] = native.load(address, always, np.zeros(1, _BITS), _BITS).view(BFLOAT16)[0]
            after = np.array(update(before[place], val.data[place]), BFLOAT16).reshape(1)
            native.store(address, after.view(_BITS), always)
        return TensorHandle(before, val.dtype.scalar)

    def create_fma(self, x: Any, y: Any, z: Any) -> Any:  # noqa: ANN401
        """Return a product and what is added to it, of 16-bit floats rounded once; Triton 3.7 rounds twice."""
        if z.data.dtype not in _HALVES:
            return super().create_fma(x, y, z)
        exact = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    def create_atomic_cas(self, ptr: Any, cmp: Any, val: Any, *options: Any) -> Any:  # noqa: ANN401
        """Replace what is in memory where it is as expected, and return what was there."""
        check("atomic", ptr.data, np.ones(ptr.data.shape, bool), val.data.itemsize)
        found = super().create_atomic_cas(ptr, _bits(cmp), _bits(val), *options)
        return TensorHandle(found.data.view(cmp.data.dtype), cmp.dtype.scalar)


class Reduction(ReduceOps):
    """Reductions that add 16-bit floats in float32."""

    def sum(self, input: Any) -> Any:  # noqa: ANN401
        """Return sums of a block along an axis, each rounded once."""
        total = np.sum(_wide(input.handle.data), axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(total, input.dtype)


class Scan(ScanOps):
    """Sums and products so far, of 16-bit floats in float32."""

    def cumsum(self, input: Any) -> Any:  # noqa: ANN401
        """Return the sums so far of a block along an axis, each rounded once."""
        return [self.to_tensor(np.cumsum(_wide(input.handle.data), axis=self.axis), dtype=input.dtype)]

    def cumprod(self, input: Any) -> Any:  # noqa: ANN401
        """Return the products so far of a block along an axis, each rounded once."""
        return [self.to_tensor(np.cumprod(_wide(input.handle.data), axis=self.axis), dtype=input.dtype)]


def _wide(data: Any) -> Any:  # noqa: ANN401
    return data.astype(np.float32) if data.dtype in _HALVES else data


def _is_small(kind: Any) -> bool:  # noqa: ANN401
    """Whether elements are floats of 8 bits, which stay as Triton's interpreter has them."""
    return bool(kind.scalar.is_floating() and kind.scalar.primitive_bitwidth == 8)


def _bits(handle: Any) -> Any:  # noqa: ANN401
    """Return what Triton's compiled part takes for elements: it knows no bfloat16."""
    return TensorHandle(handle.data.view(_BITS), tl.uint16) if handle.data.dtype == BFLOAT16 else handle
