"""``npu_quant_matmul_gelu`` and ``npu_quant_matmul_reduce_sum``: products of integers that go on in float32.

Sources: their documentation (DOC), op-plugin's code (``QuantMatmulGeluKernelNpuOpApi.cpp``) and the expected values of
its tests. What is between the product and the end is not rounded, as both formulas have it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.cache.formats import BASE_FORMATS, Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.quantisation.integers import PER_WORD, unpacked
from npudiff.device.simulator.quantisation.products import integer_product

_GELU = ArgumentChecks("npu_quant_matmul_gelu", default=ErrorCode.PARAMETER)
_SUM = ArgumentChecks("npu_quant_matmul_reduce_sum", default=ErrorCode.PARAMETER)

_MODES = {"gelu_erf": "none", "gelu_tanh": "tanh"}
_MAX_LAST_AXIS = 65535
_BYTE_PRODUCT, _NIBBLE_PRODUCT = 2**14, 64


def quant_matmul_gelu(
    x1: Tensor, x2: Tensor, x1_scale: Tensor, x2_scale: Tensor, bias: Tensor | None, approximate: str | None
) -> Tensor:
    """Return the gelu of ``(x1 @ x2 + int32 bias) * x2_scale * x1_scale + float bias``.

    Parameters
    ----------
    x1, x2 : Tensor
        int8 [..., m, k] and [..., k, n], rank 2 to 6, batch axes broadcast; x2 may be in FRACTAL_NZ. Or int32, eight
        integers of 4 bits in a word: [..., m, k / 8], and [k, n / 8] or a transposed [n, k / 8].
    x1_scale : Tensor
        float32 [m].
    x2_scale : Tensor
        float32 or bfloat16, [n] or [1].
    bias : Tensor, optional
        [n], or [batch, 1, n] of int8: int32, and with int8 also float32, bfloat16 or float16.
    approximate : str, optional
        ``gelu_erf``, which is the default, or ``gelu_tanh``.

    Returns
    -------
    Tensor
        [..., m, n], bfloat16 if x2_scale or bias is, else float16; rounded once.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape, format or approximate is not one of the above.
    """
    shape = _check_gelu(x1, x2, approximate)
    words = x1.dtype == torch.int32
    if format_of(x2) not in BASE_FORMATS | {Format.NCL, Format.FRACTAL_NZ}:
        raise _GELU.rejected("x2", f"in {format_of(x2).name}", "a base format or FRACTAL_NZ", ErrorCode.WRAPPER)
    _GELU.dtype("x1_scale", x1_scale, "float32")
    _GELU.shape("x1_scale", x1_scale, (shape[-2],), meaning="[m]")
    _GELU.dtype("x2_scale", x2_scale, "float32", "bfloat16")
    _GELU.shape("x2_scale", x2_scale, (1,), (shape[-1],), meaning="1 or n")
    if bias is not None:
        _GELU.dtype("bias", bias, *(("int32",) if words else ("int32", "float32", "bfloat16", "float16")))
        shapes = [(shape[-1],)] if words or len(shape) != 3 else [(shape[-1],), (shape[0], 1, shape[-1])]
        _GELU.shape("bias", bias, *shapes, meaning="[n], or [batch, 1, n] with int8")
    left, right = (unpacked(x1), _unpacked(x1, x2)) if words else (x1, x2)
    sums = integer_product(left, right, largest=_NIBBLE_PRODUCT if words else _BYTE_PRODUCT)
    if bias is not None and bias.dtype == torch.int32:
        sums = sums + bias
    values = sums.to(torch.int32).float() * x2_scale.float() * x1_scale.view(-1, 1)
    if bias is not None and bias.dtype != torch.int32:
        values = values + bias.float()
    mode = _MODES[approximate or "gelu_erf"]
    return functional.gelu(values, approximate=mode).to(_output(x2_scale, bias))


def quant_matmul_gelu_meta(
    x1: Tensor, x2: Tensor, x2_scale: Tensor, bias: Tensor | None, approximate: str | None
) -> Tensor:
    """Allocate the output, after the checks of the host."""
    return x1.new_empty(_check_gelu(x1, x2, approximate), dtype=_output(x2_scale, bias))


def quant_matmul_reduce_sum(x1: Tensor, x2: Tensor, x1_scale: Tensor | None, x2_scale: Tensor | None) -> Tensor:
    """Return the sum over the batch of ``(x1 @ x2) * x1_scale * x2_scale``.

    Parameters
    ----------
    x1, x2 : Tensor
        int8 [batch, m, k], and [batch, k, n] in FRACTAL_NZ.
    x1_scale : Tensor
        float32 [batch, m].
    x2_scale : Tensor
        bfloat16 [n].

    Returns
    -------
    Tensor
        bfloat16 [m, n]; summed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype, shape or format is not one of the above.
    """
    for name, tensor in (("x1", x1), ("x2", x2)):
        _SUM.dtype(name, tensor, "int8")
        _SUM.rank(name, tensor, 3)
        _SUM.not_empty(name, tensor)
    _SUM.shape("x2", x2, (len(x1), x1.shape[2], -1), meaning="[batch, k, n], as x1")
    if format_of(x2) != Format.FRACTAL_NZ:
        raise _SUM.rejected("x2", f"in {format_of(x2).name}", "FRACTAL_NZ")
    for name, scale, dtype, shape in (
        ("x1_scale", x1_scale, "float32", x1.shape[:2]),
        ("x2_scale", x2_scale, "bfloat16", x2.shape[2:]),
    ):
        if scale is None:
            raise _SUM.rejected(name, None, dtype)
        _SUM.dtype(name, scale, dtype)
        _SUM.shape(name, scale, shape, meaning="[batch, m]" if name == "x1_scale" else "[n]")
    total = torch.zeros(x1.shape[1], x2.shape[2])
    for left, right, factors in zip(x1, x2, x1_scale, strict=True):  # type: ignore[arg-type]
        total += integer_product(left, right, largest=_BYTE_PRODUCT).float() * factors.unsqueeze(1) * x2_scale.float()  # type: ignore[union-attr]
    return total.bfloat16()


def quant_matmul_reduce_sum_meta(x1: Tensor, x2: Tensor) -> Tensor:
    """Allocate the output."""
    return x1.new_empty((x1.shape[1], x2.shape[2]), dtype=torch.bfloat16)


def _output(x2_scale: Tensor, bias: Tensor | None) -> torch.dtype:
    has_bfloat16 = x2_scale.dtype == torch.bfloat16 or (bias is not None and bias.dtype == torch.bfloat16)
    return torch.bfloat16 if has_bfloat16 else torch.float16


def _unpacked(x1: Tensor, x2: Tensor) -> Tensor:
    """Return the integers of words of [k, n / 8], or of a transposed [n, k / 8]."""
    return unpacked(x2.mT).mT if x1.shape[-1] == x2.shape[-2] else unpacked(x2)


def _check_gelu(x1: Tensor, x2: Tensor, approximate: str | None) -> list[int]:
    """Refuse what the host code refuses, and return the shape of the output."""
    if (x1.dtype, x2.dtype) not in ((torch.int8, torch.int8), (torch.int32, torch.int32)):
        words = "Only A4W4 (int4/int32) or A8W8 (int8) quantization is supported"
        given = f"{dtype_name(x1)} with x2 {dtype_name(x2)}"
        raise _GELU.rejected("x1", given, "int8 or int32 of both", ErrorCode.WRAPPER, words)
    if approximate is not None:
        words = f"approximate must be 'gelu_tanh' or 'gelu_erf', but got: {approximate}"
        _GELU.choice("approximate", approximate, _MODES, ErrorCode.WRAPPER, words)
    for name, tensor in (("x1", x1), ("x2", x2)):
        _GELU.rank(name, tensor, range(2, 7))
        _GELU.not_empty(name, tensor)
        _GELU.between(name, tensor.shape[-1], 1, _MAX_LAST_AXIS)
    k, columns = x1.shape[-1], x2.shape[-1]
    if x1.dtype == torch.int32 and x2.shape[-2] == k * PER_WORD:
        columns *= PER_WORD
    elif x2.shape[-2] != k:
        given = f"of shape {list(x2.shape)}"
        raise _GELU.rejected("x2", given, f"the inner axis of x1, of shape {list(x1.shape)}")
    try:
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        given, allowed = f"of shape {list(x2.shape)}", f"batch axes that broadcast with {list(x1.shape)}"
        raise _GELU.rejected("x2", given, allowed, ErrorCode.WRAPPER) from error
    return [*batch, x1.shape[-2], columns]
