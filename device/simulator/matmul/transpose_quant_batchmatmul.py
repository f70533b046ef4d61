"""``npu_transpose_quant_batchmatmul``: products of float8 whose batch is the second axis, with scales; of Ascend 950.

Sources: op-plugin's documentation, code and test, and the wheel's META rule; CANN's golden (ops-nn), which has the
order of the scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.block_scaled.small_floats import power_of_two
from npudiff.device.simulator.cache.formats import BASE_FORMATS, Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.matmul.permutations import AS_IS, BATCH_SECOND, LAST_TWO_SWAPPED, Orders, checked
from npudiff.device.simulator.quantisation import scalar_types as types

_CHECK = ArgumentChecks("npu_transpose_quant_batchmatmul", default=ErrorCode.PARAMETER)

_FLOAT8 = ("float8_e5m2", "float8_e4m3fn")
_OUTPUTS = {types.FLOAT16: torch.float16, types.BFLOAT16: torch.bfloat16}
_BLOCK, _PAIR = 32, 64


@dataclass(frozen=True)
class QuantRequest:
    """One call, with the names of the schema."""

    x1: Tensor
    """[M, B, K], float8_e5m2 or float8_e4m3fn."""
    x2: Tensor
    """[B, K, N], or [B, N, K] with perm_x2 [0, 2, 1]; dtype of x1. Beside exponents both are float8_e4m3fn."""
    dtype: int
    """ScalarType of the output: float16 or bfloat16."""
    bias: Tensor | None
    """None."""
    x1_scale: Tensor | None
    x2_scale: Tensor | None
    """float32, [M] and [N]; or float8_e8m0fnu, [M, B, K / 64, 2] and [B, K / 64, N, 2] or [B, N, K / 64, 2]."""
    group_sizes: Sequence[int] | None
    """[0 or 1, 0 or 1, 32] beside exponents."""
    perm_x1: Sequence[int] | None
    perm_x2: Sequence[int] | None
    perm_y: Sequence[int] | None
    batch_split_factor: int | None
    """1."""
    x1_dtype: int | None
    x2_dtype: int | None
    """None, or the number of what x1 and x2 are."""

    def orders(self) -> Orders:
        """Return the orders of axes.

        Raises
        ------
        OperatorRejected
            An order that is not allowed.
        """
        return Orders(
            checked(_CHECK, "perm_x1", self.perm_x1, BATCH_SECOND),
            checked(_CHECK, "perm_x2", self.perm_x2, AS_IS, LAST_TWO_SWAPPED),
            checked(_CHECK, "perm_y", self.perm_y, BATCH_SECOND),
        )

    @property
    def exponents(self) -> bool:
        """Whether scales are exponents of blocks."""
        return self.x2_scale is not None and self.x2_scale.dtype == torch.float8_e8m0fnu


def transpose_quant_batchmatmul(request: QuantRequest) -> Tensor:
    """Multiply, and let the batch be the second axis of the result.

    Returns
    -------
    Tensor
        [M, B, N] in the dtype that was asked for: summed in float32 and rounded once. Scales of rows and columns are
        applied to the sums, that of x2 first; exponents to the numbers of their blocks, which is exact.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape, order of axes or attribute is not one of the above.
    NotSimulated
        hifloat8, as input or output.
    """
    orders = request.orders()
    _check(request, orders)
    left, right = (one.float() for one in orders.operands(request.x1, request.x2))
    if request.exponents:
        left, right = left * _factors_of_x1(request), right * _factors_of_x2(request, orders)
    y = (left @ right).permute(orders.y)
    if not request.exponents and request.x1_scale is not None and request.x2_scale is not None:
        y = y * request.x2_scale * request.x1_scale.view(-1, 1, 1)
    return y.to(_OUTPUTS[request.dtype]).contiguous()


def transpose_quant_batchmatmul_meta(request: QuantRequest) -> Tensor:
    """Allocate the output, after the check of the orders."""
    batch, rows, _, columns = request.orders().sizes(request.x1, request.x2)
    return request.x1.new_empty((rows, batch, columns), dtype=_OUTPUTS.get(request.dtype, torch.uint8))


def _numbers(scale: Tensor) -> Tensor:
    """Return powers of two of exponents; 255 is NaN."""
    stored = scale.view(torch.uint8).int()
    return power_of_two(stored.clamp(max=254) - 127).masked_fill(stored == 255, torch.nan)


def _factors_of_x1(request: QuantRequest) -> Tensor:
    """Return [B, M, K]."""
    assert request.x1_scale is not None  # noqa: S101 - checked
    return _numbers(request.x1_scale).flatten(2).repeat_interleave(_BLOCK, 2).transpose(0, 1)


def _factors_of_x2(request: QuantRequest, orders: Orders) -> Tensor:
    """Return [B, K, N]."""
    assert request.x2_scale is not None  # noqa: S101 - checked
    numbers = _numbers(request.x2_scale)
    by_column = numbers if orders.x2 == LAST_TWO_SWAPPED else numbers.transpose(1, 2)
    return by_column.flatten(2).repeat_interleave(_BLOCK, 2).transpose(1, 2)


def _check(request: QuantRequest, orders: Orders) -> None:
    for argument in ("x1", "x2"):
        tensor, number = getattr(request, argument), getattr(request, f"{argument}_dtype")
        if number == types.NPU_HIFLOAT8 or tensor.dtype == torch.uint8:
            raise _CHECK.not_simulated(argument, "hifloat8", " or ".join(_FLOAT8))
        if dtype_name(tensor) not in _FLOAT8:
            words = f"{argument}'s type supported for float8_e5m2 or float8_e4m3fn, but now is {tensor.dtype}"
            raise _CHECK.rejected(argument, dtype_name(tensor), " or ".join(_FLOAT8), words=words)
        _CHECK.rank(argument, tensor, 3)
        _CHECK.not_empty(argument, tensor)
    if request.dtype == types.NPU_HIFLOAT8:
        raise _CHECK.not_simulated("dtype", request.dtype, "float16 or bfloat16")
    _CHECK.choice("dtype", request.dtype, _OUTPUTS)
    if request.bias is not None:
        raise _CHECK.rejected("bias", "given", "None")
    _CHECK.choice("batch_split_factor", request.batch_split_factor, (None, 1))
    _CHECK.same_dtype("x2", request.x2, "x1", request.x1)
    batch, rows, k, columns = orders.sizes(request.x1, request.x2)
    shape = (batch, k, -1) if orders.x2 == AS_IS else (batch, -1, k)
    _CHECK.shape("x2", request.x2, shape, meaning="B and K of x1")
    allowed = BASE_FORMATS | {Format.NCL} | ({Format.FRACTAL_NZ} if request.exponents else set())
    if (storage := format_of(request.x2)) not in allowed:
        raise _CHECK.rejected("x2", f"in {storage.name}", "a base format, or FRACTAL_NZ beside exponents")
    _check_scales(request, orders, batch, rows, k, columns)


def _check_scales(request: QuantRequest, orders: Orders, batch: int, rows: int, k: int, columns: int) -> None:
    one, other = request.x1_scale, request.x2_scale
    if one is None or other is None:
        argument = "x1_scale" if one is None else "x2_scale"
        raise _CHECK.rejected(argument, None, "a tensor, but for hifloat8")
    _CHECK.dtype("x2_scale", other, "float32", "float8_e8m0fnu")
    _CHECK.same_dtype("x1_scale", one, "x2_scale", other)
    sizes = None if request.group_sizes is None else tuple(request.group_sizes)
    if not request.exponents:
        _CHECK.choice("group_sizes", sizes, (None, (0, 0, 0)))
        _CHECK.choice("perm_x2", orders.x2, (AS_IS,))
        _CHECK.shape("x1_scale", one, (rows,), meaning="[M]")
        _CHECK.shape("x2_scale", other, (columns,), meaning="[N]")
        return
    _CHECK.choice("group_sizes", sizes, tuple((m, n, _BLOCK) for m in (0, 1) for n in (0, 1)))
    _CHECK.dtype("x1", request.x1, "float8_e4m3fn")
    if k % _PAIR:
        raise _CHECK.rejected("x1", f"of shape {list(request.x1.shape)}", f"K that is a multiple of {_PAIR}")
    pairs = k // _PAIR
    _CHECK.shape("x1_scale", one, (rows, batch, pairs, 2), meaning="[M, B, K / 64, 2]")
    shape = (batch, pairs, columns, 2) if orders.x2 == AS_IS else (batch, columns, pairs, 2)
    _CHECK.shape("x2_scale", other, shape, meaning="[B, K / 64, N, 2], or as perm_x2 has it")
