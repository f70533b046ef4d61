"""``npu_kronecker_quant``: small matrices on both sides of every token's matrix, then 4 bits.

Sources: op-plugin's code and test, the wheel's META rule, and CANN's documentation of ``aclnnFlatQuant`` with its
kernel for A2 and A3 (ops-nn, ``flat_quant_vec.h``). op-plugin's test cuts where the kernel rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.block_scaled.blocks import in_blocks, in_pairs, out_of_blocks
from npudiff.device.simulator.block_scaled.exponents import rounded_down
from npudiff.device.simulator.block_scaled.small_floats import FLOAT4_E2M1
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.quantisation import scalar_types as types
from npudiff.device.simulator.quantisation.integers import INT4, PER_WORD, packed, saturated

_CHECK = ArgumentChecks("npu_kronecker_quant", default=ErrorCode.PARAMETER)

_BLOCK = 32
_MOST_ROWS, _MOST_SIZE = 262144, 256


def kronecker_quant(
    x: Tensor, p1: Tensor, p2: Tensor, /, clip_ratio: float | None, dst_dtype: int | None, dst_type_max: float | None
) -> tuple[Tensor, Tensor]:
    """Return ``p1 @ (x @ p2)`` of each token in 4 bits, and its scale.

    Parameters
    ----------
    x : Tensor
        [K, M, N], float16 or bfloat16, not empty; M and N up to 256, K up to 262144. N is a multiple of 8 for integers.
    p1, p2 : Tensor
        [M, M] and [N, N], dtype of x. Both products are rounded to it.
    clip_ratio : float, optional
        Above 0 and at most 1, which is the default: integers above 7 are cut.
    dst_dtype : int, optional
        int32, which is the default, for integers; or float4_e2m1, for Ascend 950.
    dst_type_max : float, optional
        0.

    Returns
    -------
    out : Tensor
        int32 [K, M, N / 8], eight integers of 4 bits in a word, rounded to float16 on the way; or uint8 [K, M * N / 2].
    quant_scale : Tensor
        float32 [K], ``max * clip_ratio / 7``; or uint8 [K, ceil(M * N / 64), 2], exponents of blocks of 32.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or attribute is not one of the above.
    NotSimulated
        Another dst_type_max; float4 without p2.
    """
    floats = _is_float4(dst_dtype)
    _check_host(x, floats=floats)
    clip = 1.0 if clip_ratio is None else clip_ratio
    _check(x, p1, p2, clip, floats=floats)
    if dst_type_max:
        raise _CHECK.not_simulated("dst_type_max", dst_type_max, "None or 0")
    right = (x.float() @ p2.float()).to(x.dtype).float()
    values = (p1.float() @ right).to(x.dtype).float().flatten(1)
    if floats:
        blocks = in_blocks(values, 1, _BLOCK)
        scales = rounded_down(blocks.abs().amax(-1), FLOAT4_E2M1.highest_exponent)
        scaled = out_of_blocks(blocks * scales.factor.unsqueeze(-1), 1, values.shape[1])
        return FLOAT4_E2M1.cast(scaled), in_pairs(scales.bytes, 1)
    largest, seven = values.abs().amax(-1), torch.tensor(7.0)
    factor = torch.where(largest == 0, seven, torch.div(torch.div(seven, torch.tensor(clip)), largest))
    integers = saturated((values * factor.unsqueeze(-1)).half().float(), INT4, torch.int8)
    return packed(integers.view(x.shape)), torch.div(largest * torch.tensor(clip), seven)


def kronecker_quant_meta(x: Tensor, /, dst_dtype: int | None) -> tuple[Tensor, Tensor]:
    """Allocate both outputs, after the checks that op-plugin has."""
    floats = _is_float4(dst_dtype)
    _check_host(x, floats=floats)
    rows, m, n = x.shape
    if floats:
        pairs = -(-m * n // (2 * _BLOCK))
        return x.new_empty((rows, m * n // 2), dtype=torch.uint8), x.new_empty((rows, pairs, 2), dtype=torch.uint8)
    return x.new_empty((rows, m, n // PER_WORD), dtype=torch.int32), x.new_empty((rows,), dtype=torch.float32)


def _is_float4(dst_dtype: int | None) -> bool:
    if dst_dtype not in (None, types.INT32, types.NPU_FLOAT4_E2M1):
        allowed = f"None, {types.INT32} (torch.int32) or {types.NPU_FLOAT4_E2M1} (torch_npu.float4_e2m1fn_x2)"
        words = "the dtype of dst_dtype must be int32, or mxfp4"
        raise _CHECK.rejected("dst_dtype", dst_dtype, allowed, ErrorCode.WRAPPER, words)
    return dst_dtype == types.NPU_FLOAT4_E2M1


def _check_host(x: Tensor, *, floats: bool) -> None:
    _CHECK.rank("x", x, 3, code=ErrorCode.WRAPPER)
    step = 2 if floats else PER_WORD
    if x.shape[-1] % step:
        words = "input shape last dim must be divded by 8"
        if floats:
            words = "The last dim input shape must be divisible by 2 if output dtype is torch_npu.float4_e2m1"
        raise _CHECK.rejected("x", f"of shape {list(x.shape)}", f"a multiple of {step}", ErrorCode.WRAPPER, words)


def _check(x: Tensor, p1: Tensor, p2: Tensor, clip: float, *, floats: bool) -> None:
    _CHECK.dtype("x", x, "float16", "bfloat16")
    _CHECK.not_empty("x", x)
    rows, m, n = x.shape
    if rows > _MOST_ROWS or max(m, n) > _MOST_SIZE:
        given, allowed = f"of shape {list(x.shape)}", f"[K, M, N] up to {[_MOST_ROWS, _MOST_SIZE, _MOST_SIZE]}"
        raise _CHECK.rejected("x", given, allowed)
    for argument, tensor in (("kronecker_p1", p1), ("kronecker_p2", p2)):
        _CHECK.same_dtype(argument, tensor, "x", x)
    if floats and p2.shape == (0, 0):
        raise _CHECK.not_simulated("kronecker_p2", "empty", "[N, N]")
    _CHECK.shape("kronecker_p1", p1, (m, m), meaning="[M, M]")
    _CHECK.shape("kronecker_p2", p2, (n, n), meaning="[N, N]")
    if not 0 < clip <= 1:
        raise _CHECK.rejected("clip_ratio", clip, "above 0 and at most 1")
