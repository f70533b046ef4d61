"""``npu_dynamic_block_quant``: integers or float8 with a float32 scale per block of rows and columns.

Sources: op-plugin's documentation, checks and test, the wheel's META rule, and CANN's ``dynamic_block_quant`` (ops-nn):
its kernel for A2 and A3, which has int8 in blocks of 1 by 128 and multiplies, and that for Ascend 950, which divides.
The formula of op-plugin's documentation is upside down; its example and test have the scale that is returned here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.block_scaled.blocks import in_blocks
from npudiff.device.simulator.block_scaled.small_floats import BY_NUMBER
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation import scalar_types as types
from npudiff.device.simulator.quantisation.integers import INT8, saturated

_CHECK = ArgumentChecks("npu_dynamic_block_quant", default=ErrorCode.PARAMETER)

_ROWS, _COLUMNS = (1, 128, 256, 512), (64, 128, 192, 256)
_OF_A2 = (1, 128)


def dynamic_block_quant(
    x: Tensor,
    min_scale: float,
    round_mode: str,
    dst_type: int,
    row_block_size: int,
    col_block_size: int,
    dst_type_max: float,
) -> tuple[Tensor, Tensor]:
    """Divide every block by its largest magnitude over the largest number of the output's dtype, and round.

    Parameters
    ----------
    x : Tensor
        [M, N] or [B, M, N]; float16 or bfloat16.
    min_scale : float
        0 or more: scales are ``1 / min_scale`` at most.
    round_mode : str
        rint.
    dst_type : int
        int8, float8_e5m2 or float8_e4m3fn, by torch's number or torch_npu's.
    row_block_size, col_block_size : int
        1, 128, 256 or 512 rows; 64, 128, 192 or 256 columns.
    dst_type_max : float
        0.

    Returns
    -------
    y : Tensor
        The shape of x.
    scale : Tensor
        float32, [..., ceil(M / rows), ceil(N / columns)].

    Raises
    ------
    OperatorRejected
        Dtype, rank or attribute is not one of the above.
    NotSimulated
        hifloat8.
    """
    _check_host(x)
    if dst_type == types.NPU_HIFLOAT8:
        raise _CHECK.not_simulated("dst_type", dst_type, "int8 and float8")
    small = BY_NUMBER.get(dst_type)
    if dst_type != types.INT8 and (small is None or small.packed):
        raise _CHECK.rejected("dst_type", dst_type, f"{types.INT8} (int8) or a float8")
    _CHECK.dtype("x", x, "float16", "bfloat16")
    _CHECK.choice("round_mode", round_mode, ("rint",))
    _CHECK.choice("row_block_size", row_block_size, _ROWS)
    _CHECK.choice("col_block_size", col_block_size, _COLUMNS)
    if min_scale < 0:
        raise _CHECK.rejected("min_scale", min_scale, "0 or more")
    if dst_type_max:
        raise _CHECK.rejected("dst_type_max", dst_type_max, "0, but for hifloat8")
    blocks = _cut(x.float(), row_block_size, col_block_size)
    largest = blocks.abs().amax((-1, -3), keepdim=True)
    if small is None and (row_block_size, col_block_size) == _OF_A2:
        scaled, scale = _multiplied(blocks, largest, min_scale)
    else:
        scaled, scale = _divided(blocks, largest, min_scale, small.largest if small else float(INT8[1]))
    flat = _joined(scaled, x.shape)
    y = saturated(flat, INT8, torch.int8) if small is None else small.cast(flat)
    return y, scale.squeeze(-1).squeeze(-2).contiguous()


def dynamic_block_quant_meta(
    x: Tensor, dst_type: int, row_block_size: int, col_block_size: int
) -> tuple[Tensor, Tensor]:
    """Allocate both outputs; as torch_npu's META, this checks the rank only."""
    _check_host(x)
    dtype = torch.int8 if dst_type == types.INT8 else BY_NUMBER[dst_type].dtype
    *batch, rows, columns = x.shape
    shape = (*batch, -(-rows // row_block_size), -(-columns // col_block_size))
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(shape, dtype=torch.float32)


def _check_host(x: Tensor) -> None:
    if x.dim() not in (2, 3):
        given, words = f"of rank {x.dim()}, {list(x.shape)}", "x must be 2 or 3 dimensional."
        raise _CHECK.rejected("x", given, "rank 2 or 3", ErrorCode.WRAPPER, words)


def _cut(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return [..., blocks of rows, rows, blocks of columns, columns]."""
    by_columns = in_blocks(x, x.dim() - 1, columns)
    return in_blocks(by_columns, x.dim() - 2, rows).movedim((-2, -1), (-4, -3))


def _joined(blocks: Tensor, shape: torch.Size) -> Tensor:
    return blocks.flatten(-2).flatten(-3, -2)[..., : shape[-2], : shape[-1]].contiguous()


def _multiplied(blocks: Tensor, largest: Tensor, min_scale: float) -> tuple[Tensor, Tensor]:
    """The kernel for A2: both scales are products with constants, so that they are no inverses of each other."""
    factor = torch.div(torch.ones(()), largest) * 127.0
    scale = largest * torch.div(torch.ones(()), torch.tensor(127.0))
    if min_scale > 0:
        bound = torch.tensor(min_scale)
        factor, scale = factor.maximum(bound), scale.minimum(torch.div(torch.ones(()), bound))
    return blocks * factor, scale


def _divided(blocks: Tensor, largest: Tensor, min_scale: float, most: float) -> tuple[Tensor, Tensor]:
    """The kernel for Ascend 950; a scale that is not finite has no bound."""
    scale = torch.div(largest, torch.tensor(most))
    bound = torch.div(torch.ones(()), torch.tensor(min_scale))
    scale = torch.where(scale.isfinite(), scale.minimum(bound), scale)
    quotient = torch.div(blocks, scale)
    if active_profile().block_quant_zero_block == "zero":
        quotient = quotient.masked_fill(largest == 0, 0.0)
    return quotient, scale
