"""The arguments of ``npu_dequant_swiglu_quant``, and which of them are refused.

Sources: op-plugin's checks (named ERR01003), and the wheel's documentation of the operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.quantisation.requirements import Requirements
from npudiff.device.simulator.quantisation.scalar_types import INT8
from npudiff.device.simulator.rotary.requirements import FLOATS

NAME = "npu_dequant_swiglu_quant"
_require = Requirements(NAME)

# DOC, with group_index.
_MAX_HALF = 10496
_HALF_STEP = 64


@dataclass(frozen=True)
class DequantRequest:
    """One call; T rows of 2H elements, G groups or one. Attributes are the operator's arguments."""

    x: Tensor
    weight_scale: Tensor | None
    activation_scale: Tensor | None
    bias: Tensor | None
    quant_scale: Tensor | None
    quant_offset: Tensor | None
    group_index: Tensor | None
    activate_left: bool
    quant_mode: int
    swiglu_mode: int
    clamp_limit: float
    glu_alpha: float
    glu_bias: float

    @property
    def groups(self) -> int:
        """G: how many rows weight_scale and quant_scale have."""
        return 1 if self.group_index is None else len(self.group_index)


def check_dequant(
    request: DequantRequest, *, dst_type: int | None, round_mode: int | None, activate_dim: int | None
) -> None:
    """Refuse what the operator refuses.

    Parameters
    ----------
    request : DequantRequest
        The call.
    dst_type, round_mode, activate_dim : int, optional
        Of Ascend 950, and ignored on A2 and A3.

    Raises
    ------
    OperatorRejected
        An argument is not one that is allowed.
    NotSimulated
        The shape kernel of torch_npu would follow an option of Ascend 950; or no source says what is computed.
    """
    _check_attributes(request)
    x = request.x
    if x.dim() != 2:
        _require.missing("x", f"of rank {x.dim()}", "rank 2, [rows, 2H]")
    _require.dtype("x", x, "int32", "float16", "bfloat16")
    if dst_type not in (None, INT8):
        _require.missing("dst_type", dst_type, f"None or {INT8} (torch.int8); others are for Ascend 950")
    if activate_dim not in (None, -1, 1):
        _require.missing("activate_dim", activate_dim, "None or the last axis; others are for Ascend 950")
    if round_mode not in (None, 0):
        _require.missing("round_mode", round_mode, "None or 0; others are for Ascend 950")
    _check_groups(request)
    _check_dequantisation(request)
    _check_quantisation(request)


def _check_attributes(request: DequantRequest) -> None:
    """Refuse what op-plugin refuses, in any mode."""
    x = request.x
    if x.dim() < 2:
        _require.refuse("x", f"of rank {x.dim()}", "rank 2 or more", ErrorCode.WRAPPER)
    _require.even("x", x, x.dim() - 1, ErrorCode.WRAPPER)
    _require.one_of("quant_mode", request.quant_mode, (0, 1))
    _require.one_of("swiglu_mode", request.swiglu_mode, (0, 1, 2))
    if not 0 < request.clamp_limit < math.inf:
        _require.refuse("clamp_limit", request.clamp_limit, "a finite number above 0", ErrorCode.WRAPPER)
    for argument, value in (("glu_alpha", request.glu_alpha), ("glu_bias", request.glu_bias)):
        if not math.isfinite(value):
            _require.refuse(argument, value, "a finite number", ErrorCode.WRAPPER)
    if not x.shape[-1]:
        _require.refuse("x", f"of shape {list(x.shape)}", "rows with elements")


def _check_groups(request: DequantRequest) -> None:
    if request.group_index is None:
        return
    if request.group_index.dim() == 2:
        given = f"of shape {list(request.group_index.shape)}"
        _require.missing("group_index", given, "counts, [groups]; pairs are of the kernel's sparse mode")
    _require.rank("group_index", request.group_index, 1, 1)
    _require.dtype("group_index", request.group_index, "int64")
    if request.quant_mode != 1:
        _require.refuse("quant_mode", request.quant_mode, "1 with group_index")
    for argument, tensor in (("bias", request.bias), ("quant_offset", request.quant_offset)):
        if tensor is not None:
            _require.refuse(argument, "given", "None with group_index")
    half = request.x.shape[1] // 2
    if half % _HALF_STEP or half > _MAX_HALF:
        allowed = f"[rows, 2H] with group_index, H a multiple of {_HALF_STEP} up to {_MAX_HALF}"
        _require.refuse("x", f"of shape {list(request.x.shape)}", allowed, ErrorCode.TILING)


def _check_dequantisation(request: DequantRequest) -> None:
    rows, width = request.x.shape
    scales = (("weight_scale", request.weight_scale), ("activation_scale", request.activation_scale))
    for argument, tensor in (*scales, ("bias", request.bias)):
        if request.x.dtype != torch.int32 and tensor is not None:
            _require.refuse(argument, "given", "None where x is float16 or bfloat16")
    for argument, tensor in scales:
        if request.x.dtype == torch.int32:
            if tensor is None:
                _require.refuse(argument, None, "a tensor where x is int32")
            _require.dtype(argument, tensor, "float32")
    if request.weight_scale is not None:
        shape = (request.groups, width)
        _require.shape("weight_scale", request.weight_scale, shape, meaning="[groups, 2H]")
    if request.activation_scale is not None:
        _require.shape("activation_scale", request.activation_scale, (rows,), (rows, 1), meaning="one per row of x")
    if request.bias is not None:
        _require.dtype("bias", request.bias, "int32", *FLOATS)
        _require.shape("bias", request.bias, (width,), meaning="the last axis of x")


def _check_quantisation(request: DequantRequest) -> None:
    half = request.x.shape[1] // 2
    scale, offset = request.quant_scale, request.quant_offset
    if scale is not None:
        _require.dtype("quant_scale", scale, *FLOATS)
        shapes = ((request.groups, half), (request.groups,))
        _require.shape("quant_scale", scale, *shapes, meaning="[groups, H] or [groups]")
    elif request.quant_mode == 0:
        _require.missing("quant_scale", "None with quant_mode 0", "a tensor, with quant_mode 0")
    if offset is None:
        return
    if request.quant_mode == 1:
        _require.missing("quant_offset", "given with quant_mode 1", "None, with quant_mode 1")
    _require.dtype("quant_offset", offset, *FLOATS)
    _require.shape("quant_offset", offset, scale.shape if scale is not None else (), meaning="as quant_scale")
