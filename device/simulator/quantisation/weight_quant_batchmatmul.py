"""``npu_weight_quant_batchmatmul``: a product with a weight of integers, which are made floats first.

Sources: the wheel's documentation of the operator and its META rule, op-plugin's checks and the golden of its test.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.hardware_scales import decoded, encoded
from npudiff.device.simulator.quantisation.integers import INT8, saturated
from npudiff.device.simulator.quantisation.requirements import Requirements
from npudiff.device.simulator.quantisation.weight_quant_request import NAME, WeightQuantRequest, check_weight_quant

_require = Requirements(NAME)


def weight_quant_batchmatmul(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    antiquant_group_size: int = 0,
    inner_precise: int = 0,
    weight_dtype: int | None = None,
) -> Tensor:
    """Return ``x @ ((weight + antiquant_offset) * antiquant_scale) + bias``, or integers of it.

    Parameters
    ----------
    x : Tensor
        [..., M, K], float16 or bfloat16.
    weight : Tensor
        [..., K, N], int8; or int32 with eight integers of 4 bits in a word, [..., K, N / 8] without gaps or a
        transposed [..., N, K / 8]. Batch axes are those of x, or one of both has none.
    antiquant_scale : Tensor
        The dtype of x: [1] or [1, 1]; [N] or [1, N]; with groups also [ceil(K / group size), N].
    antiquant_offset : Tensor, optional
        Shape and dtype of antiquant_scale.
    quant_scale : Tensor, optional
        float32, of which 19 bits count, or int64 of npu_trans_quant_param; [1], [N] or [1, N].
    quant_offset : Tensor, optional
        float32, the shape of quant_scale; an integer of 9 bits is made of it.
    bias : Tensor, optional
        float16 for float16, float32 for bfloat16; [1], [N] or [1, N].
    antiquant_group_size : int
        0, or a multiple of 32 below K: how many rows of the weight have a scale together.
    inner_precise : int
        0.
    weight_dtype : int, optional
        Of Ascend 950.

    Returns
    -------
    Tensor
        [..., M, N] in the dtype of x, or int8 with quant_scale: ``round(y * quant_scale + quant_offset)``. The weight
        is rounded to the dtype of x; the product, the bias and the last scale are float32.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape, format or attribute is not one of the above.
    NotSimulated
        Scales of int64 for the weight, words of int4 in FRACTAL_NZ, inner_precise 1, an option of Ascend 950.
    """
    if weight_dtype is not None:
        _require.missing("weight_dtype", weight_dtype, "None; others are for Ascend 950")
    request = WeightQuantRequest(
        x,
        weight,
        antiquant_scale,
        antiquant_offset,
        quant_scale,
        quant_offset,
        bias,
        antiquant_group_size,
        inner_precise,
    )
    check_weight_quant(request)
    values = x.float() @ _dequantised(request).float()
    if bias is not None:
        values = values + bias.float()
    return values.to(x.dtype) if quant_scale is None else _quantised(values, quant_scale, quant_offset)


def weight_quant_batchmatmul_meta(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    antiquant_group_size: int = 0,
    inner_precise: int = 0,
    weight_dtype: int | None = None,  # noqa: ARG001 - the dispatcher passes what the schema has
) -> Tensor:
    """Allocate the output in the shape that eager gives; torch_npu's META has only that of two axes."""
    request = WeightQuantRequest(
        x,
        weight,
        antiquant_scale,
        antiquant_offset,
        quant_scale,
        quant_offset,
        bias,
        antiquant_group_size,
        inner_precise,
    )
    return x.new_empty(request.output_shape(), dtype=x.dtype if quant_scale is None else torch.int8)


def _dequantised(request: WeightQuantRequest) -> Tensor:
    """Return the weight in the dtype of x."""
    dtype = request.x.dtype
    arithmetic = dtype if active_profile().weight_quant_dequantised == "rounded_twice" else torch.float32
    values = request.integers().to(arithmetic)
    if request.antiquant_offset is not None:
        values = values + _of_rows(request, request.antiquant_offset).to(arithmetic)
    return (values * _of_rows(request, request.antiquant_scale).to(arithmetic)).to(dtype)


def _of_rows(request: WeightQuantRequest, tensor: Tensor) -> Tensor:
    """Return what broadcasts over [K, N]: a row of a tensor for each row of the weight, where there are groups."""
    if request.groups < 2 or tensor.dim() < 2 or len(tensor) == 1:
        return tensor
    k = request.weight_sizes[0]
    return tensor.repeat_interleave(request.antiquant_group_size, 0)[:k]


def _quantised(values: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    words = scale if scale.dtype == torch.int64 else encoded(scale, offset)
    factor, summand = decoded(words)
    return saturated(values * factor + summand, INT8, torch.int8)
