"""``npu_dual_level_quant_matmul``: products of float4 with an exponent per 32 numbers and a float32 per 512.

    out = bias + sum over blocks i of 512: x1_level0[m, i] x2_level0[i, n] (sum over blocks j of 32 in it:
          2 ** (x1_level1[m, j] + x2_level1[n, j]) x1_j . x2_j)

Sources: op-plugin's host code and test; CANN's documentation, checks and golden of
``aclnnDualLevelQuantMatmulWeightNz`` (ops-nn), which only Ascend 950 has. The order of the factors of level 0 is the
golden's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.block_scaled.blocks import in_blocks
from npudiff.device.simulator.block_scaled.small_floats import FLOAT4_E2M1, power_of_two
from npudiff.device.simulator.cache.formats import Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation import scalar_types as types

_CHECK = ArgumentChecks("npu_dual_level_quant_matmul", default=ErrorCode.PARAMETER)

_OUTER, _INNER = 512, 32
_OUTPUTS = {types.FLOAT16: torch.float16, types.BFLOAT16: torch.bfloat16}
_BYTES = ("int8", "uint8")


@dataclass(frozen=True)
class DualLevelRequest:
    """One call, with the names of the schema."""

    x1: Tensor
    """Bytes [M, K / 2]: two float4_e2m1 each."""
    x2: Tensor
    """int8 [N, K / 2], in FRACTAL_NZ."""
    x1_level0_scale: Tensor
    """float32 [M, ceil(K / 512)]."""
    x2_level0_scale: Tensor
    """float32 [ceil(K / 512), N]."""
    x1_level1_scale: Tensor
    """Bytes [M, ceil(K / 64), 2]: exponents with a bias of 127; 255 is NaN."""
    x2_level1_scale: Tensor
    """Bytes [N, ceil(K / 64), 2]."""
    bias: Tensor | None = None
    """float32 [N]."""
    output_dtype: int = types.BFLOAT16
    """ScalarType of the output: float16 or bfloat16."""

    @property
    def width(self) -> int:
        """K."""
        return 2 * self.x1.shape[1]


def dual_level_quant_matmul(request: DualLevelRequest) -> Tensor:
    """Multiply, scale and add.

    Returns
    -------
    Tensor
        [M, N] in the dtype that was asked for: summed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or format is not one of the above, or the chip of the profile has no such operator.
    """
    _check_host(request)
    _check(request)
    left = _numbers(request.x1, request.x1_level1_scale)
    right = _numbers(request.x2, request.x2_level1_scale)
    out = torch.zeros(len(left), len(right))
    for block in range(left.shape[1]):
        factors = request.x1_level0_scale[:, block, None] * request.x2_level0_scale[block]
        out += factors * (left[:, block] @ right[:, block].T)
    if request.bias is not None:
        out += request.bias
    return out.to(_OUTPUTS[request.output_dtype])


def dual_level_quant_matmul_meta(request: DualLevelRequest) -> Tensor:
    """Allocate the output, after the checks of ranks and of K."""
    _check_ranks(request)
    dtype = _OUTPUTS.get(request.output_dtype, torch.bfloat16)
    return request.x1.new_empty((len(request.x1), len(request.x2)), dtype=dtype)


def _numbers(packed: Tensor, exponents: Tensor) -> Tensor:
    """Return float32 [rows, blocks, 512] of bytes and the exponents of their blocks."""
    numbers = in_blocks(FLOAT4_E2M1.numbers(packed.view(torch.uint8)), 1, _INNER)
    stored = exponents.contiguous().view(torch.uint8).int().flatten(1)[:, : numbers.shape[1]]
    factors = power_of_two(stored.clamp(max=254) - 127).masked_fill(stored == 255, torch.nan)
    return in_blocks((numbers * factors.unsqueeze(-1)).flatten(1), 1, _OUTER)


def _check_ranks(request: DualLevelRequest) -> None:
    for argument in ("x1", "x2"):
        rank = getattr(request, argument).dim()
        if rank != 2:
            words = f"The shape dimension of {argument} is only supported to be 2, but it is {rank}"
            raise _CHECK.rejected(argument, f"of rank {rank}", "rank 2", ErrorCode.WRAPPER, words)
    if request.x1.shape[1] != request.x2.shape[1]:
        k = 2 * request.x2.shape[1]
        words = f"The k of x1 and x2 should be equal. but x1_k_dim is {request.width}, x2_k_dim is {k}"
        raise _CHECK.rejected("x2", f"of K {k}", str(request.width), ErrorCode.WRAPPER, words)


def _check_host(request: DualLevelRequest) -> None:
    """Raise what op-plugin raises."""
    if active_profile().ascend_950_products == "rejected":
        words = "This interface is supported only on the Ascend950 platform and after."
        raise _CHECK.rejected("x1", "given", "Ascend 950", ErrorCode.WRAPPER, words)
    _check_ranks(request)
    if (storage := format_of(request.x2)) is not Format.FRACTAL_NZ:
        words = "x2 only supports NZ format."
        raise _CHECK.rejected("x2", f"in {storage.name}", "FRACTAL_NZ", ErrorCode.WRAPPER, words)


def _check(request: DualLevelRequest) -> None:
    _CHECK.choice("output_dtype", request.output_dtype, _OUTPUTS)
    _CHECK.dtype("x1", request.x1, *_BYTES)
    _CHECK.dtype("x2", request.x2, "int8")
    (m, _), n, k = request.x1.shape, len(request.x2), request.width
    for argument in ("x1", "x2"):
        _CHECK.not_empty(argument, getattr(request, argument))
    outer, pairs = -(-k // _OUTER), -(-k // (2 * _INNER))
    for argument, dtypes, shape, meaning in (
        ("x1_level0_scale", ("float32",), (m, outer), "[M, ceil(K / 512)]"),
        ("x2_level0_scale", ("float32",), (outer, n), "[ceil(K / 512), N]"),
        ("x1_level1_scale", (*_BYTES, "float8_e8m0fnu"), (m, pairs, 2), "[M, ceil(K / 64), 2]"),
        ("x2_level1_scale", (*_BYTES, "float8_e8m0fnu"), (n, pairs, 2), "[N, ceil(K / 64), 2]"),
        ("bias", ("float32",), (n,), "[N]"),
    ):
        tensor = getattr(request, argument)
        if tensor is not None:
            if dtype_name(tensor) not in dtypes:
                raise _CHECK.rejected(argument, dtype_name(tensor), " or ".join(dtypes))
            _CHECK.shape(argument, tensor, shape, meaning=meaning)
    _CHECK.contiguous(
        x1=request.x1,
        x1_level0_scale=request.x1_level0_scale,
        x2_level0_scale=request.x2_level0_scale,
        x1_level1_scale=request.x1_level1_scale,
        x2_level1_scale=request.x2_level1_scale,
    )
