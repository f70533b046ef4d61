"""``npu_rms_norm_quant``: a norm as integers, with one scale and one offset for all.

Sources: op-plugin's documentation and checks, the wheel's META rule, and CANN's ``rms_norm_quant`` (ops-nn: checks of
``aclnnRmsNormQuant``, kernel for A2 and A3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.norms.rms import reciprocal_root
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation import scalar_types as types
from npudiff.device.simulator.quantisation.integers import INT4, INT8, PER_WORD, packed, saturated

_CHECK = ArgumentChecks("npu_rms_norm_quant", default=ErrorCode.PARAMETER)


def rms_norm_quant(
    x: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor, offset: Tensor, epsilon: float, dst_dtype: int | None
) -> Tensor:
    """Return ``round((x * rstd * gamma + beta) / scale + offset)``.

    Parameters
    ----------
    x : Tensor
        float16 or bfloat16, rank 1 to 8, not empty.
    gamma, beta : Tensor
        [H] or [1, H], dtype of x.
    scale : Tensor
        [1], dtype of x. Whether it divides is a choice of the profile.
    offset : Tensor
        [1], int8.
    epsilon : float
        Added to the mean of squares.
    dst_dtype : int, optional
        ScalarType: int8, which is the default, or quint4x2.

    Returns
    -------
    Tensor
        int8 in the shape of x; or int32, eight integers of 4 bits in a word. What is rounded to an integer has been
        rounded to float16 before.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one of the above.
    NotSimulated
        Another dst_dtype: the others are of Ascend 950.
    """
    if dst_dtype not in (None, types.INT8, types.QUINT4X2):
        simulated = f"None, {types.INT8} (torch.int8) or {types.QUINT4X2} (torch.quint4x2)"
        raise _CHECK.not_simulated("dst_dtype", dst_dtype, simulated)
    words = dst_dtype == types.QUINT4X2
    if words:
        _require_words(x)
    _check(x, gamma, beta, scale, offset)
    wide = x.float()
    y = wide * reciprocal_root(wide * wide, 1, epsilon, scale_first=True)
    y = y * gamma.float().view(-1) + beta.float().view(-1)
    divides = active_profile().rms_norm_quant_scale == "divides"
    factor = scale.float().reciprocal() if divides else scale.float()
    values = (y * factor + offset.float()).half().float()
    integers = saturated(values, INT4 if words else INT8, torch.int8)
    return packed(integers) if words else integers


def rms_norm_quant_meta(x: Tensor, dst_dtype: int | None) -> Tensor:
    """Allocate the output; as torch_npu's META, this checks only that words of int4 are full."""
    if dst_dtype != types.QUINT4X2:
        return x.new_empty(x.shape, dtype=torch.int8)
    _require_words(x)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // PER_WORD), dtype=torch.int32)


def _require_words(x: Tensor) -> None:
    if x.shape[-1] % PER_WORD:
        given = f"of shape {list(x.shape)} with dst_dtype quint4x2"
        words = "x shape last dim must be divded by 8 when int4 quantization"
        raise _CHECK.rejected("x", given, f"a last axis that is a multiple of {PER_WORD}", ErrorCode.WRAPPER, words)


def _check(x: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor, offset: Tensor) -> None:
    _CHECK.dtype("x", x, "float16", "bfloat16")
    _CHECK.rank("x", x, range(1, 9))
    _CHECK.not_empty("x", x)
    width = x.shape[-1]
    for argument, tensor in (("gamma", gamma), ("beta", beta)):
        _CHECK.same_dtype(argument, tensor, "x", x)
        _CHECK.shape(argument, tensor, (width,), (1, width), meaning="the last axis of x")
    _CHECK.dtype("scale", scale, dtype_name(x))
    _CHECK.dtype("offset", offset, "int8")
    for argument, tensor in (("scale", scale), ("offset", offset)):
        _CHECK.shape(argument, tensor, (1,), meaning="one for all")
