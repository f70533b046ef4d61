"""``npu_quant_matmul``: a product of integers, with scales.

Sources: the wheel's documentation of the operator and its META rule, op-plugin's code and the golden of its test.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.hardware_scales import decoded, encoded
from npudiff.device.simulator.quantisation.integers import INT8, saturated
from npudiff.device.simulator.quantisation.products import integer_product
from npudiff.device.simulator.quantisation.quant_matmul_request import (
    NAME,
    QuantMatmulRequest,
    check_group_sizes,
    check_request,
    output_type,
)
from npudiff.device.simulator.quantisation.requirements import Requirements

_require = Requirements(NAME)
_INT32 = (-(2**31), 2**31 - 1)


def quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    scale_dtype: int | None = None,
    group_sizes: Sequence[int] | None = None,
    y_scale: Tensor | None = None,
) -> Tensor:
    """Return ``(x1 @ x2 + bias) * scale``, with more factors and summands as the dtypes allow.

    Parameters
    ----------
    x1, x2 : Tensor
        [..., m, k] and [..., k, n], int8, rank 2 to 6, batch axes broadcast. Or int32, with eight integers of 4 bits
        in a word: [..., m, k / 8], and [k, n / 8] or a transposed [n, k / 8].
    scale : Tensor
        [1] or [n]: float32, bfloat16, or int64 of npu_trans_quant_param. Of float32 only 19 bits count where output is
        int8 or float16 and there is no pertoken_scale: op-plugin makes such words of it.
    offset : Tensor, optional
        float32, [1] or [n]: added to what has been scaled, as an integer of 9 bits; for output int8.
    pertoken_scale : Tensor, optional
        float32, [m].
    bias : Tensor, optional
        [n], or [batch, 1, n] with an output of three axes. int32 is added to the product, floats at the end.
    output_dtype : int, optional
        ScalarType: int8, which is the default, float16, bfloat16 or int32.
    x1_dtype, x2_dtype, pertoken_scale_dtype, scale_dtype, y_scale : optional
        Of Ascend 950.
    group_sizes : sequence of int, optional
        Zeros.

    Returns
    -------
    Tensor
        [..., m, n]. Scales and float biases are applied in float32, in this order: scale, pertoken_scale, offset or
        bias, and one rounding.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or format is not one of the above, or they do not go together.
    NotSimulated
        int8 with words of int4; a scale per group; an option of Ascend 950; words of scales beside an offset.
    """
    options = {"x1_dtype": x1_dtype, "x2_dtype": x2_dtype, "pertoken_scale_dtype": pertoken_scale_dtype}
    for argument, given in (options | {"scale_dtype": scale_dtype, "y_scale": y_scale}).items():
        if given is not None:
            shown = "given" if isinstance(given, Tensor) else given
            _require.missing(argument, shown, "None; others are for dtypes of Ascend 950")
    request = QuantMatmulRequest(x1, x2, scale, offset, pertoken_scale, bias, output_type(output_dtype))
    check_group_sizes(group_sizes)
    check_request(request)
    accumulators = integer_product(*request.integers(), largest=64 if request.words else 2**14)
    if bias is not None and bias.dtype == torch.int32:
        accumulators = accumulators + bias
    return _scaled(request, accumulators.to(torch.int32))


def quant_matmul_meta(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    x1_dtype: int | None = None,  # noqa: ARG001 - the dispatcher passes what the schema has
    x2_dtype: int | None = None,  # noqa: ARG001
    pertoken_scale_dtype: int | None = None,  # noqa: ARG001
    scale_dtype: int | None = None,  # noqa: ARG001
    group_sizes: Sequence[int] | None = None,  # noqa: ARG001
    y_scale: Tensor | None = None,  # noqa: ARG001
) -> Tensor:
    """Allocate the output; of torch_npu's checks this has those of ranks, batches and the dtype of the output."""
    request = QuantMatmulRequest(x1, x2, scale, offset, pertoken_scale, bias, output_type(output_dtype))
    return x1.new_empty(request.shape(), dtype=request.output)


def _scaled(request: QuantMatmulRequest, accumulators: Tensor) -> Tensor:
    if request.output == torch.int32 and active_profile().quant_matmul_int32 == "accumulators":
        return accumulators
    scale, offset = _factors(request)
    values = accumulators.float() * scale
    if request.pertoken_scale is not None:
        values = values * request.pertoken_scale.view(-1, 1)
    if request.output == torch.int32:
        return saturated(values.double(), _INT32, torch.int32)
    if request.output == torch.int8:
        return saturated(values + offset, INT8, torch.int8)
    if request.bias is not None and request.bias.dtype != torch.int32:
        values = values + request.bias.float()
    return values.to(request.output)


def _factors(request: QuantMatmulRequest) -> tuple[Tensor, Tensor]:
    """Return scale and offset in float32, as the matrix unit sees them."""
    if request.scale.dtype == torch.int64:
        return decoded(request.scale)
    if request.output in (torch.int8, torch.float16) and request.pertoken_scale is None:
        # Apart, since the shapes may be [1] and [n] in either order.
        scale, _ = decoded(encoded(request.scale, None))
        if request.offset is None:
            return scale, torch.zeros(1)
        return scale, decoded(encoded(torch.zeros_like(request.offset), request.offset))[1]
    return request.scale.float(), torch.zeros(1)
