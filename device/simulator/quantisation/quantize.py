"""``npu_quantize``: integers with scales that are given, which divide or multiply.

Sources: the wheel's documentation of the operator and its META rule, op-plugin's checks and tests, and CANN's
``ascend_quant_v2`` kernel.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks, dtype_name
from npudiff.device.simulator.cache.formats import Format, StorageFormat, format_of, note
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation import scalar_types as types
from npudiff.device.simulator.quantisation.integers import INT4, INT8, PER_WORD, packed, saturated

_CHECK = ArgumentChecks("npu_quantize", default=ErrorCode.PARAMETER)

_UINT8 = ((0, 255), torch.uint8)
_INT32 = ((-(2**31), 2**31 - 1), torch.int32)
_DIVIDING = {
    types.QINT8: (INT8, torch.int8),
    types.INT8: (INT8, torch.int8),
    types.QUINT8: _UINT8,
    types.UINT8: _UINT8,
    types.QINT32: _INT32,
    types.INT32: _INT32,
}
# The wrapper's list has no quint4x2, which is of the branch that multiplies; DOC has qint8 beside it.
_MULTIPLYING = (types.QINT8, types.INT8, types.QUINT4X2)


def quantize(
    x: Tensor, /, scales: Tensor, zero_points: Tensor | None, dtype: int, axis: int = 1, div_mode: bool = True
) -> Tensor:
    """Return ``round(x / scales) + zero_points``, or ``round(x * scales + zero_points)``, as integers.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32, rank 1 to 8.
    scales : Tensor
        [1] or [size of the axis]; or of the rank of x, with 1 for the other axes. float32 or bfloat16 to divide, any
        of the three to multiply.
    zero_points : Tensor, optional
        The shape of scales. int8, uint8, int32 or bfloat16 to divide, the dtype of scales to multiply.
    dtype : int
        ScalarType of the output: qint8, quint8, qint32, int8, uint8 or int32 to divide; qint8, int8 or quint4x2 to
        multiply.
    axis : int
        The axis that scales are of. To multiply it is -2, or more for the last axis.
    div_mode : bool
        Whether scales divide.

    Returns
    -------
    Tensor
        int8, uint8 or int32 in the shape of x, never a quantised dtype. For quint4x2 int32 with an eighth of the last
        axis, in FRACTAL_NZ if x is.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or axis is not one of the above.
    NotSimulated
        An input in FRACTAL_NZ that is no weight to pack.
    """
    _CHECK.dtype("input", x, *FLOATS)
    _CHECK.rank("input", x, range(1, 9))
    _check_nz(x, zero_points, dtype, div_mode=div_mode)
    return _divide(x, scales, zero_points, dtype, axis) if div_mode else _multiply(x, scales, zero_points, dtype, axis)


def quantize_meta(x: Tensor, /, dtype: int) -> Tensor:
    """Allocate the output. As torch_npu's META, this checks only that words of int4 are full."""
    if dtype == types.QUINT4X2:
        _require_words(x)
        return x.new_empty((*x.shape[:-1], x.shape[-1] // PER_WORD), dtype=torch.int32)
    return x.new_empty(x.shape, dtype=_DIVIDING.get(dtype, (INT8, torch.int8))[1])


def _divide(x: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: int, axis: int) -> Tensor:
    if dtype not in _DIVIDING:
        _refuse_dtype(dtype, _DIVIDING, "True")
    limits, integer = _DIVIDING[dtype]
    axis = _CHECK.axis("axis", axis, x.dim())
    _CHECK.dtype("scales", scales, "float32", "bfloat16")
    quotient = (x.float() / _broadcast("scales", scales, x, axis).float()).round()
    # Beyond the integers of float32 a zero point is exact only in more bits, and so is the largest int32.
    wide = quotient if zero_points is None and integer != torch.int32 else quotient.double()
    if zero_points is not None:
        _CHECK.dtype("zero_points", zero_points, "int8", "uint8", "int32", "bfloat16")
        _CHECK.shape("zero_points", zero_points, scales.shape, meaning="as scales")
        wide = wide + _broadcast("zero_points", zero_points, x, axis).double()
    return saturated(wide, limits, integer)


def _multiply(x: Tensor, scales: Tensor, zero_points: Tensor | None, dtype: int, axis: int) -> Tensor:
    if dtype not in _MULTIPLYING:
        _refuse_dtype(dtype, _MULTIPLYING, "False")
    if dtype == types.QUINT4X2:
        _require_words(x)
    if not -2 <= axis < x.dim() or (axis == -2 and x.dim() == 1):
        raise _CHECK.rejected("axis", axis, f"{-min(2, x.dim())} to {x.dim() - 1} with div_mode False")
    axis = x.dim() - 2 if axis == -2 else x.dim() - 1
    as_input = active_profile().quantize_scales == "as_input"
    _CHECK.dtype("scales", scales, *((dtype_name(x),) if as_input else FLOATS))
    product = x.float() * _broadcast("scales", scales, x, axis).float()
    if zero_points is not None:
        _CHECK.dtype("zero_points", zero_points, dtype_name(scales))
        _CHECK.shape("zero_points", zero_points, scales.shape, meaning="as scales")
        product = product + _broadcast("zero_points", zero_points, x, axis).float()
    ties = active_profile().quantize_ties
    if dtype != types.QUINT4X2:
        return saturated(product, INT8, torch.int8, ties)
    words = packed(saturated(product, INT4, torch.int8, ties))
    if format_of(x) == Format.FRACTAL_NZ:
        # Tiles of int4 are 64 wide, which 32 bytes hold, and not the 16 words of int32.
        note(words, StorageFormat(Format.FRACTAL_NZ, (*x.shape[:-1], x.shape[-1] // 2), torch.int8))
    return words


def _broadcast(argument: str, tensor: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return a view that broadcasts over x along one axis."""
    size = x.shape[axis]
    shapes = [[1] * axis + [own] + [1] * (x.dim() - 1 - axis) for own in (1, size)]
    _CHECK.shape(argument, tensor, [1], [size], *shapes, meaning=f"1 or the size of axis {axis} of input")
    return tensor.reshape(shapes[0 if tensor.numel() == 1 else 1])


def _refuse_dtype(dtype: int, allowed: object, mode: str) -> NoReturn:
    numbers = ", ".join(map(str, allowed))  # type: ignore[call-overload]
    raise _CHECK.rejected("dtype", dtype, f"{numbers} (numbers of ScalarType) with div_mode {mode}", ErrorCode.WRAPPER)


def _require_words(x: Tensor) -> None:
    if x.shape[-1] % PER_WORD:
        given = f"of shape {list(x.shape)} with dtype quint4x2"
        raise _CHECK.rejected("input", given, f"a last axis that is a multiple of {PER_WORD}", ErrorCode.WRAPPER)


def _check_nz(x: Tensor, zero_points: Tensor | None, dtype: int, *, div_mode: bool) -> None:
    """Let FRACTAL_NZ pass where a weight is packed: DOC has this one use of it."""
    if format_of(x) != Format.FRACTAL_NZ:
        return
    weight = x.dim() == 3 and x.is_contiguous() and x.dtype == torch.float32
    if not weight or div_mode or dtype != types.QUINT4X2 or zero_points is not None:
        simulated = "a contiguous float32 [experts, k, n] to quint4x2 without div_mode and zero_points"
        raise _CHECK.not_simulated("input", f"{dtype_name(x)} of shape {list(x.shape)} in FRACTAL_NZ", simulated)
