"""``npu_dequant_swiglu_quant``: from the integers of one product to those of the next.

Sources: op-plugin's checks (named ERR01003), the wheel's documentation of the operator and its META rule, and CANN's
``dequant_swiglu_quant`` kernel for A2 and A3 with its golden. Documentation and kernel disagree; this follows the
kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.activation.gates import clipped_gate, swish_gate
from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.groups import group_of_rows
from npudiff.device.simulator.quantisation.integers import INT8, saturated
from npudiff.device.simulator.quantisation.scalar_types import INT8 as INT8_TYPE

_CHECK = ArgumentChecks("npu_dequant_swiglu_quant", default=ErrorCode.PARAMETER)

# DOC, with group_index.
_MAX_HALF = 10496


@dataclass(frozen=True)
class DequantRequest:
    """One call; T rows of 2H elements, G groups or one. Names are those of the schema."""

    x: Tensor
    """[T, 2H], int32; or float16 or bfloat16, which nothing scales."""
    weight_scale: Tensor | None
    """float32, [G, 2H]; for int32."""
    activation_scale: Tensor | None
    """float32, [T] or [T, 1]; for int32."""
    bias: Tensor | None
    """[2H]: int32 is added to x, any float to what has been scaled. Not with groups."""
    quant_scale: Tensor | None
    """[G, H] or [G], any float. Dynamic: multiplies the gated row. Static: divides it; needed."""
    quant_offset: Tensor | None
    """The shape of quant_scale: added before rounding, static only."""
    group_index: Tensor | None
    """int64, [G]: how many rows each group has; without it G is 1. Dynamic only."""
    activate_left: bool
    """Whether the left half is the gate, or the right one."""
    quant_mode: int
    """0 static, 1 dynamic."""
    dst_type: int | None
    round_mode: int | None
    activate_dim: int | None
    """Options of Ascend 950."""
    swiglu_mode: int
    """0: ``g * sigmoid(g) * u``. 1 and 2: the formula of npu_clipped_swiglu; in 1 the gates are the even elements,
    whatever activate_left is."""
    clamp_limit: float
    glu_alpha: float
    glu_bias: float
    """Constants of modes 1 and 2."""

    @property
    def groups(self) -> int:
        """G: how many rows weight_scale and quant_scale have."""
        return 1 if self.group_index is None else len(self.group_index)


def _check(request: DequantRequest) -> None:
    """Refuse what the operator refuses; dst_type, round_mode and activate_dim are ignored on A2 and A3."""
    _check_attributes(request)
    x = request.x
    if x.dim() != 2:
        raise _CHECK.not_simulated("x", f"of rank {x.dim()}", "rank 2, [rows, 2H]")
    _CHECK.dtype("x", x, "int32", "float16", "bfloat16")
    if request.dst_type not in (None, INT8_TYPE):
        raise _CHECK.not_simulated(
            "dst_type", request.dst_type, f"None or {INT8_TYPE} (torch.int8); others are for Ascend 950"
        )
    if request.activate_dim not in (None, -1, 1):
        raise _CHECK.not_simulated(
            "activate_dim", request.activate_dim, "None or the last axis; others are for Ascend 950"
        )
    if request.round_mode not in (None, 0):
        raise _CHECK.not_simulated("round_mode", request.round_mode, "None or 0; others are for Ascend 950")
    _check_groups(request)
    _check_dequantisation(request)
    _check_quantisation(request)


def _check_attributes(request: DequantRequest) -> None:
    """Refuse what op-plugin refuses, in any mode."""
    x = request.x
    if x.dim() < 2:
        raise _CHECK.rejected("x", f"of rank {x.dim()}", "rank 2 or more", ErrorCode.WRAPPER)
    _CHECK.even("x", x, x.dim() - 1, ErrorCode.WRAPPER)
    _CHECK.choice("quant_mode", request.quant_mode, (0, 1), ErrorCode.WRAPPER)
    _CHECK.choice("swiglu_mode", request.swiglu_mode, (0, 1, 2), ErrorCode.WRAPPER)
    if not 0 < request.clamp_limit < math.inf:
        raise _CHECK.rejected("clamp_limit", request.clamp_limit, "a finite number above 0", ErrorCode.WRAPPER)
    for argument, value in (("glu_alpha", request.glu_alpha), ("glu_bias", request.glu_bias)):
        if not math.isfinite(value):
            raise _CHECK.rejected(argument, value, "a finite number", ErrorCode.WRAPPER)
    if not x.shape[-1]:
        raise _CHECK.rejected("x", f"of shape {list(x.shape)}", "rows with elements")


def _check_groups(request: DequantRequest) -> None:
    if request.group_index is None:
        return
    if request.group_index.dim() == 2:
        given = f"of shape {list(request.group_index.shape)}"
        raise _CHECK.not_simulated("group_index", given, "counts, [groups]; pairs are of the kernel's sparse mode")
    _CHECK.rank("group_index", request.group_index, 1)
    _CHECK.dtype("group_index", request.group_index, "int64")
    if request.bias is not None:
        raise _CHECK.rejected("bias", "given", "None with group_index")
    half = request.x.shape[1] // 2
    step = active_profile().dequant_swiglu_quant_step
    if half % step or half > _MAX_HALF:
        allowed = f"[rows, 2H] with group_index, H a multiple of {step} up to {_MAX_HALF}"
        raise _CHECK.rejected("x", f"of shape {list(request.x.shape)}", allowed, ErrorCode.TILING)


def _check_dequantisation(request: DequantRequest) -> None:
    rows, width = request.x.shape
    scales = (("weight_scale", request.weight_scale), ("activation_scale", request.activation_scale))
    for argument, tensor in (*scales, ("bias", request.bias)):
        if request.x.dtype != torch.int32 and tensor is not None:
            raise _CHECK.rejected(argument, "given", "None where x is float16 or bfloat16")
    for argument, tensor in scales:
        if request.x.dtype == torch.int32:
            if tensor is not None:
                _CHECK.dtype(argument, tensor, "float32")
            elif argument == "activation_scale" and active_profile().dequant_swiglu_quant_row_scale == "needed":
                raise _CHECK.rejected(argument, None, "a tensor where x is int32")
    if request.weight_scale is not None:
        shapes = ((request.groups, width), *([(width,)] if request.groups == 1 else []))
        _CHECK.shape("weight_scale", request.weight_scale, *shapes, meaning="[groups, 2H], or [2H] of one")
    if request.activation_scale is not None:
        _CHECK.shape("activation_scale", request.activation_scale, (rows,), (rows, 1), meaning="one per row of x")
    if request.bias is not None:
        _CHECK.dtype("bias", request.bias, "int32", *FLOATS)
        _CHECK.shape("bias", request.bias, (width,), meaning="the last axis of x")


def _check_quantisation(request: DequantRequest) -> None:
    half = request.x.shape[1] // 2
    scale, offset = request.quant_scale, request.quant_offset
    if scale is not None:
        _CHECK.dtype("quant_scale", scale, *FLOATS)
        shapes = ((request.groups, half), (request.groups,))
        _CHECK.shape("quant_scale", scale, *shapes, meaning="[groups, H] or [groups]")
    elif request.quant_mode == 0:
        raise _CHECK.not_simulated("quant_scale", "None with quant_mode 0", "a tensor, with quant_mode 0")
    if offset is None:
        return
    if request.quant_mode == 1:
        raise _CHECK.not_simulated("quant_offset", "given with quant_mode 1", "None, with quant_mode 1")
    _CHECK.dtype("quant_offset", offset, *FLOATS)
    _CHECK.shape("quant_offset", offset, scale.shape if scale is not None else (), meaning="as quant_scale")


def dequant_swiglu_quant(request: DequantRequest) -> tuple[Tensor, Tensor]:
    """Scale integers, gate one half of a row with the other, and round to integers.

    Returns
    -------
    y : Tensor
        int8, [T, H].
    scale : Tensor
        float32, [T]: a row's largest magnitude times the float32 nearest to 1 / 127. Rows beyond the groups, of both
        outputs, and the scale of static quantisation are not written.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or attribute is not one of the above.
    NotSimulated
        An option of Ascend 950; x of more axes; static without quant_scale, dynamic with quant_offset.
    UndefinedBehaviour
        A count of group_index is negative, or their sum is more than T.
    """
    _check(request)
    rows, group = len(request.x), None
    if request.group_index is not None:
        group = group_of_rows(_CHECK.operator, "group_index", request.group_index, rows)
    count = rows if group is None else len(group)
    gated = _gated(request, _scaled(request, count, group))
    if request.quant_mode == 0 and request.quant_scale is not None:
        scale = unwritten((rows,), torch.float32)
        y = unwritten((rows, request.x.shape[1] // 2), torch.int8)
        y[:count] = _static(gated, request.quant_scale.float(), request.quant_offset, group)
        return y, scale
    y, scale = unwritten((rows, request.x.shape[1] // 2), torch.int8), unwritten((rows,), torch.float32)
    y[:count], scale[:count] = _dynamic(request, gated, group)
    return y, scale


def dequant_swiglu_quant_meta(request: DequantRequest) -> tuple[Tensor, Tensor]:
    """Allocate both outputs; as torch_npu's META, this checks nothing."""
    x, axis = request.x, request.activate_dim
    shape = list(x.shape)
    shape[-1 if axis is None else axis] //= 2
    return x.new_empty(shape, dtype=torch.int8), x.new_empty(shape[:-1], dtype=torch.float32)


def _of_rows(table: Tensor, group: Tensor | None) -> Tensor:
    """Return the row of a table for each row of x, in float32; without groups the only one, which broadcasts."""
    columns = table.float().view(len(table), -1)
    return columns if group is None else columns[group]


def _scaled(request: DequantRequest, count: int, group: Tensor | None) -> Tensor:
    x, bias = request.x[:count], request.bias
    if bias is not None and bias.dtype == torch.int32:
        x = x + bias
    scaled = x.float()
    if request.weight_scale is not None:
        scaled = scaled * _of_rows(request.weight_scale.view(request.groups, -1), group)
    if request.activation_scale is not None:
        scaled = scaled * request.activation_scale[:count].view(-1, 1)
    return scaled if bias is None or bias.dtype == torch.int32 else scaled + bias.float()


def _gated(request: DequantRequest, values: Tensor) -> Tensor:
    if request.swiglu_mode == 1:
        gate, up = values[:, ::2], values[:, 1::2]
    else:
        left, right = values.tensor_split(2, 1)
        gate, up = (left, right) if request.activate_left else (right, left)
    if request.swiglu_mode == 0:
        return swish_gate(gate, up)
    return clipped_gate(gate, up, limit=request.clamp_limit, alpha=request.glu_alpha, bias=request.glu_bias)


def _static(gated: Tensor, scale: Tensor, offset: Tensor | None, group: Tensor | None) -> Tensor:
    factors = _of_rows(scale, group)
    if active_profile().dequant_swiglu_quant_static == "multiplies":
        quotient = gated * factors
    elif scale.dim() == 1:
        # One scale: the kernel multiplies by its reciprocal, and takes 1 for 0.
        quotient = gated * factors.masked_fill(factors == 0, 1.0).reciprocal()
    else:
        quotient = gated / factors
    if offset is not None:
        quotient = quotient + _of_rows(offset, group)
    return saturated(quotient, INT8, torch.int8)


def _dynamic(request: DequantRequest, gated: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor]:
    if request.quant_scale is not None:
        gated = gated * _of_rows(request.quant_scale, group)
    largest = gated.abs().amax(-1)
    scale = largest * torch.tensor(1 / 127, dtype=torch.float32)
    if active_profile().dequant_swiglu_quant_zero_row == "one":
        scale = scale.masked_fill(largest == 0, 1.0)
    return saturated(gated / scale.unsqueeze(-1), INT8, torch.int8), scale
