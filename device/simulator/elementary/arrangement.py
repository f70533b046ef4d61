"""Operators that move, repeat, order and pick elements; they compute nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import DeviceFault, ErrorCode

_BITS = 8


def broadcast(x: Tensor, /, size: Sequence[int]) -> Tensor:
    """Return x expanded to a shape, with memory of its own."""
    return x.expand(list(size)).clone(memory_format=torch.contiguous_format)


def broadcast_meta(x: Tensor, /, size: Sequence[int]) -> Tensor:
    """Allocate the output."""
    return x.new_empty(x.expand(list(size)).shape)


def reshape(x: Tensor, /, shape: Sequence[int]) -> Tensor:
    """Return x in another shape, with memory of its own.

    Raises
    ------
    OperatorRejected
        The shape has another number of elements. The operator would copy what lies behind x.
    """
    check = _check("npu_reshape")
    if torch.Size(shape).numel() != x.numel():
        raise check.rejected("shape", list(shape), f"{x.numel()} elements, as input has")
    return x.reshape(list(shape)).clone()


def reshape_meta(x: Tensor, /, shape: Sequence[int]) -> Tensor:
    """Allocate the output."""
    return x.new_empty(list(shape))


def transpose(x: Tensor, /, perm: Sequence[int]) -> Tensor:
    """Return x with its axes in another order, contiguous.

    Raises
    ------
    OperatorRejected
        perm is no order of the axes.
    """
    return _permuted(_check("npu_transpose"), x, perm)


def transpose_meta(x: Tensor, /, perm: Sequence[int]) -> Tensor:
    """Allocate the output."""
    return x.new_empty([x.shape[axis] for axis in perm])


def confusion_transpose(x: Tensor, /, perm: Sequence[int], shape: Sequence[int], transpose_first: bool) -> Tensor:
    """Return x with its axes in another order and another shape, in either sequence.

    Raises
    ------
    OperatorRejected
        perm is no order of axes, or shape has another number of elements.
    """
    check = _check("npu_confusion_transpose")
    if torch.Size(shape).numel() != x.numel():
        raise check.rejected("shape", list(shape), f"{x.numel()} elements, as input has")
    if transpose_first:
        return _permuted(check, x, perm).reshape(list(shape))
    return _permuted(check, x.reshape(list(shape)), perm)


def confusion_transpose_meta(x: Tensor, /, perm: Sequence[int], shape: Sequence[int], transpose_first: bool) -> Tensor:
    """Allocate the output, after the check that torch_npu has for it."""
    if transpose_first:
        return x.new_empty(list(shape))
    for axis in perm:
        if axis >= len(shape):
            words = f"npu_confusion_transpose forward/backward input invalid, shape has size {len(shape)} but perm[i]"
            raise _check("npu_confusion_transpose").rejected(
                "perm", list(perm), f"up to {len(shape) - 1}", ErrorCode.WRAPPER, f"{words} is, {axis}"
            )
    return x.new_empty([shape[axis] for axis in perm])


def confusion_transpose_backward(
    grad: Tensor, /, perm: Sequence[int], shape: Sequence[int], transpose_first: bool
) -> Tensor:
    """Return the gradient of :func:`confusion_transpose`.

    Parameters
    ----------
    grad : Tensor
        Of its output.
    perm : sequence of int
        Of the call.
    shape : sequence of int
        Of its input.
    transpose_first : bool
        The opposite of the call's.
    """
    check = _check("npu_confusion_transpose_backward")
    back = [list(perm).index(axis) for axis in range(len(perm))]
    if transpose_first:  # the call reshaped first
        return _permuted(check, grad, back).reshape(list(shape))
    return _permuted(check, grad.reshape([shape[axis] for axis in perm]), back)


def confusion_transpose_backward_meta(grad: Tensor, /, shape: Sequence[int]) -> Tensor:
    """Allocate the output."""
    return grad.new_empty(list(shape))


def slice_of(x: Tensor, /, offsets: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return ``size[i]`` places of each axis from ``offsets[i]`` on.

    Raises
    ------
    OperatorRejected
        They are not within x.
    """
    check = _check("npu_slice")
    if not len(offsets) == len(size) == x.dim():
        raise check.rejected("offsets", f"{list(offsets)} and size {list(size)}", f"{x.dim()} numbers each")
    for axis, (offset, count) in enumerate(zip(offsets, size, strict=True)):
        if offset < 0 or count < 0 or offset + count > x.shape[axis]:
            raise check.rejected("size", f"{count} from {offset} on of axis {axis}", f"within {x.shape[axis]}")
    where = tuple(slice(offset, offset + count) for offset, count in zip(offsets, size, strict=True))
    return x[where].clone()


def slice_meta(x: Tensor, /, size: Sequence[int]) -> Tensor:
    """Allocate the output."""
    return x.new_empty(list(size))


def indexing(
    x: Tensor,
    /,
    begin: Sequence[int],
    end: Sequence[int],
    strides: Sequence[int],
    begin_mask: int,
    end_mask: int,
    ellipsis_mask: int,
    new_axis_mask: int,
    shrink_axis_mask: int,
) -> Tensor:
    """Return every ``strides[i]``-th place of each axis from ``begin[i]`` up to ``end[i]``, which is left out.

    Raises
    ------
    OperatorRejected
        Not as many numbers as x has axes, a stride of 0, or places outside x.
    NotSimulated
        A stride below 0, or a mask: the host code for A2 and A3 takes the output's shape from the numbers alone.
    """
    check = _check("npu_indexing")
    _check_numbers(check, x, begin, end, strides)
    masks = {"begin_mask": begin_mask, "end_mask": end_mask, "ellipsis_mask": ellipsis_mask}
    masks |= {"new_axis_mask": new_axis_mask, "shrink_axis_mask": shrink_axis_mask}
    for name, mask in masks.items():
        if mask:
            raise check.not_simulated(name, mask, "0")
    for axis, (first, last, stride) in enumerate(zip(begin, end, strides, strict=True)):
        if stride < 0:
            raise check.not_simulated("strides", list(strides), "positive ones")
        if not 0 <= first <= last <= x.shape[axis]:
            raise check.rejected("end", f"{first} to {last} of axis {axis}", f"within {x.shape[axis]}")
    return x[tuple(map(slice, begin, end, strides))].clone()


def indexing_meta(x: Tensor, /, begin: Sequence[int], end: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Allocate the output, of the shape that the numbers say."""
    _check_numbers(_check("npu_indexing"), x, begin, end, strides)
    return x.new_empty([-((first - last) // step) for first, last, step in zip(begin, end, strides, strict=True)])


def pad(x: Tensor, /, paddings: Sequence[int]) -> Tensor:
    """Return x with zeros in front of and behind each axis, two numbers for each, the first axis first.

    Raises
    ------
    OperatorRejected
        A number is below 0, or there are more than two for each axis.
    """
    check = _check("npu_pad")
    if len(paddings) > 2 * x.dim() or min(paddings, default=0) < 0:
        raise check.rejected("paddings", list(paddings), f"up to {2 * x.dim()} numbers from 0 on")
    padded = x.new_zeros(pad_meta(x, paddings).shape)
    where = tuple(slice(before, before + size) for before, size in zip(_all(paddings, x)[::2], x.shape, strict=True))
    padded[where] = x
    return padded


def pad_meta(x: Tensor, /, paddings: Sequence[int]) -> Tensor:
    """Allocate the output."""
    both = _all(paddings, x)
    return x.new_empty([size + both[2 * axis] + both[2 * axis + 1] for axis, size in enumerate(x.shape)])


def ones_in_place(x: Tensor, /) -> Tensor:
    """Write 1 into every element of x, and return it."""
    return x.fill_(1)


def one_hot(x: Tensor, /, num_classes: int, depth: int, on_value: float, off_value: float) -> Tensor:
    """Return float32 in which one place of ``depth`` is ``on_value``; classes outside have none.

    ``num_classes`` is the axis in which the places are, which the host code's shape has as the last.

    Raises
    ------
    NotSimulated
        Another axis than the last.
    """
    if num_classes not in (-1, x.dim()):
        raise _check("npu_one_hot").not_simulated("num_classes", num_classes, "-1, the last axis")
    hot = x.to(torch.int32).unsqueeze(-1) == torch.arange(depth)
    return torch.where(hot, float(on_value), float(off_value)).float()


def one_hot_meta(x: Tensor, /, depth: int) -> Tensor:
    """Allocate the output."""
    return x.new_empty((*x.shape, depth), dtype=torch.float32)


def sort(x: Tensor, /, dim: int, descending: bool) -> Tensor:
    """Return x in order along an axis."""
    return x.sort(_check("npu_sort_v2").axis("dim", dim, x.dim()), descending).values


def maximum(x: Tensor, /, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Return the largest of an axis, and its int32 index: the first, where several are largest."""
    values, _ = x.max(dim, True)
    return _with_index(x, values, dim, keepdim)


def minimum(x: Tensor, /, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Return the smallest of an axis, and its int32 index: the first, where several are smallest."""
    values, _ = x.min(dim, True)
    return _with_index(x, values, dim, keepdim)


def reduced_meta(x: Tensor, /, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Allocate values and indices."""
    axis = dim % max(x.dim(), 1)
    shape = [1 if at == axis else size for at, size in enumerate(x.shape) if keepdim or at != axis]
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32)


def reduced_backward(grad: Tensor, /, dim: int, indices: Tensor, sizes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the gradient of :func:`maximum` and :func:`minimum`, of their input's shape."""
    if not keepdim:
        grad, indices = grad.unsqueeze(dim), indices.unsqueeze(dim)
    return grad.new_zeros(list(sizes)).scatter(dim, indices.long(), grad)


def reduced_backward_meta(grad: Tensor, /, sizes: Sequence[int]) -> Tensor:
    """Allocate the output."""
    return grad.new_empty(list(sizes))


def sign_bits_pack(x: Tensor, /, size: int) -> Tensor:
    """Return a bit for each number, 0 if it is negative, eight in a byte from the lowest bit on.

    Parameters
    ----------
    x : Tensor
        float16 or float32 [N]; bits behind N are 0.
    size : int
        Rows of the output, which divides its bytes.

    Returns
    -------
    Tensor
        uint8 [size, ceil(N / 8) / size].

    Raises
    ------
    OperatorRejected
        Dtype, rank or size is not one of the above.
    """
    check = _check("npu_sign_bits_pack")
    check.dtype("input", x, "float16", "float32")
    check.rank("input", x, 1)
    count = -(-len(x) // _BITS)
    if size < 1 or count % size:
        raise check.rejected("size", size, f"a divisor of {count} bytes")
    bits = torch.zeros(count * _BITS, dtype=torch.uint8)
    bits[: len(x)] = x >= 0
    weights = torch.tensor([1 << bit for bit in range(_BITS)], dtype=torch.uint8)
    return (bits.view(count, _BITS) * weights).sum(1).to(torch.uint8).view(size, -1)


def sign_bits_pack_meta(x: Tensor, /, size: int) -> Tensor:
    """Allocate the output."""
    return x.new_empty((size, -(-x.numel() // _BITS) // size), dtype=torch.uint8)


def sign_bits_unpack(x: Tensor, /, size: int, dtype: torch.dtype) -> Tensor:
    """Return 1 for each bit that is set, and -1 for the others, from the lowest bit of each byte on.

    Parameters
    ----------
    x : Tensor
        uint8 [N].
    size : int
        Rows of the output, which divides its elements.
    dtype : torch.dtype
        float16 or float32, of the output.

    Returns
    -------
    Tensor
        [size, 8 N / size].

    Raises
    ------
    OperatorRejected
        Dtype, rank or size is not one of the above.
    """
    check = _check("npu_sign_bits_unpack")
    check.dtype("input", x, "uint8")
    check.rank("input", x, 1)
    check.choice("dtype", dtype, (torch.float16, torch.float32))
    if size < 1 or len(x) * _BITS % size:
        raise check.rejected("size", size, f"a divisor of {len(x) * _BITS} elements")
    bits = x[:, None].int() >> torch.arange(_BITS, dtype=torch.int32) & 1
    return (2 * bits - 1).to(dtype).view(size, -1)


def sign_bits_unpack_meta(x: Tensor, /, size: int, dtype: torch.dtype) -> Tensor:
    """Allocate the output."""
    return x.new_empty((size, x.numel() * _BITS // size), dtype=dtype)


def _check(operator: str) -> ArgumentChecks:
    return ArgumentChecks(operator, default=ErrorCode.PARAMETER)


def _permuted(check: ArgumentChecks, x: Tensor, perm: Sequence[int]) -> Tensor:
    if sorted(perm) != list(range(x.dim())):
        raise check.rejected("perm", list(perm), f"an order of {x.dim()} axes")
    return x.permute(list(perm)).clone(memory_format=torch.contiguous_format)


def _check_numbers(
    check: ArgumentChecks, x: Tensor, begin: Sequence[int], end: Sequence[int], strides: Sequence[int]
) -> None:
    if not len(begin) == len(end) == len(strides) == x.dim():
        given = f"{list(begin)}, end {list(end)} and strides {list(strides)}"
        raise check.rejected("begin", given, f"{x.dim()} numbers each")
    if 0 in strides:
        words = "stride should not be 0"
        raise check.rejected("strides", list(strides), "no 0", ErrorCode.WRAPPER, words)


def _all(paddings: Sequence[int], x: Tensor) -> list[int]:
    return [*paddings, *[0] * (2 * x.dim() - len(paddings))]


def _with_index(x: Tensor, values: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    found = (x == values) | (x.isnan() & values.isnan()) if x.is_floating_point() else x == values
    if not x.numel():
        raise DeviceFault(f"npu_max or npu_min of an empty tensor, {list(x.shape)} {dtype_name(x)}")
    indices = found.int().argmax(dim, keepdim).int()
    return (values if keepdim else values.squeeze(dim)), indices
