"""How rows become int8 on their way to the experts.

SOURCE is vllm-ascend's copy of CANN's kernels, ``moe_v2_gather_quant.h`` (static) and
``moe_v2_gather_dynamic_quant.h`` (dynamic).
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.profiles import CannProfile

_LARGEST = 127.0


def static_int8(rows: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return ``rows * scale + offset`` as int8, with one scale for all.

    float16 is multiplied and added in float16; other dtypes in float32, and the sum becomes float16. Both round half
    to even, as does int8.

    Parameters
    ----------
    rows : Tensor
        [..., H], float16, bfloat16 or float32.
    scale, offset : Tensor
        float32 [1].

    Returns
    -------
    Tensor
        int8, the shape of rows. NaN becomes 0 (inferred).
    """
    if rows.dtype == torch.float16:
        values = rows * scale.half() + offset.half()
    else:
        values = (rows.float() * scale + offset).half()
    return _narrow(values.float().round())


def dynamic_int8(rows: Tensor, smooth: Tensor | None, profile: CannProfile) -> tuple[Tensor, Tensor]:
    """Return each row by its own scale, the largest magnitude over 127.

    Parameters
    ----------
    rows : Tensor
        [rows, H], float16, bfloat16 or float32.
    smooth : Tensor, optional
        float32 [rows, H] or [1, H]: factors, one per element.
    profile : CannProfile
        Says how int8 is rounded.

    Returns
    -------
    quantised : Tensor
        int8 [rows, H]. A row of zeros is 0 / 0, which becomes 0 (inferred).
    scale : Tensor
        float32 [rows].
    """
    plain = rows.float()
    values = plain if smooth is None else plain * smooth
    largest = values.abs().amax(-1) if values.shape[-1] else values.new_zeros(len(values))
    scale = largest / _LARGEST
    numerator = plain if profile.moe_init_routing_smooth == "scale_only" else values
    quotient = numerator / scale.unsqueeze(-1)
    if profile.moe_init_routing_dynamic_int8 == "half_to_even":
        return _narrow(quotient.round()), scale
    cut = cut_to_half(quotient).float()
    return _narrow(torch.copysign((cut.abs() + 0.5).floor(), cut)), scale


def cut_to_half(values: Tensor) -> Tensor:
    """Convert float32 to float16 toward zero (AscendC ``CAST_TRUNC``); exact values stay, NaN too."""
    nearest = values.half()
    # The magnitude is the lower 15 bits, so one less is the next number toward zero.
    toward_zero = (nearest.view(torch.int16) - 1).view(torch.float16)
    return torch.where(nearest.float().abs() > values.abs(), toward_zero, nearest)


def _narrow(values: Tensor) -> Tensor:
    """Convert whole numbers to int8, saturating."""
    return values.nan_to_num(0.0).clamp(-128, 127).to(torch.int8)
