"""Blocks of any size: an NPU's Triton has no powers of two to keep to, and takes slices of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime.interpreter import TensorHandle

from npudiff.device.virtual.triton.loops import turns

_LARGEST = triton._utils.TRITON_MAX_TENSOR_NUMEL


class Semantic(TritonSemantic):
    """What Triton's language means, without powers of two."""

    def arange(self, start: Any, end: Any, *, ret_ty: Any = None) -> Any:  # noqa: ANN401 - as Triton has them
        """Return the integers of a range, int32 ``[end - start]``.

        Raises
        ------
        ValueError
            If the range is empty, or its ends are no int32.
        """
        if not (isinstance(start, int) and isinstance(end, int)):
            raise ValueError("arange's arguments must be of type tl.constexpr")
        if not -(1 << 31) <= start < end <= 1 << 31:
            raise ValueError(f"arange({start}, {end}): a range that is not empty, of int32")
        kind = tl.block_type(tl.int32, [end - start]) if ret_ty is None else ret_ty
        return tl.tensor(self.builder.create_make_range(kind, start, end), kind)

    turns = staticmethod(turns)


def number_of_elements(shape: Sequence[int]) -> int:
    """Return how many elements a block has.

    Raises
    ------
    TypeError, ValueError
        If a size is no positive integer that is known when a kernel is compiled, or the block is larger than Triton's.
    """
    total = 1
    for place, size in enumerate(shape):
        if not isinstance(size, int):
            raise TypeError(f"Shape element {place} must have type `constexpr[int]`, got `constexpr[{type(size)}]")
        if size < 1:
            raise ValueError(f"Shape element {place} must be positive")
        total *= size
    if total > _LARGEST:
        raise ValueError(f"numel ({total}) exceeds triton maximum tensor numel ({_LARGEST})")
    return total


def install() -> None:
    """Have Triton take blocks of any size."""
    for module in (triton._utils, triton.language.core, triton.language.semantic):
        if hasattr(module, "validate_block_shape"):
            module.validate_block_shape = number_of_elements


def extract_slice(ful: Any, offsets: Sequence[Any], sizes: Sequence[Any], strides: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return a part of a block.

    Parameters
    ----------
    ful : tl.tensor
        A block.
    offsets : sequence of int or tl.tensor
        Where the part begins, for each axis.
    sizes, strides : sequence of int
        How many elements it has, and how far they lie apart.

    Raises
    ------
    ValueError
        If the part reaches beyond the block.
    """
    return _block(ful.handle.data[_places("extract_slice", ful, offsets, sizes, strides)].copy(), ful.dtype)


def insert_slice(
    ful: Any,  # noqa: ANN401
    sub: Any,  # noqa: ANN401
    offsets: Sequence[Any],
    sizes: Sequence[Any],
    strides: Sequence[Any],
) -> Any:  # noqa: ANN401
    """Return a block in which a part is replaced; the arguments are those of :func:`extract_slice`.

    Raises
    ------
    ValueError
        If the part reaches beyond the block, or ``sub`` has another size or dtype.
    """
    places = _places("insert_slice", ful, offsets, sizes, strides)
    wanted = tuple(_number(size) for size in sizes)
    if ful.dtype != sub.dtype or tuple(sub.handle.data.shape) != wanted:
        raise ValueError(
            f"insert_slice: sub is {sub.dtype} {list(sub.handle.data.shape)}; allowed: {ful.dtype} {list(wanted)}"
        )
    made = ful.handle.data.copy()
    made[places] = sub.handle.data
    return _block(made, ful.dtype)


def get_element(src: Any, indice: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return one element of a block.

    Raises
    ------
    ValueError
        If the block has no such element.
    """
    places = _places("get_element", src, indice, (1,) * len(indice), (1,) * len(indice))
    return tl.tensor(TensorHandle(src.handle.data[places].reshape(1), src.dtype), src.dtype)


def _places(
    name: str,
    block: Any,  # noqa: ANN401
    offsets: Sequence[Any],
    sizes: Sequence[Any],
    strides: Sequence[Any],
) -> tuple[slice, ...]:
    shape = block.handle.data.shape
    begins, counts, steps = ([_number(one) for one in values] for values in (offsets, sizes, strides))
    if not len(shape) == len(begins) == len(counts) == len(steps):
        raise ValueError(
            f"{name}: {len(begins)} offsets, {len(counts)} sizes, {len(steps)} strides of {len(shape)} axes"
        )
    last = [begin + (count - 1) * step for begin, count, step in zip(begins, counts, steps, strict=True)]
    fits = all(
        begin >= 0 and count > 0 and step > 0 and end < size
        for begin, count, step, end, size in zip(begins, counts, steps, last, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: elements {begins} to {last} of a block {list(shape)}")
    return tuple(slice(begin, end + 1, step) for begin, end, step in zip(begins, last, steps, strict=True))


def _number(value: Any) -> int:  # noqa: ANN401 - int, constexpr or a block of one element
    if isinstance(value, tl.tensor):
        return int(value.handle.data.item())
    return int(getattr(value, "value", value))


def _block(data: Any, dtype: Any) -> Any:  # noqa: ANN401
    return tl.tensor(TensorHandle(data, dtype), tl.block_type(dtype, list(data.shape)))


def parallel(*bounds: Any, **_: object) -> Any:  # noqa: ANN401
    """Return a range whose turns the two vector cores of an AI core may share; here they come one after another."""
    return range(*(_number(bound) for bound in bounds))
