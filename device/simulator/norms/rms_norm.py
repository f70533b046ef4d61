"""``npu_rms_norm`` and ``npu_gemma_rms_norm``.

Sources: the wheel's documentation of both, its META rules, and CANN's ``rms_norm`` kernels (ops-nn), which
serve both: gemma adds 1 to gamma in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.norms.rms import reciprocal_root, rstd_shape, times_gamma
from npudiff.device.simulator.profiles import active_profile

_RMS = ArgumentChecks("npu_rms_norm", default=ErrorCode.PARAMETER)
_GEMMA = ArgumentChecks("npu_gemma_rms_norm", default=ErrorCode.PARAMETER)
_MAX_RANK = 8


def rms_norm(x: Tensor, /, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return ``x * rstd * gamma`` and rstd.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32, rank 1 to 8.
    gamma : Tensor
        Shape of the last axes of x, over which is averaged; dtype of x, or float32.
    epsilon : float
        Added to the mean of squares.

    Returns
    -------
    y : Tensor
        Shape and dtype of x.
    rstd : Tensor
        float32, shape of x with 1 in place of gamma's axes.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one of the above.
    """
    check_norm(_RMS, "input", x, gamma)
    wide = x.float()
    rstd = reciprocal_root(wide * wide, gamma.dim(), epsilon, scale_first=False)
    rounded_first = active_profile().rms_norm_chain == "rounded_before_gamma"
    return times_gamma(wide * rstd, gamma, x.dtype, rounded_first=rounded_first), rstd


def gemma_rms_norm(x: Tensor, /, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return ``x * rstd * (1 + gamma)`` and rstd, rounded once.

    Parameters and outputs are those of :func:`rms_norm`, with gamma in the dtype of x and nothing empty.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one of the above.
    """
    check_norm(_GEMMA, "input", x, gamma)
    _GEMMA.same_dtype("gamma", gamma, "input", x)
    for argument, tensor in (("input", x), ("gamma", gamma)):
        _GEMMA.not_empty(argument, tensor)
    if active_profile().non_contiguous == "rejected":
        _GEMMA.contiguous(input=x, gamma=gamma)
    wide = x.float()
    rstd = reciprocal_root(wide * wide, gamma.dim(), epsilon, scale_first=False)
    return times_gamma(wide * rstd, gamma.float() + 1.0, x.dtype, rounded_first=False), rstd


def norm_meta(x: Tensor, /, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate both outputs; as torch_npu's META, this checks nothing.

    DOC of npu_gemma_rms_norm says that rstd has the dtype of input; META and the kernel say float32.
    """
    return x.new_empty(x.shape), x.new_empty(rstd_shape(x, gamma), dtype=torch.float32)


def check_norm(check: ArgumentChecks, argument: str, x: Tensor, gamma: Tensor) -> None:
    """Refuse a dtype or shape that no RMS norm takes; ``argument`` is the name of x.

    Raises
    ------
    OperatorRejected
        With aclnn's code for parameters.
    """
    check.dtype(argument, x, *FLOATS)
    check.dtype("gamma", gamma, *sorted({dtype_name(x), "float32"}))
    for name, tensor in ((argument, x), ("gamma", gamma)):
        check.rank(name, tensor, range(1, _MAX_RANK + 1))
    if gamma.dim() > x.dim() or gamma.shape != x.shape[x.dim() - gamma.dim() :]:
        given = f"of shape {list(gamma.shape)}"
        allowed = f"the last axes of {argument}, whose shape is {list(x.shape)}"
        raise check.rejected("gamma", given, allowed)
