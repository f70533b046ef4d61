"""``npu_add_rms_norm`` and its in-place version 2.

The sum is stored in the dtype of the inputs, and it is the stored sum that is normalised. Where the chain
rounds is told in ``rms``: float16 adds and multiplies in float16, bfloat16 in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.norms.rms import reciprocal_root, rstd_shape, times_gamma
from npudiff.device.simulator.norms.rms_norm import check_norm

_ADD = ArgumentChecks("npu_add_rms_norm", default=ErrorCode.PARAMETER)
_V2 = ArgumentChecks("npu_add_rms_norm_v2", default=ErrorCode.PARAMETER)
_V2_FUNCTIONAL = ArgumentChecks("npu_add_rms_norm_v2_functional", default=ErrorCode.PARAMETER)


def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Add two tensors and normalise the sum.

    Parameters
    ----------
    x1, x2 : Tensor
        One shape and dtype: float16, bfloat16 or float32, rank 1 to 8.
    gamma : Tensor
        Shape of their last axes, over which is averaged; their dtype, or float32.
    epsilon : float
        Added to the mean of squares.

    Returns
    -------
    y : Tensor
        The normalised sum, shape and dtype of x1.
    rstd : Tensor
        float32, shape of x1 with 1 in place of gamma's axes.
    x : Tensor
        The sum, rounded to the dtype of x1.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one of the above.
    """
    return _add_and_normalise(_ADD, x1, x2, gamma, epsilon)


def add_rms_norm_v2(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Write the normalised sum into x1 and the sum into x2, and return rstd.

    Parameters are those of :func:`add_rms_norm`.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one that is allowed.
    UndefinedBehaviour
        x1 and x2 begin at one address: which of the two outputs remains is not said.
    """
    if x1.numel() and x1.data_ptr() == x2.data_ptr():
        raise UndefinedBehaviour(f"{_V2.operator}: x1 and x2 share memory, and each is to receive an output")
    y, rstd, x = _add_and_normalise(_V2, x1, x2, gamma, epsilon)
    x1.copy_(y)
    x2.copy_(x)
    return rstd


def add_rms_norm_v2_functional(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rstd, the normalised sum and the sum, in this order, and leave the inputs alone.

    Parameters are those of :func:`add_rms_norm`.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one that is allowed.
    """
    y, rstd, x = _add_and_normalise(_V2_FUNCTIONAL, x1, x2, gamma, epsilon)
    return rstd, y, x


def _add_and_normalise(
    check: ArgumentChecks, x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    check_norm(check, "x1", x1, gamma)
    check.same_dtype("x2", x2, "x1", x1)
    check.shape("x2", x2, x1.shape, meaning="as x1")
    # A float32 sum of two 16-bit numbers, rounded, is their correctly rounded 16-bit sum.
    x = (x1.float() + x2.float()).to(x1.dtype)
    wide = x.float()
    rstd = reciprocal_root(wide * wide, gamma.dim(), epsilon, scale_first=True)
    return times_gamma(wide * rstd, gamma, x.dtype, rounded_first=True), rstd, x


def add_rms_norm_meta(x1: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs; as torch_npu's META, this checks nothing."""
    return x1.new_empty(x1.shape), add_rms_norm_v2_meta(x1, gamma), x1.new_empty(x1.shape)


def add_rms_norm_v2_meta(x1: Tensor, gamma: Tensor) -> Tensor:
    """Allocate rstd; as torch_npu's META, this checks nothing."""
    return x1.new_empty(rstd_shape(x1, gamma), dtype=torch.float32)


def add_rms_norm_v2_functional_meta(x1: Tensor, x2: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs; as torch_npu's META, this checks nothing."""
    return add_rms_norm_v2_meta(x1, gamma), x1.new_empty(x1.shape), x2.new_empty(x2.shape)
