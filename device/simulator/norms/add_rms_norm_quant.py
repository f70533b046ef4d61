"""``npu_add_rms_norm_quant``: a sum, its norm, and one or two int8 of it with scales that are given.

Sources: op-plugin's documentation and checks, the wheel's META rule, and CANN's ``add_rms_norm_quant`` (ops-nn: checks
of ``aclnnAddRmsNormQuantV2``, kernel for A2 and A3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.norms.rms import reciprocal_root
from npudiff.device.simulator.norms.rms_norm import check_norm
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.integers import INT8, saturated
from npudiff.device.simulator.quantisation.scalar_types import INT8 as INT8_TYPE

_CHECK = ArgumentChecks("npu_add_rms_norm_quant", default=ErrorCode.PARAMETER)


def add_rms_norm_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    zero_points1: Tensor | None,
    beta: Tensor | None,
    scales2: Tensor | None,
    zero_points2: Tensor | None,
    axis: int,
    epsilon: float,
    div_mode: bool,
    dst_type: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add two tensors, normalise the sum, and quantise it once or twice.

    Parameters
    ----------
    x1, x2 : Tensor
        One shape and dtype: float16 or bfloat16, rank 1 to 8.
    gamma, beta : Tensor
        Shape of their last axes, over which is averaged; their dtype. beta is optional.
    scales1, scales2 : Tensor
        Shape of gamma; float32, or bfloat16 where x1 is. scales2 is optional.
    zero_points1, zero_points2 : Tensor, optional
        Shape of gamma; int32, or bfloat16 where x1 is. The second has no effect without scales2.
    axis : int
        -1.
    epsilon : float
        Added to the mean of squares.
    div_mode : bool
        Whether scales divide; otherwise they multiply.
    dst_type : int, optional
        ScalarType of the outputs: int8.

    Returns
    -------
    y1, y2 : Tensor
        int8, the shape of x1: ``round(y / scales + zero_points)``. y2 is memory that nobody wrote without scales2.
    x : Tensor
        The sum, in the dtype of x1.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or axis is not one of the above.
    NotSimulated
        Another dst_type: the others are of Ascend 950.
    """
    if axis != -1:
        raise _CHECK.rejected("axis", axis, "-1", ErrorCode.WRAPPER, "axis only support -1.")
    if dst_type not in (None, INT8_TYPE):
        raise _CHECK.not_simulated("dst_type", dst_type, f"None or {INT8_TYPE} (torch.int8)")
    _check(x1, x2, gamma, beta)
    for number, scales, zero_points in ((1, scales1, zero_points1), (2, scales2, zero_points2)):
        _check_scales(number, scales, zero_points, gamma)
    y, x = _normalised(x1, x2, gamma, beta, epsilon)
    y1 = _quantised(y, scales1, zero_points1, divides=div_mode)
    if scales2 is None:
        return y1, unwritten(x1.shape, torch.int8), x
    return y1, _quantised(y, scales2, zero_points2, divides=div_mode), x


def add_rms_norm_quant_meta(x1: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs; as torch_npu's META, this checks the axis only."""
    if axis != -1:
        raise _CHECK.rejected("axis", axis, "-1", ErrorCode.WRAPPER, f"axis should be -1, but got {axis}.")
    return x1.new_empty(x1.shape, dtype=torch.int8), x1.new_empty(x1.shape, dtype=torch.int8), x1.new_empty(x1.shape)


def _check(x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor | None) -> None:
    _CHECK.dtype("x1", x1, "float16", "bfloat16")
    _CHECK.same_dtype("gamma", gamma, "x1", x1)
    check_norm(_CHECK, "x1", x1, gamma)
    _CHECK.same_dtype("x2", x2, "x1", x1)
    _CHECK.shape("x2", x2, x1.shape, meaning="as x1")
    if beta is not None:
        _CHECK.same_dtype("beta", beta, "x1", x1)
        _CHECK.shape("beta", beta, gamma.shape, meaning="as gamma")


def _check_scales(number: int, scales: Tensor | None, zero_points: Tensor | None, gamma: Tensor) -> None:
    """DOC pairs float16 with float32 and int32, and bfloat16 with itself."""
    narrow = dtype_name(gamma) == "bfloat16"
    for name, tensor, dtype in (("scales", scales, "float32"), ("zero_points", zero_points, "int32")):
        if tensor is not None:
            _CHECK.dtype(f"{name}{number}", tensor, "bfloat16" if narrow else dtype)
            _CHECK.shape(f"{name}{number}", tensor, gamma.shape, meaning="as gamma")


def _normalised(x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the norm in float32, and the sum as it is stored."""
    exact = x1.float() + x2.float()
    x = exact.to(x1.dtype)
    as_kernel = active_profile().add_rms_norm_quant_chain == "kernel"
    stored_first = as_kernel and (x1.dtype == torch.float16 or beta is not None)
    wide = x.float() if stored_first else exact
    y = wide * reciprocal_root(wide * wide, gamma.dim(), epsilon, scale_first=True)
    y = (y.half() * gamma).float() if as_kernel and x1.dtype == torch.float16 else y * gamma.float()
    return y if beta is None else y + beta.float(), x


def _quantised(y: Tensor, scales: Tensor, zero_points: Tensor | None, *, divides: bool) -> Tensor:
    values = y / scales.float() if divides else y * scales.float()
    return saturated(values if zero_points is None else values + zero_points.float(), INT8, torch.int8)
