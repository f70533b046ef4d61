"""``npu_dynamic_quant_asymmetric``: integers, a scale and an offset per row.

Sources: op-plugin's documentation, checks and test, the wheel's META rule, and CANN's kernel ``dynamic_quant.h``
(ops-nn) for A2 and A3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.quantisation.dynamic_quant import allocated, check_input, smooth_factors
from npudiff.device.simulator.quantisation.integers import INT4, INT8, packed, saturated
from npudiff.device.simulator.quantisation.scalar_types import QUINT4X2

_CHECK = ArgumentChecks("npu_dynamic_quant_asymmetric", default=ErrorCode.PARAMETER)

_SMALLEST_SCALE = 1e-12


def dynamic_quant_asymmetric(
    x: Tensor,
    /,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Put every row between its smallest and its largest number, and round.

    Parameters are those of :func:`~npudiff.device.simulator.quantisation.dynamic_quant.dynamic_quant`.

    Returns
    -------
    y : Tensor
        int8 in the shape of x; or int32 with H / 8 words, of eight integers of 4 bits each: ``round(x * (1 / scale) +
        offset)``.
    scale : Tensor
        float32, the shape of x without its last axis: ``(max - min) / 255``, or 15 for 4 bits, and 1e-12 at least.
    offset : Tensor
        float32, likewise: ``127 - max / scale``, or 7 for 4 bits.

    Raises
    ------
    OperatorRejected, NotSimulated, UndefinedBehaviour
        As dynamic_quant.
    """
    check_input(_CHECK, x, dst_type, quant_mode, dst_type_max)
    values = x.float() * smooth_factors(_CHECK, x, smooth_scales, group_index)
    limits = INT4 if dst_type == QUINT4X2 else INT8
    high, low = values.amax(-1), values.amin(-1)
    # Divisors are tensors, or torch would multiply by their reciprocals.
    steps = torch.tensor(float(limits[1] - limits[0]))
    # As GetMax of the kernel, which compares: NaN is not larger.
    scale = torch.div(high - low, steps)
    scale = torch.where(scale > _SMALLEST_SCALE, scale, torch.tensor(_SMALLEST_SCALE))
    offset = limits[1] - torch.div(high, scale)
    moved = values * torch.div(torch.ones(()), scale).unsqueeze(-1) + offset.unsqueeze(-1)
    integers = saturated(moved, limits, torch.int8)
    return packed(integers) if dst_type == QUINT4X2 else integers, scale, offset


def dynamic_quant_asymmetric_meta(x: Tensor, /, dst_type: int | None, quant_mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs. As torch_npu's META, this checks only that words of int4 are full."""
    y, scale = allocated(_CHECK, x, dst_type, quant_mode)
    return y, scale, torch.empty_like(scale)
