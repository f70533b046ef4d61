"""``npu_dtype_cast``: a conversion to a dtype, which may be one that torch has not.

Sources: op-plugin's documentation and code (``CastKernelNpuOpApi.cpp``), and the wheel's META rule. How aclnnCast
rounds to 8 and 4 bits is inferred from operators that do so: to nearest, halves to even, and what is too large becomes
the largest number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.block_scaled.small_floats import BY_NUMBER, SmallFloat
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.quantisation import scalar_types as types

_CHECK = ArgumentChecks("npu_dtype_cast", default=ErrorCode.PARAMETER)

_PLAIN = {
    types.UINT8: torch.uint8, types.INT8: torch.int8, 2: torch.int16, types.INT32: torch.int32, 4: torch.int64,
    types.FLOAT16: torch.float16, 6: torch.float32, 11: torch.bool, types.BFLOAT16: torch.bfloat16,
    types.FLOAT8_E5M2: torch.float8_e5m2, types.FLOAT8_E4M3FN: torch.float8_e4m3fn,
}  # fmt: skip
"""Dtypes of torch by their number."""

_PAIRS = (types.NPU_FLOAT4_E2M1, types.NPU_FLOAT4_E1M2, types.NPU_INT4)
_IN_BYTES = (*_PAIRS, types.NPU_HIFLOAT8)


def dtype_cast(input: Tensor, dtype: int, input_dtype: int | None) -> Tensor:
    """Convert.

    Parameters
    ----------
    input : Tensor
        Any dtype but float64 and complex ones.
    dtype : int
        Number of a dtype, torch's or torch_npu's; two of 4 bits are a byte, the first in the lower half.
    input_dtype : int, optional
        Number of what input holds, where that is bytes of float8 or float4.

    Returns
    -------
    Tensor
        Shape of input, of numbers: the last axis is halved to 4 bits, and doubled from these. As torch converts, but
        float8 and float4 saturate.

    Raises
    ------
    OperatorRejected
        No last axis with pairs, or no such dtype.
    NotSimulated
        int4, hifloat8, float64 and complex numbers.
    """
    _check(input, dtype, input_dtype)
    numbers = _numbers(input, input_dtype)
    small = BY_NUMBER.get(dtype)
    if small is not None:
        return small.cast(numbers.float())
    return numbers.to(_PLAIN[dtype], copy=True)


def dtype_cast_meta(input: Tensor, dtype: int, input_dtype: int | None) -> Tensor:
    """Allocate the output, after the check of the last axis."""
    _check_pairs(input, dtype, input_dtype)
    shape = list(input.shape)
    if shape:
        shape[-1] = shape[-1] * _numbers_per_byte(input_dtype) // _numbers_per_byte(dtype)
    if dtype in _IN_BYTES:
        return input.new_empty(shape, dtype=torch.uint8)
    small = BY_NUMBER.get(dtype)
    return input.new_empty(shape, dtype=_PLAIN.get(dtype, torch.float32) if small is None else small.dtype)


def _numbers_per_byte(number: int | None) -> int:
    return 2 if number in _PAIRS else 1


def _numbers(given: Tensor, number: int | None) -> Tensor:
    """Return what a tensor holds."""
    small: SmallFloat | None = None if number is None else BY_NUMBER.get(number)
    if small is None or given.dtype == small.dtype != torch.uint8:
        return given
    return small.numbers(given.view(torch.uint8) if small.packed else given.view(small.dtype))


def _check_pairs(given: Tensor, dtype: int, input_dtype: int | None) -> None:
    shape = f"of shape {list(given.shape)}"
    if input_dtype in _PAIRS and not given.dim():
        words = "Scalar input cannot be float4_e2m1fn_x2 or float4_e1m2fn_x2"
        raise _CHECK.rejected("input", shape, "a last axis", ErrorCode.WRAPPER, words)
    if dtype in _PAIRS and (not given.dim() or given.shape[-1] * _numbers_per_byte(input_dtype) % 2):
        words = "the last dim of input must be divisible by 2"
        raise _CHECK.rejected("input", shape, "an even last axis", ErrorCode.WRAPPER, words)


def _check(given: Tensor, dtype: int, input_dtype: int | None) -> None:
    _check_pairs(given, dtype, input_dtype)
    simulated = "dtypes of torch but float64 and complex ones, float8 and float4"
    for argument, number in (("dtype", dtype), ("input_dtype", input_dtype)):
        if number is not None and number not in BY_NUMBER and number not in _PLAIN:
            raise _CHECK.not_simulated(argument, number, simulated)
    if given.dtype == torch.float64 or given.is_complex():
        raise _CHECK.not_simulated("input", dtype_name(given), simulated)
    if input_dtype in _PLAIN and _PLAIN[input_dtype] != given.dtype:
        raise _CHECK.rejected("input_dtype", input_dtype, f"the number of {dtype_name(given)}")
    if input_dtype in BY_NUMBER and given.itemsize != 1:
        raise _CHECK.rejected("input_dtype", input_dtype, f"None for {dtype_name(given)}, which is no byte")
