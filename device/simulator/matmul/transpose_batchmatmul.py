"""``npu_transpose_batchmatmul``: products of matrices whose batch is the second axis, before or after.

Sources: op-plugin's documentation and code, the wheel's META rule, whose words the checks have, and CANN's checks of
``aclnnTransposeBatchMatMul`` (ops-nn) for A2 and A3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks, dtype_name
from npudiff.device.simulator.cache.formats import BASE_FORMATS, Format, format_of
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.matmul.permutations import (
    AS_IS,
    BATCH_SECOND,
    LAST_TWO_SWAPPED,
    Orders,
    checked,
    output_shape,
    split_batch,
)
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.hardware_scales import decoded
from npudiff.device.simulator.quantisation.integers import INT8, saturated

_CHECK = ArgumentChecks("npu_transpose_batchmatmul", default=ErrorCode.PARAMETER)
_SIZE_END = 65536


@dataclass(frozen=True)
class TransposeRequest:
    """One call, with the names of the schema."""

    input: Tensor
    """[B, M, K], or [M, B, K] with perm_x1 [1, 0, 2]; float16, bfloat16 or float32."""
    weight: Tensor
    """[B, K, N], or [B, N, K] with perm_x2 [0, 2, 1]; dtype of input; in ND or FRACTAL_NZ."""
    bias: Tensor | None
    """None."""
    scale: Tensor | None
    """int64 of npu_trans_quant_param, [B * N]: the output is int8. With float16, and batch_split_factor 1."""
    perm_x1: Sequence[int] | None
    perm_x2: Sequence[int] | None
    perm_y: Sequence[int] | None
    """[1, 0, 2]."""
    batch_split_factor: int | None
    """Divides B."""

    def orders(self) -> Orders:
        """Return the orders of axes.

        Raises
        ------
        OperatorRejected
            An order that is not allowed.
        """
        return Orders(
            checked(_CHECK, "perm_x1", self.perm_x1, AS_IS, BATCH_SECOND),
            checked(_CHECK, "perm_x2", self.perm_x2, AS_IS, LAST_TWO_SWAPPED),
            checked(_CHECK, "perm_y", self.perm_y, BATCH_SECOND),
        )

    @property
    def factor(self) -> int:
        """Into how many parts the batch is split."""
        return 1 if self.batch_split_factor is None else self.batch_split_factor


def transpose_batchmatmul(request: TransposeRequest) -> Tensor:
    """Multiply, and let the batch be the second axis of the result.

    Returns
    -------
    Tensor
        [M, B, N] in the dtype of input; [factor, M, B * N / factor] with a batch_split_factor above 1. With scale int8,
        [M, 1, B * N]. Summed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape, order of axes or factor is not one of the above.
    """
    _check_meta(request)
    orders = request.orders()
    _check(request, orders)
    left, right = orders.operands(request.input, request.weight)
    y = (left.float() @ right.float()).permute(orders.y)
    if request.scale is None:
        return split_batch(y, request.factor).to(request.input.dtype).contiguous()
    return _integers(y.reshape(y.shape[0], 1, -1) * decoded(request.scale)[0])


def transpose_batchmatmul_meta(request: TransposeRequest) -> Tensor:
    """Allocate the output, after torch_npu's checks of dtypes, orders and bias."""
    _check_meta(request)
    sizes = request.orders().sizes(request.input, request.weight)
    shape, dtype = output_shape(sizes, request.factor), request.input.dtype
    if request.scale is not None:
        dtype = torch.int8
        shape = (sizes[1], 1, sizes[0] * sizes[3]) if request.factor <= 1 else shape
    return request.input.new_empty(shape, dtype=dtype)


def _integers(values: Tensor) -> Tensor:
    how = active_profile().transpose_batchmatmul_int8
    return saturated(values.trunc(), INT8, torch.int8) if how == "cut" else saturated(values, INT8, torch.int8, how)


def _check_meta(request: TransposeRequest) -> None:
    request.orders()
    for argument in ("input", "weight"):
        tensor = getattr(request, argument)
        if dtype_name(tensor) not in FLOATS:
            words = f"{argument}'s type supported for float16, float32 and bfloat16, but now is {tensor.dtype}"
            raise _CHECK.rejected(argument, dtype_name(tensor), " or ".join(FLOATS), ErrorCode.WRAPPER, words)
    if request.bias is not None:
        words = "The bias is not supported in TransposeBatchMatMul"
        raise _CHECK.rejected("bias", "given", "None", ErrorCode.WRAPPER, words)


def _check(request: TransposeRequest, orders: Orders) -> None:
    for argument, tensor in (("input", request.input), ("weight", request.weight)):
        _CHECK.rank(argument, tensor, 3)
        _CHECK.not_empty(argument, tensor)
    _CHECK.same_dtype("weight", request.weight, "input", request.input)
    formats = BASE_FORMATS | {Format.NCL, Format.FRACTAL_NZ}
    if (storage := format_of(request.weight)) not in formats:
        raise _CHECK.rejected("weight", f"in {storage.name}", "a base format or FRACTAL_NZ")
    batch, _, k, n = orders.sizes(request.input, request.weight)
    shape = (batch, k, -1) if orders.x2 == AS_IS else (batch, -1, k)
    _CHECK.shape("weight", request.weight, shape, meaning="B and K of input")
    factor = request.factor
    if factor < 1 or batch % factor:
        raise _CHECK.rejected("batch_split_factor", factor, f"what divides B, {batch}")
    _check_scale(request, batch * n)
    _check_sizes(request, orders)


def _check_scale(request: TransposeRequest, count: int) -> None:
    if request.scale is None:
        return
    _CHECK.dtype("scale", request.scale, "int64")
    _CHECK.dtype("input", request.input, "float16")
    _CHECK.shape("scale", request.scale, (count,), meaning="[B * N]")
    if count >= _SIZE_END:
        raise _CHECK.rejected("scale", f"of shape {list(request.scale.shape)}", f"less than {_SIZE_END} elements")
    if request.factor != 1:
        raise _CHECK.rejected("batch_split_factor", request.factor, "1 with scale")


def _check_sizes(request: TransposeRequest, orders: Orders) -> None:
    """Refuse what ACLNN refuses on A2 and A3: large axes, and what does not go with them or a transposed weight."""
    batch, _, k, n = orders.sizes(request.input, request.weight)
    given = f"of shape {list(request.input.shape)}"
    plain = request.scale is None and request.factor == 1
    if max(batch, n) >= _SIZE_END:
        raise _CHECK.rejected("weight", f"of shape {list(request.weight.shape)}", f"B and N below {_SIZE_END}")
    if orders.x1 == AS_IS and k >= _SIZE_END:
        raise _CHECK.rejected("input", given, f"K below {_SIZE_END} with perm_x1 [0, 1, 2]")
    if orders.x1 == BATCH_SECOND and batch * k >= _SIZE_END and not plain:
        raise _CHECK.rejected("input", given, f"B * K below {_SIZE_END} with scale or batch_split_factor")
    if orders.x2 == LAST_TWO_SWAPPED and not (plain and orders.x1 == BATCH_SECOND):
        allowed = "[0, 1, 2] with scale, batch_split_factor or perm_x1 [0, 1, 2]"
        raise _CHECK.rejected("perm_x2", list(LAST_TWO_SWAPPED), allowed)
