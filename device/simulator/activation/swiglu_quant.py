"""``npu_swiglu_quant``: the swish of one half times the other half, as integers.

Sources: the wheel's documentation of the operator and its META rule, op-plugin's checks, and CANN's ``swi_glu_quant``
kernel for A2 and A3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.activation.gates import swish_gate
from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.groups import counts_of_ends, group_of_rows
from npudiff.device.simulator.quantisation.integers import INT8, saturated

NAME = "npu_swiglu_quant"
_CHECK = ArgumentChecks(NAME, default=ErrorCode.PARAMETER)
_MAX_WIDTH = 8192


def swiglu_quant(
    x: Tensor,
    *,
    smooth_scales: Tensor | None = None,
    offsets: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    group_list_type: int = 0,
    dst_type: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Gate one half of a row with the other, and round to integers.

    Parameters
    ----------
    x : Tensor
        [..., 2H], float16, bfloat16 or float32, rank 2 to 8; 2H at most 8192.
    smooth_scales : Tensor, optional
        float32, [G, H] or [G]: multiplies what is gated; needed by static quantisation.
    offsets : Tensor, optional
        The same shape: added before rounding, static only; needed there.
    group_index : Tensor, optional
        int32, [G]; without it G is 1. Rows after the last group are neither multiplied nor added to.
    activate_left : bool
        Whether the left half is the gate, or the right one.
    quant_mode : int
        0 static, 1 dynamic.
    group_list_type : int
        Whether group_index has cumulative ends, 0, or counts, 1.
    dst_type : torch.dtype, optional
        int8.

    Returns
    -------
    y : Tensor
        int8, [..., H].
    scale : Tensor
        float32, the shape of x without its last axis: 127 over a row's largest magnitude, and infinite for a row
        of zeros. Not written where quantisation is static.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or attribute is not one of the above.
    NotSimulated
        dst_type quint4x2; static without smooth_scales or offsets.
    UndefinedBehaviour
        Ends of groups decrease, a count is negative, or groups have more rows than there are.
    """
    _check_attributes(x, quant_mode, group_list_type, dst_type)
    _check_scales(x, smooth_scales, offsets, group_index, quant_mode)
    left, right = x.reshape(-1, x.shape[-1]).float().tensor_split(2, 1)
    gated = swish_gate(left, right) if activate_left else swish_gate(right, left)
    group = _groups(group_index, group_list_type, len(gated))
    _smooth(gated, smooth_scales, offsets if quant_mode == 0 else None, group)
    shape = x.shape[:-1]
    if quant_mode == 0:
        scale = unwritten(shape, torch.float32)
        return saturated(gated, INT8, torch.int8).view(*shape, gated.shape[1]), scale
    # torch would take a reciprocal and a product for 127 / x.
    factor = torch.div(torch.tensor(127.0), gated.abs().amax(-1))
    integers = saturated(gated * factor.unsqueeze(-1), INT8, torch.int8)
    if active_profile().swiglu_quant_scale == "scale":
        factor = factor.reciprocal()
    return integers.view(*shape, gated.shape[1]), factor.view(shape)


def swiglu_quant_meta(x: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate both outputs; as torch_npu's META, this checks nothing."""
    y = x.new_empty((*x.shape[:-1], x.shape[-1] // 2), dtype=torch.int8)
    return y, x.new_empty(x.shape[:-1], dtype=torch.float32)


def _check_attributes(x: Tensor, quant_mode: int, group_list_type: int, dst_type: torch.dtype | None) -> None:
    _CHECK.dtype("x", x, *FLOATS)
    _CHECK.rank("x", x, range(2, 9))
    _CHECK.choice("quant_mode", quant_mode, (0, 1), ErrorCode.WRAPPER)
    _CHECK.choice("group_list_type", group_list_type, (0, 1), ErrorCode.WRAPPER)
    _CHECK.choice("dst_type", dst_type, (None, torch.int8, torch.quint4x2), ErrorCode.WRAPPER)
    width = x.shape[-1]
    if width % 2 or not 0 < width <= _MAX_WIDTH:
        allowed = f"an even last axis up to {_MAX_WIDTH}"
        raise _CHECK.rejected("x", f"of shape {list(x.shape)}", allowed, ErrorCode.WRAPPER)
    if dst_type == torch.quint4x2:
        if width % 4:
            given = f"of shape {list(x.shape)} with dst_type quint4x2"
            raise _CHECK.rejected("x", given, "a last axis that is a multiple of 4", ErrorCode.WRAPPER)
        raise _CHECK.not_simulated("dst_type", "torch.quint4x2", "None or torch.int8")


def _check_scales(
    x: Tensor, smooth_scales: Tensor | None, offsets: Tensor | None, group_index: Tensor | None, quant_mode: int
) -> None:
    half = x.shape[-1] // 2
    groups = 1
    if group_index is not None:
        _CHECK.dtype("group_index", group_index, "int32")
        _CHECK.rank("group_index", group_index, 1)
        groups = len(group_index)
    if smooth_scales is not None:
        _CHECK.dtype("smooth_scales", smooth_scales, "float32")
        shapes = ((groups, half), (groups,))
        _CHECK.shape("smooth_scales", smooth_scales, *shapes, meaning="[groups, H] or [groups]")
    if quant_mode == 1:
        return
    # Two that are missing have no shapes that differ; what the kernel makes of none was not read.
    for argument, tensor in (("smooth_scales", smooth_scales), ("offsets", offsets)):
        if tensor is None:
            raise _CHECK.not_simulated(argument, "None with quant_mode 0", "a tensor, with quant_mode 0")
    if smooth_scales is not None and offsets is not None:
        _CHECK.dtype("offsets", offsets, "float32")
        if offsets.shape != smooth_scales.shape:
            given, allowed = f"of shape {list(offsets.shape)}", f"{list(smooth_scales.shape)}, as smooth_scales"
            raise _CHECK.rejected("offsets", given, allowed, ErrorCode.WRAPPER)


def _groups(group_index: Tensor | None, group_list_type: int, rows: int) -> Tensor:
    """Return the group of every row that is in one; without groups all rows are in the first."""
    if group_index is None:
        return torch.zeros(rows, dtype=torch.int64)
    counts = group_index
    if group_list_type == 0:
        counts = counts_of_ends(NAME, "group_index", group_index, empty_groups=True)
    return group_of_rows(NAME, "group_index", counts, rows)


def _smooth(gated: Tensor, smooth_scales: Tensor | None, offsets: Tensor | None, group: Tensor) -> None:
    """Multiply and add in place, in rows that are in a group: two roundings."""
    if smooth_scales is not None:
        gated[: len(group)] *= smooth_scales.view(len(smooth_scales), -1)[group]
    if offsets is not None:
        gated[: len(group)] += offsets.view(len(offsets), -1)[group]
