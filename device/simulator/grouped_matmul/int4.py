"""Products of int8 by int4, as they are made on a device that multiplies int4 by int4.

An int8 is ``16 * upper + lower + 8`` with two int4, so that a product is ``16 * upper @ w + lower @ w + 8 * sum(w)``.
The last term is known beforehand, and the caller gives it, times the scale, as a bias. Sources: ACLNN and GOLDEN (see
``choices``), and vllm-ascend's ``w4a8.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from device.simulator.grouped_matmul.products import INT4_PRODUCT, integer_product
from device.simulator.profiles import CannProfile

PER_WORD = 8
"""int4 in an int32, the first in the lowest bits."""


def unpacked(words: Tensor) -> Tensor:
    """Return the int4 of int32 words, as int8: [..., n] gives [..., 8 * n]."""
    pairs = words.contiguous().view(torch.int8)
    return torch.stack((((pairs & 15) ^ 8) - 8, pairs >> 4), -1).flatten(-2)


def scale_from_bits(scale: Tensor) -> Tensor:
    """Return float32 of int64 or uint64 whose lower halves are its bits; the upper halves are not looked at."""
    return scale.contiguous().view(torch.int32)[..., ::2].contiguous().view(torch.float32)


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
    upper, lower = x >> 4, (x & 15) - 8
    total = 16.0 * _scaled(upper, weight, scale, profile) + _scaled(lower, weight, scale, profile)
    return total + assist


def _scaled(half: Tensor, weight: Tensor, scale: Tensor, profile: CannProfile) -> Tensor:
    """Multiply int4 by int4 and by the scale; float32 [rows, columns]."""
    if len(scale) == 1:
        values = integer_product(half, weight, INT4_PRODUCT).float() * scale
        return values.half().float() if profile.gmm_a8w4_channel_products == "float16" else values
    dtype = torch.float16 if profile.gmm_a8w4_group_products == "float16" else torch.float32
    total = torch.zeros(len(half), weight.shape[1], dtype=dtype)
    size = len(weight) // len(scale)
    for group, factors in enumerate(scale):
        inner = slice(group * size, (group + 1) * size)
        # A sum over 256 products of int4 is exact in float32.
        total += (half[:, inner].float() @ weight[inner].float()).to(dtype) * factors.to(dtype)
    return total.float()
