"""``npu_dynamic_mx_quant``: float8 or float4 with an exponent per block.

Sources: op-plugin's checks, whose words the errors have, and the wheel's META rule; CANN's documentation of
``aclnnDynamicMxQuantV3``, its tiling checks and its kernels for Ascend 950 (ops-nn).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.block_scaled.blocks import in_blocks, in_pairs, out_of_blocks, shape_in_pairs
from npudiff.device.simulator.block_scaled.exponents import Exponents, rounded_down, rounded_up, rounded_up_from
from npudiff.device.simulator.block_scaled.small_floats import (
    BY_NUMBER,
    FLOAT4_E2M1,
    ROUND_MODES,
    RoundMode,
    SmallFloat,
)
from npudiff.device.simulator.errors import ErrorCode

_CHECK = ArgumentChecks("npu_dynamic_mx_quant", default=ErrorCode.TILING)

_STEP, _LARGEST_BLOCK = 32, 1024

DOWN, UP, BY_MANTISSA = 0, 1, 2
"""Values of scale_alg: how a block's exponent is rounded."""


@dataclass(frozen=True)
class MxRequest:
    """One call, with the names of the schema."""

    input: Tensor
    """float16, bfloat16 or float32, rank 1 to 7. For float4 its last axis is even; float32 has blocks of 32 and no
    shorter axis."""
    axis: int
    """The axis that is cut into blocks."""
    round_mode: RoundMode
    """rint; for float4 round or floor too."""
    dst_type: int
    """float8_e5m2, float8_e4m3fn, float4_e2m1 or float4_e1m2, by torch's number or torch_npu's."""
    block_size: int
    """A multiple of 32 up to 1024."""
    scale_alg: int | None
    """0: down. 1: up, for float8. 2: by the mantissa of the largest magnitude, for float4_e2m1 in blocks of 32."""
    dst_type_max: float
    """0, or 6 to 12 with scale_alg 2: what the largest magnitude becomes at most."""
    max_low_bound: float
    """What the largest magnitude is at least, with scale_alg 1."""

    @property
    def how(self) -> int:
        """scale_alg, or its default."""
        return DOWN if self.scale_alg is None else self.scale_alg

    @property
    def format(self) -> SmallFloat:
        """The format that dst_type names."""
        return BY_NUMBER[self.dst_type]


def dynamic_mx_quant(request: MxRequest) -> tuple[Tensor, Tensor]:
    """Divide every block by a power of two, and round.

    Returns
    -------
    y : Tensor
        float8 in the shape of input; or uint8 with half the last axis, two numbers of 4 bits each, the first in the
        lower ones.
    mxscale : Tensor
        uint8, exponents with a bias of 127: the shape of input with half the number of blocks, rounded up, in place of
        the axis, and two neighbours behind it.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or attribute is not one of the above.
    """
    axis = _check_host(request)
    _check(request, axis)
    blocks = in_blocks(request.input.float(), axis, request.block_size)
    scales = _scales(request, blocks.abs().amax(-1))
    scaled = blocks * scales.factor.unsqueeze(-1)
    y = request.format.cast(out_of_blocks(scaled, axis, request.input.shape[axis]), request.round_mode)
    return y, in_pairs(scales.bytes, axis)


def dynamic_mx_quant_meta(request: MxRequest) -> tuple[Tensor, Tensor]:
    """Allocate both outputs, after the checks that op-plugin has."""
    axis, x = _check_host(request), request.input
    scale = x.new_empty(shape_in_pairs(x.shape, axis, request.block_size), dtype=torch.uint8)
    known = BY_NUMBER.get(request.dst_type, FLOAT4_E2M1)
    shape = (*x.shape[:-1], x.shape[-1] // 2) if known.packed else x.shape
    return x.new_empty(shape, dtype=known.dtype), scale


def _scales(request: MxRequest, largest: Tensor) -> Exponents:
    small, maximum = request.format, request.dst_type_max
    if request.how == DOWN:
        return rounded_down(largest, small.highest_exponent)
    if request.how == UP:
        return rounded_up(largest, 1 / small.largest, low_bound=request.max_low_bound)
    if maximum in (0.0, 6.0, 7.0):
        threshold = 1.75 if maximum == 7.0 else 1.5
        return rounded_up_from(_as_bfloat16(request.input, largest), small.highest_exponent, threshold)
    return rounded_up(largest, 1 / maximum, subnormals=False)


def _as_bfloat16(x: Tensor, largest: Tensor) -> Tensor:
    """Return magnitudes as KERNEL narrows them: float16 to the nearest, float32 cut."""
    if x.dtype == torch.float32:
        return (largest.view(torch.int32) & ~0xFFFF).view(torch.float32)
    return largest.bfloat16().float()


def _check_host(request: MxRequest) -> int:
    """Refuse what op-plugin refuses, and return the axis from the front."""
    wrapper, x = ErrorCode.WRAPPER, request.input
    if not -x.dim() <= request.axis < x.dim():
        words = "Param (axis) is out of input dimension range"
        raise _CHECK.rejected("axis", request.axis, f"{-x.dim()} to {x.dim() - 1}", wrapper, words)
    if request.block_size % _STEP or not 0 < request.block_size <= _LARGEST_BLOCK:
        words = "Param (block_size) must be divisible by 32 and no greater than 1024, greater than 0"
        allowed = f"a multiple of {_STEP} up to {_LARGEST_BLOCK}"
        raise _CHECK.rejected("block_size", request.block_size, allowed, wrapper, words)
    if BY_NUMBER.get(request.dst_type, FLOAT4_E2M1).packed and x.shape[-1] % 2:
        words = (
            "The last dim input shape must be divisible by 2 if output dtype is torch_npu.float4_e2m1 or "
            "torch_npu.float4_e1m2"
        )
        raise _CHECK.rejected("input", f"of shape {list(x.shape)}", "an even last axis for float4", wrapper, words)
    return request.axis % x.dim()


def _check(request: MxRequest, axis: int) -> None:
    x, code = request.input, ErrorCode.PARAMETER
    _CHECK.dtype("input", x, *FLOATS)
    _CHECK.rank("input", x, range(1, 8), code=code)
    if request.dst_type not in BY_NUMBER:
        allowed = " or ".join(f"{number} ({small.name})" for number, small in BY_NUMBER.items())
        raise _CHECK.rejected("dst_type", request.dst_type, allowed, code)
    _CHECK.choice("round_mode", request.round_mode, ROUND_MODES if request.format.packed else ("rint",), code)
    _check_scale_alg(request)
    if x.dtype == torch.float32 and (request.block_size != _STEP or x.shape[axis] < _STEP):
        given = f"float32 of shape {list(x.shape)} with block_size {request.block_size}"
        raise _CHECK.rejected("input", given, f"block_size {_STEP} and an axis of {_STEP} or more for float32", code)


def _check_scale_alg(request: MxRequest) -> None:
    code, small = ErrorCode.PARAMETER, request.format
    allowed = (DOWN, UP) if not small.packed else (DOWN, BY_MANTISSA) if small is FLOAT4_E2M1 else (DOWN,)
    _CHECK.choice("scale_alg", request.how, allowed, code)
    if request.how == BY_MANTISSA and request.block_size != _STEP:
        raise _CHECK.rejected("block_size", request.block_size, f"{_STEP} with scale_alg {BY_MANTISSA}", code)
    maximum = request.dst_type_max
    if maximum and not (request.how == BY_MANTISSA and 6.0 <= maximum <= 12.0):
        raise _CHECK.rejected("dst_type_max", maximum, f"0, or 6 to 12 with scale_alg {BY_MANTISSA}", code)
    if request.max_low_bound < 0 or (request.max_low_bound and request.how != UP):
        raise _CHECK.rejected("max_low_bound", request.max_low_bound, f"0, or more with scale_alg {UP}", code)
