"""Products of int8 by int4, as they are made on a device that multiplies int4 by int4.

An int8 is ``16 * upper + lower + 8`` with two int4, so that a product is ``16 * upper @ w + lower @ w + 8 * sum(w)``.
The last term is known beforehand, and the caller gives it, times the scale, as a bias. Sources: ACLNN and GOLDEN (see
``choices``), and vllm-ascend's ``w4a8.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.grouped_matmul.products import INT4_PRODUCT, integer_product
from npudiff.device.simulator.profiles import CannProfile

_MAX_INNER_OF_GROUPS = 18432
PER_WORD = 8
"""int4 in an int32, the first in the lowest bits."""


def unpacked(words: Tensor) -> Tensor:
    """Return the int4 of int32 words, as int8: [..., n] gives [..., 8 * n]."""
    pairs = words.contiguous().view(torch.int8)
    return torch.stack((((pairs & 15) ^ 8) - 8, pairs >> 4), -1).flatten(-2)


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is words of eight int4."""
    return weight.dtype == torch.int32


def are_bits(scale: Tensor) -> bool:
    """Whether scales are words of 64 bit, which :func:`scale_from_bits` reads."""
    return scale.dtype in (torch.int64, torch.uint64)


def scale_from_bits(scale: Tensor) -> Tensor:
    """Return float32 of int64 or uint64 whose lower halves are its bits; the upper halves are not looked at."""
    return scale.contiguous().view(torch.int32)[..., ::2].contiguous().view(torch.float32)


def grouped_scale(
    check: ArgumentChecks, argument: str, scale: Tensor, sizes: tuple[int, int, int], ranks: tuple[int, ...] = (2, 3)
) -> Tensor:
    """Return float32 [E, groups, N] of scales in bits, or refuse them.

    Parameters
    ----------
    check : ArgumentChecks
        Of the operator.
    argument : str
        What the operator calls the scales.
    scale : Tensor
        int64 or uint64, [E, N] or [E, groups, N], with groups that divide K.
    sizes : tuple of int
        E, K and N.
    ranks : tuple of int
        Those that the call may have of both.

    Raises
    ------
    OperatorRejected
        Dtype or shape is not one of the above.
    """
    experts, inner, columns = sizes
    check.dtype(argument, scale, "int64", "uint64")
    check.rank(argument, scale, ranks, "[E, N] or [E, groups, N]")
    stacked = scale.unsqueeze(1) if scale.dim() == 2 else scale
    groups = stacked.shape[1]
    if not groups or inner % groups:
        raise check.rejected(argument, f"of {groups} groups", f"a divisor of the inner axis, {inner}")
    shape = (experts, columns) if scale.dim() == 2 else (experts, groups, columns)
    check.shape(argument, scale, shape, meaning="[E, N] or [E, groups, N]")
    return scale_from_bits(stacked)


def checked_scale(check: ArgumentChecks, argument: str, scale: Tensor, weight: Tensor, profile: CannProfile) -> Tensor:
    """Return float32 [E, groups, N] of a weight's scales, or refuse them.

    Parameters
    ----------
    check : ArgumentChecks
        Of the operator.
    argument : str
        What the operator calls the scales.
    scale : Tensor
        int64 or uint64, [E, 1, N], or [E, K / 256, N] of a K up to 18432.
    weight : Tensor
        int32 [E, K, N / 8].
    profile : CannProfile
        Says how many rows of a weight share a scale.

    Raises
    ------
    OperatorRejected
        Dtype or shape is not one of the above.
    """
    check.dtype(argument, scale, "int64", "uint64")
    check.rank(argument, scale, 3)
    experts, inner, width = weight.shape
    groups, size = 1, profile.gmm_a8w4_group_size
    if scale.shape[1] != 1:
        if inner % size or inner > _MAX_INNER_OF_GROUPS:
            allowed = f"a multiple of {size} up to {_MAX_INNER_OF_GROUPS}, with scales per group"
            raise check.rejected("x", f"of last axis {inner}", allowed, ErrorCode.TILING)
        groups = inner // size
    shape = (experts, groups, width * PER_WORD)
    check.shape(argument, scale, shape, meaning=f"[E, 1, N] or [E, K / {size}, N]")
    return scale_from_bits(scale)


def dequantised(x: Tensor, words: Tensor, scale: Tensor, assist: Tensor, profile: CannProfile) -> Tensor:
    """Return ``x @ w * scale`` up to roundings, if the bias is what it has to be.

    Parameters
    ----------
    x : Tensor
        int8 [rows, inner].
    words : Tensor
        int32 [inner, columns / 8].
    scale : Tensor
        float32 [groups, columns]; each is for ``inner / groups`` rows of the weight.
    assist : Tensor
        float32 [columns]: ``8 * sum(w * scale)`` over the inner axis.
    profile : CannProfile
        Says where products round to float16.

    Returns
    -------
    Tensor
        float32 [rows, columns].
    """
    weight = unpacked(words)
    halves = torch.cat((x >> 4, (x & 15) - 8))  # together, so that the weight is widened once
    upper, lower = _scaled(halves, weight, scale, profile).chunk(2)
    return 16.0 * upper + lower + assist


def shifted(x: Tensor, offset: Tensor) -> Tensor:
    """Return what the offsets of a weight add to ``x @ w * scale``: they are scaled already.

    Parameters
    ----------
    x : Tensor
        int8 [rows, inner], whose sums are exact in float32.
    offset : Tensor
        float32 [groups, columns]; each is for ``inner / groups`` rows of the weight.

    Returns
    -------
    Tensor
        float32 [rows, columns].
    """
    return x.float().view(len(x), len(offset), -1).sum(-1) @ offset


def _scaled(halves: Tensor, weight: Tensor, scale: Tensor, profile: CannProfile) -> Tensor:
    """Multiply int4 by int4 and by the scale; float32 [rows, columns]."""
    if len(scale) == 1:
        values = integer_product(halves, weight, INT4_PRODUCT).float() * scale
        return values.half().float() if profile.gmm_a8w4_channel_products == "float16" else values
    dtype = torch.float16 if profile.gmm_a8w4_group_products == "float16" else torch.float32
    total = torch.zeros(len(halves), weight.shape[1], dtype=dtype)
    size = len(weight) // len(scale)
    for group, factors in enumerate(scale):
        inner = slice(group * size, (group + 1) * size)
        # A sum over 256 products of int4 is exact in float32.
        total += (halves[:, inner].float() @ weight[inner].float()).to(dtype) * factors.to(dtype)
    return total.float()
