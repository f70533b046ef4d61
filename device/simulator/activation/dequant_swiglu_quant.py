"""``npu_dequant_swiglu_quant``: from the integers of one product to those of the next.

Sources: the wheel's documentation of the operator and its META rule, and CANN's ``dequant_swiglu_quant`` kernel for A2
and A3 with its golden. Documentation and kernel disagree; what the kernel does is done here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.activation.dequant_request import NAME, DequantRequest, check_dequant
from npudiff.device.simulator.activation.gates import clipped_gate, swish_gate
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.groups import group_of_rows
from npudiff.device.simulator.quantisation.integers import INT8, saturated


def dequant_swiglu_quant(
    x: Tensor,
    *,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    dst_type: int | None = None,
    round_mode: int | None = None,
    activate_dim: int | None = None,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Scale integers, gate one half of a row with the other, and round to integers.

    Parameters
    ----------
    x : Tensor
        [T, 2H], int32; or float16 or bfloat16, which nothing scales.
    weight_scale : Tensor, optional
        float32, [G, 2H]; for int32.
    activation_scale : Tensor, optional
        float32, [T] or [T, 1]; for int32.
    bias : Tensor, optional
        [2H]: int32 is added to x, any float to what has been scaled. Not with groups.
    quant_scale : Tensor, optional
        [G, H] or [G], any float. Dynamic: multiplies the gated row. Static: divides it; needed.
    quant_offset : Tensor, optional
        The shape of quant_scale: added before rounding, static only.
    group_index : Tensor, optional
        int64, [G]: how many rows each group has; without it G is 1. Dynamic only.
    activate_left : bool
        Whether the left half is the gate, or the right one.
    quant_mode : int
        0 static, 1 dynamic.
    dst_type, round_mode, activate_dim : int, optional
        Of Ascend 950.
    swiglu_mode : int
        0: ``g * sigmoid(g) * u``. 1 and 2: the formula of npu_clipped_swiglu; in 1 the gates are the even elements,
        whatever activate_left is.
    clamp_limit, glu_alpha, glu_bias : float
        Of modes 1 and 2.

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
    request = DequantRequest(
        x=x,
        weight_scale=weight_scale,
        activation_scale=activation_scale,
        bias=bias,
        quant_scale=quant_scale,
        quant_offset=quant_offset,
        group_index=group_index,
        activate_left=activate_left,
        quant_mode=quant_mode,
        swiglu_mode=swiglu_mode,
        clamp_limit=clamp_limit,
        glu_alpha=glu_alpha,
        glu_bias=glu_bias,
    )
    check_dequant(request, dst_type=dst_type, round_mode=round_mode, activate_dim=activate_dim)
    rows = len(x)
    group = None if group_index is None else group_of_rows(NAME, "group_index", group_index, rows)
    count = rows if group is None else len(group)
    gated = _gated(request, _scaled(request, count, group))
    if quant_mode == 0 and quant_scale is not None:
        return _static(gated, quant_scale.float(), quant_offset), unwritten((rows,), torch.float32)
    y, scale = unwritten((rows, x.shape[1] // 2), torch.int8), unwritten((rows,), torch.float32)
    y[:count], scale[:count] = _dynamic(request, gated, group)
    return y, scale


def dequant_swiglu_quant_meta(
    x: Tensor,
    *,
    weight_scale: Tensor | None = None,  # noqa: ARG001 - the dispatcher passes what the schema has
    activation_scale: Tensor | None = None,  # noqa: ARG001
    bias: Tensor | None = None,  # noqa: ARG001
    quant_scale: Tensor | None = None,  # noqa: ARG001
    quant_offset: Tensor | None = None,  # noqa: ARG001
    group_index: Tensor | None = None,  # noqa: ARG001
    activate_left: bool = False,  # noqa: ARG001
    quant_mode: int = 0,  # noqa: ARG001
    dst_type: int | None = None,  # noqa: ARG001
    round_mode: int | None = None,  # noqa: ARG001
    activate_dim: int | None = None,
    swiglu_mode: int = 0,  # noqa: ARG001
    clamp_limit: float = 7.0,  # noqa: ARG001
    glu_alpha: float = 1.702,  # noqa: ARG001
    glu_bias: float = 1.0,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Allocate both outputs; as torch_npu's META, this checks nothing."""
    shape = list(x.shape)
    shape[-1 if activate_dim is None else activate_dim] //= 2
    return x.new_empty(shape, dtype=torch.int8), x.new_empty(shape[:-1], dtype=torch.float32)


def _of_rows(table: Tensor, group: Tensor | None) -> Tensor:
    """Return the row of a table for each row of x, in float32; without groups the only one, which broadcasts."""
    columns = table.float().view(len(table), -1)
    return columns if group is None else columns[group]


def _scaled(request: DequantRequest, count: int, group: Tensor | None) -> Tensor:
    x, bias = request.x[:count], request.bias
    if request.weight_scale is None or request.activation_scale is None:
        return x.float()
    if bias is not None and bias.dtype == torch.int32:
        x = x + bias
    scaled = x.float() * _of_rows(request.weight_scale, group) * request.activation_scale[:count].view(-1, 1)
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


def _static(gated: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    if active_profile().dequant_swiglu_quant_static == "multiplies":
        quotient = gated * scale
    elif scale.dim() == 1:
        # One scale: the kernel multiplies by its reciprocal, and takes 1 for 0.
        quotient = gated * scale.masked_fill(scale == 0, 1.0).reciprocal()
    else:
        quotient = gated / scale
    if offset is not None:
        quotient = quotient + offset.float()
    return saturated(quotient, INT8, torch.int8)


def _dynamic(request: DequantRequest, gated: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor]:
    if request.quant_scale is not None:
        gated = gated * _of_rows(request.quant_scale, group)
    largest = gated.abs().amax(-1)
    scale = largest * torch.tensor(1 / 127, dtype=torch.float32)
    if active_profile().dequant_swiglu_quant_zero_row == "one":
        scale = scale.masked_fill(largest == 0, 1.0)
    return saturated(gated / scale.unsqueeze(-1), INT8, torch.int8), scale
