"""``npu_dynamic_quant``: integers and a scale per row.

Sources: the wheel's documentation of the operator and its META rule, op-plugin's checks, and CANN's kernel
``dynamic_quant.h`` for A2 and A3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.groups import counts_of_ends, group_of_rows
from npudiff.device.simulator.quantisation.integers import INT4, INT8, PER_WORD, packed, saturated
from npudiff.device.simulator.quantisation.scalar_types import INT8 as INT8_TYPE
from npudiff.device.simulator.quantisation.scalar_types import QUINT4X2

_CHECK = ArgumentChecks("npu_dynamic_quant", default=ErrorCode.PARAMETER)


def dynamic_quant(
    x: Tensor,
    /,
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Divide every row by its largest magnitude over 127, or over 7, and round.

    Parameters
    ----------
    x : Tensor
        [..., H], float16 or bfloat16, rank 2 or more.
    smooth_scales : Tensor, optional
        [H], or [E, H] with group_index: multiplies x first; dtype of x.
    group_index : Tensor, optional
        int32, [E]: the ends of groups of rows, cumulative; the last one is the number of rows.
    dst_type : int, optional
        ScalarType of the output: int8, which is the default, or quint4x2.
    quant_mode : str
        ``pertoken``.
    dst_type_max : float
        0.

    Returns
    -------
    y : Tensor
        int8 in the shape of x; or int32 with H / 8 words, of eight integers of 4 bits each.
    scale : Tensor
        float32, the shape of x without its last axis: ``1 / (127 / max)``, each division rounded.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or dst_type is not one of the above.
    NotSimulated
        Another quant_mode, or a dst_type_max.
    UndefinedBehaviour
        The ends of groups decrease, or do not end with the last row.
    """
    check_input(_CHECK, x, dst_type, quant_mode, dst_type_max)
    values = x.float() * smooth_factors(_CHECK, x, smooth_scales, group_index)
    integers, scale = scaled_by_row(values, INT4 if dst_type == QUINT4X2 else INT8)
    return (packed(integers) if dst_type == QUINT4X2 else integers), scale


def scaled_by_row(values: Tensor, limits: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return integers, and what they are multiplied by to give the values of a row.

    Parameters
    ----------
    values : Tensor
        float32, [..., H].
    limits : tuple of int
        The smallest and the largest integer.

    Returns
    -------
    integers : Tensor
        int8, [..., H].
    scale : Tensor
        float32, [...].
    """
    largest = values.abs().amax(-1)
    # Two divisions of float32, as in the kernel. torch would take a reciprocal and a product for 127 / largest.
    factor = torch.div(torch.tensor(float(limits[1])), largest)
    integers = saturated(values * factor.unsqueeze(-1), limits, torch.int8, active_profile().dynamic_quant_ties)
    return integers, _zero_rows(largest, factor.reciprocal())


def dynamic_quant_meta(x: Tensor, /, dst_type: int | None, quant_mode: str) -> tuple[Tensor, Tensor]:
    """Allocate both outputs. As torch_npu's META, this checks only that words of int4 are full."""
    return allocated(_CHECK, x, dst_type, quant_mode)


def allocated(check: ArgumentChecks, x: Tensor, dst_type: int | None, quant_mode: str) -> tuple[Tensor, Tensor]:
    """Allocate integers and scales for an operator that quantises rows.

    Raises
    ------
    OperatorRejected
        The last axis of x fills no words of int4.
    """
    shape = {"pertensor": [1], "perchannel": [*x.shape[:-2], x.shape[-1]]}.get(quant_mode, x.shape[:-1])
    scale = x.new_empty(shape, dtype=torch.float32)
    if dst_type != QUINT4X2:
        return x.new_empty(x.shape, dtype=torch.int8), scale
    _require_words(check, x)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // PER_WORD), dtype=torch.int32), scale


def check_input(check: ArgumentChecks, x: Tensor, dst_type: int | None, quant_mode: str, dst_type_max: float) -> None:
    """Refuse what no operator that quantises rows takes.

    Raises
    ------
    OperatorRejected
        The dtype, rank or last axis of x, the dst_type or the quant_mode.
    NotSimulated
        Another quant_mode than pertoken, or a dst_type_max.
    """
    if not 2 <= x.dim() <= 8:
        given, words = f"of rank {x.dim()}, {list(x.shape)}", "Input shape dim should be greater than 1"
        raise check.rejected("input", given, "rank 2 to 8", ErrorCode.WRAPPER, words if x.dim() < 2 else "")
    check.dtype("input", x, "float16", "bfloat16")
    if dst_type not in (None, INT8_TYPE, QUINT4X2):
        # The float8 types and their like are of Ascend 950.
        raise check.rejected("dst_type", dst_type, f"None, {INT8_TYPE} (torch.int8) or {QUINT4X2} (torch.quint4x2)")
    if dst_type == QUINT4X2:
        _require_words(check, x)
    check.choice("quant_mode", quant_mode, ("pertoken", "pertensor", "perchannel"), ErrorCode.WRAPPER)
    if quant_mode != "pertoken":
        raise check.not_simulated("quant_mode", repr(quant_mode), "'pertoken'")
    if dst_type_max != 0.0:
        raise check.not_simulated("dst_type_max", dst_type_max, "0.0; others are for dtypes of Ascend 950")
    if not x.shape[-1]:
        raise check.rejected("input", f"of shape {list(x.shape)}", "rows with elements")


def _require_words(check: ArgumentChecks, x: Tensor) -> None:
    if x.shape[-1] % PER_WORD:
        given = f"of shape {list(x.shape)} with dst_type quint4x2"
        words = "Input shape last dim must be divded by 8 when int4 quantization"
        raise check.rejected("input", given, f"a last axis that is a multiple of {PER_WORD}", ErrorCode.WRAPPER, words)


def smooth_factors(
    check: ArgumentChecks, x: Tensor, smooth_scales: Tensor | None, group_index: Tensor | None
) -> Tensor:
    """Return float32 factors that broadcast over x; 1 if there are none.

    Raises
    ------
    OperatorRejected
        Dtype or shape does not fit x.
    NotSimulated
        Groups without factors.
    UndefinedBehaviour
        The ends of groups decrease, or do not end with the last row.
    """
    if smooth_scales is None:
        if group_index is not None:
            simulated = "group_index together with smooth_scales"
            raise check.not_simulated("group_index", "given without smooth_scales", simulated)
        return torch.ones(())
    check.dtype("smooth_scales", smooth_scales, dtype_name(x))
    width = x.shape[-1]
    if group_index is None:
        check.shape("smooth_scales", smooth_scales, (width,), meaning="the last axis of input")
        return smooth_scales.float()
    check.dtype("group_index", group_index, "int32")
    check.rank("group_index", group_index, 1)
    check.shape("smooth_scales", smooth_scales, (len(group_index), width), meaning="[groups, last axis of input]")
    accepted = active_profile().dynamic_quant_empty_groups == "accepted"
    counts = counts_of_ends(check.operator, "group_index", group_index, empty_groups=accepted)
    rows = x.shape[:-1].numel()
    group = group_of_rows(check.operator, "group_index", counts, rows)
    if len(group) < rows:
        found = f"group_index ends with {len(group)} and input has {rows} rows"
        raise UndefinedBehaviour(f"{check.operator}: {found}; the last end is the number of rows on a legal call")
    return smooth_scales.float()[group].view(x.shape)


def _zero_rows(largest: Tensor, scale: Tensor) -> Tensor:
    choice = active_profile().dynamic_quant_zero_row
    if choice == "zero":  # what the arithmetic gives
        return scale
    return scale.masked_fill(largest == 0, 1.0 if choice == "one" else torch.nan)
