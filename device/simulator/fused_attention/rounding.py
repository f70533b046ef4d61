"""How the operator's vector unit narrows fp32.

Source: the casts in CANN's ``fia_block_vec_nonquant.h``: to bfloat16 half to even, to float16 half away
from zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# float16 keeps 10 of float32's 23 fraction bits.
_DROPPED_BITS = 13
_SMALLEST_NORMAL = 2.0**-14
_SUBNORMAL_STEP = 2.0**-24


def narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to a 16-bit dtype as the operator does.

    Parameters
    ----------
    values : Tensor
        float32, any shape.
    dtype : torch.dtype
        ``torch.bfloat16`` (half to even) or ``torch.float16`` (half away from zero).

    Returns
    -------
    Tensor
        The same shape, in ``dtype``.
    """
    if dtype == torch.float16:
        return _half_away_from_zero(values)
    return values.to(dtype)


def half_away_from_zero(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to bfloat16 or float16, or return them for float32.

    Source: the casts of CANN's ``flash_attention_score_s1s2_bn2gs1.h``, half away from zero in both dtypes.
    """
    if dtype == torch.bfloat16:
        bits = values.contiguous().view(torch.int32)
        rounded = ((bits + (1 << 15)) & -(1 << 16)).view(torch.float32)
        return torch.where(values.isnan(), values, rounded).to(dtype)
    return _half_away_from_zero(values) if dtype == torch.float16 else values


def _half_away_from_zero(values: Tensor) -> Tensor:
    # Half a unit is added to the magnitude, then the dropped bits are cut; what is left converts exactly.
    bits = values.contiguous().view(torch.int32)
    normal = ((bits + (1 << (_DROPPED_BITS - 1))) & -(1 << _DROPPED_BITS)).view(torch.float32)
    subnormal = torch.floor(values.abs() / _SUBNORMAL_STEP + 0.5).mul_(_SUBNORMAL_STEP).copysign_(values)
    rounded = torch.where(values.abs() < _SMALLEST_NORMAL, subnormal, normal)
    return torch.where(values.isnan(), values, rounded).to(torch.float16)


@dataclass(frozen=True)
class Int8:
    """What makes int8 of float32 attention: ``attention * scale + offset``, by way of float16.

    Source: the post-quantisation of CANN's kernels; both casts round half away from zero, the last one saturates.
    """

    scale: Tensor
    """[1] or [heads, 1, dim]."""
    offset: Tensor | None
    """The same, or 0."""

    def __call__(self, attention: Tensor) -> Tensor:
        """Quantise float32 [heads, rows, dim]."""
        scaled = attention * self.scale.float()
        half = narrow(scaled if self.offset is None else scaled + self.offset.float(), torch.float16).float()
        rounded = torch.floor(half.abs() + 0.5).copysign(half)
        return rounded.clamp(-128, 127).to(torch.int8)


@dataclass(frozen=True)
class HalfInt8:
    """What makes int8 of attention in float16, as the kernel of int8 queries does: every step in float16, half to even.

    Source: ``QuantCompute`` of CANN's ``prompt_flash_attention_s1s2_bns1_x910_base.h``. That the vector library's
    quantisation rounds so is inferred.
    """

    scale: Tensor
    """[1] or [heads, 1, dim]."""
    offset: Tensor | None
    """The same, or 0."""

    def __call__(self, attention: Tensor) -> Tensor:
        """Quantise float32 [heads, rows, dim], which float16 can hold."""
        half = (attention * self.scale.half().float()).half()
        if self.offset is not None:
            half = half + self.offset.half()
        return half.float().round().clamp(-128, 127).to(torch.int8)
