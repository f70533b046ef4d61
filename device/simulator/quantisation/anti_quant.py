"""``npu_anti_quant``: integers times a scale, with an offset that is added first.

Sources: op-plugin's documentation, host code and test, and the wheel's META rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.quantisation import scalar_types as types
from npudiff.device.simulator.quantisation.integers import PER_WORD, unpacked

_CHECK = ArgumentChecks("npu_anti_quant", default=ErrorCode.PARAMETER)

_OUTPUTS = {None: torch.float16, types.FLOAT16: torch.float16, types.BFLOAT16: torch.bfloat16}
_SOURCES = {torch.int8: (None, types.INT8), torch.int32: (None, types.QUINT4X2, types.NPU_INT4)}


def anti_quant(x: Tensor, scale: Tensor, offset: Tensor | None, dst_dtype: int | None, src_dtype: int | None) -> Tensor:
    """Return ``(x + offset) * scale``.

    Parameters
    ----------
    x : Tensor
        int8, or int32 with eight integers of 4 bits in each word; rank up to 8.
    scale : Tensor
        float32 or bfloat16, [1] or as many as the last axis has integers.
    offset : Tensor, optional
        As scale.
    dst_dtype : int, optional
        ScalarType of the output, float16 or bfloat16; float16 without it.
    src_dtype : int, optional
        ScalarType of x: int8, or for words quint4x2 or int4.

    Returns
    -------
    Tensor
        The shape of x, with eight times the last axis for words; computed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one of the above.
    """
    _check(x, scale, offset, src_dtype)
    _CHECK.choice("dst_dtype", dst_dtype, _OUTPUTS)
    wide = (unpacked(x) if x.dtype == torch.int32 else x).float()
    _CHECK.rank("scale", scale, 1)
    _CHECK.shape("scale", scale, (1,), (wide.shape[-1] if wide.dim() else 1,), meaning="1 or the last axis of input")
    if offset is not None:
        wide = wide + offset.float()
    return (wide * scale.float()).to(_OUTPUTS[dst_dtype])


def anti_quant_meta(x: Tensor, dst_dtype: int | None) -> Tensor:
    """Allocate the output."""
    words = x.dtype == torch.int32
    shape = (*x.shape[:-1], x.shape[-1] * PER_WORD) if words else x.shape
    return x.new_empty(shape, dtype=_OUTPUTS.get(dst_dtype, torch.float16))


def _check(x: Tensor, scale: Tensor, offset: Tensor | None, src_dtype: int | None) -> None:
    _CHECK.dtype("x", x, "int8", "int32", code=ErrorCode.WRAPPER)
    _CHECK.rank("x", x, range(1 if x.dtype == torch.int32 else 0, 9))
    if src_dtype not in _SOURCES[x.dtype]:
        words = "src_dtype must be int4" if x.dtype == torch.int32 else "The datatype of x must match src_dtype"
        listed = ", ".join(map(str, _SOURCES[x.dtype]))
        raise _CHECK.rejected("src_dtype", src_dtype, listed, ErrorCode.WRAPPER, words)
    _CHECK.dtype("scale", scale, "float32", "bfloat16")
    if offset is not None:
        _CHECK.same_dtype("offset", offset, "scale", scale)
        _CHECK.shape("offset", offset, scale.shape, meaning="as scale")
