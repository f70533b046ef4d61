"""``npu_dynamic_dual_level_mx_quant``: float4 with an exponent per 32 numbers and a float32 per 512.

Sources: op-plugin's documentation and checks, the wheel's META rule, and CANN's kernel for Ascend 950 (ops-nn).
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.block_scaled.blocks import in_blocks, in_pairs, out_of_blocks, shape_in_pairs
from npudiff.device.simulator.block_scaled.exponents import rounded_down
from npudiff.device.simulator.block_scaled.small_floats import FLOAT4_E2M1, ROUND_MODES, RoundMode
from npudiff.device.simulator.errors import ErrorCode

_CHECK = ArgumentChecks("npu_dynamic_dual_level_mx_quant", default=ErrorCode.PARAMETER)

_OUTER, _INNER = 512, 32
_SMALLEST_NORMAL = 2.0**-126


def dynamic_dual_level_mx_quant(
    x: Tensor, /, smooth_scale: Tensor | None, round_mode: RoundMode
) -> tuple[Tensor, Tensor, Tensor]:
    """Divide 512 neighbours by their largest magnitude over 6, then 32 by a power of two, and round.

    Parameters
    ----------
    x : Tensor
        float16 or bfloat16, rank 1 to 7, not empty, with an even last axis.
    smooth_scale : Tensor, optional
        None.
    round_mode : str
        rint, round or floor.

    Returns
    -------
    y : Tensor
        uint8 with half the last axis: two float4_e2m1 each, the first in the lower bits.
    level0_scale : Tensor
        float32, [..., ceil(H / 512)]; infinity and NaN have no part in it, and what is below 2 ** -126 is 0.
    level1_scale : Tensor
        uint8, [..., ceil(ceil(H / 32) / 2), 2]: exponents with a bias of 127.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or mode is not one of the above.
    NotSimulated
        A smooth_scale, which the documentation excludes.
    """
    _check_host(x)
    _CHECK.rank("input", x, range(1, 8))
    _CHECK.dtype("input", x, "float16", "bfloat16")
    _CHECK.not_empty("input", x)
    _CHECK.choice("round_mode", round_mode, ROUND_MODES)
    if smooth_scale is not None:
        raise _CHECK.not_simulated("smooth_scale", "given", "None")
    last, width = x.dim() - 1, x.shape[-1]
    outer = in_blocks(x.float(), last, _OUTER)
    level0 = outer.abs().nan_to_num(0.0, posinf=0.0).amax(-1) * torch.tensor(1 / 6)
    level0 = level0.masked_fill(level0 < _SMALLEST_NORMAL, 0.0)
    # Zeros stay as they are, also where 0 / 0 would be NaN; the quotient is rounded to the dtype of x.
    quotient = torch.where(outer == 0, outer, (outer / level0.unsqueeze(-1)).to(x.dtype).float())
    inner = in_blocks(out_of_blocks(quotient, last, width), last, _INNER)
    level1 = rounded_down(inner.abs().amax(-1), FLOAT4_E2M1.highest_exponent)
    y = FLOAT4_E2M1.cast(out_of_blocks(inner * level1.factor.unsqueeze(-1), last, width), round_mode)
    return y, level0, in_pairs(level1.bytes, last)


def dynamic_dual_level_mx_quant_meta(x: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs, after the check that op-plugin has."""
    _check_host(x)
    width, last = x.shape[-1], x.dim() - 1
    y = x.new_empty((*x.shape[:-1], width // 2), dtype=torch.uint8)
    level0 = x.new_empty((*x.shape[:-1], -(-width // _OUTER)), dtype=torch.float32)
    return y, level0, x.new_empty(shape_in_pairs(x.shape, last, _INNER), dtype=torch.uint8)


def _check_host(x: Tensor) -> None:
    if x.shape[-1] % 2:
        words = "The last dim input shape must be divisible by 2 if output dtype is torch_npu.float4_e2m1"
        raise _CHECK.rejected("input", f"of shape {list(x.shape)}", "an even last axis", ErrorCode.WRAPPER, words)
