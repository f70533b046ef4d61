"""``npu_rms_norm_backward``: by which torch_npu differentiates ``npu_rms_norm``.

Sources: op-plugin's code, the wheel's META rule, and CANN's documentation of ``aclnnRmsNormGrad`` (ops-nn). That the
kernel is float32 from the beginning and rounds once is inferred.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.norms.rms import rstd_shape
from npudiff.device.simulator.norms.rms_norm import check_norm

_CHECK = ArgumentChecks("npu_rms_norm_backward", default=ErrorCode.PARAMETER)


def rms_norm_backward(dy: Tensor, x: Tensor, gamma: Tensor, rstd: Tensor, /) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of gamma.

    Parameters
    ----------
    dy, x : Tensor
        One shape and dtype: float16, bfloat16 or float32, rank 1 to 8.
    gamma : Tensor
        Shape of the last axes of x; its dtype, or float32.
    rstd : Tensor
        float32, shape of x with 1 in place of gamma's axes.

    Returns
    -------
    dx : Tensor
        As x.
    dgamma : Tensor
        float32, shape of gamma.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one of the above.
    """
    check_norm(_CHECK, "input", x, gamma)
    _CHECK.same_dtype("dy", dy, "input", x)
    _CHECK.shape("dy", dy, x.shape, meaning="as input")
    _CHECK.dtype("rstd", rstd, "float32")
    _CHECK.shape("rstd", rstd, rstd_shape(x, gamma), meaning="of input, with 1 for the axes of gamma")
    normalised, grad = x.float() * rstd, dy.float()
    scaled = grad * gamma.float()
    averaged = tuple(range(x.dim() - gamma.dim(), x.dim()))
    mean = (scaled * normalised).mean(averaged, keepdim=True)
    leading = tuple(range(x.dim() - gamma.dim()))
    weighted = grad * normalised
    return ((scaled - normalised * mean) * rstd).to(x.dtype), weighted.sum(leading) if leading else weighted


def rms_norm_backward_meta(_dy: Tensor, x: Tensor, gamma: Tensor, /) -> tuple[Tensor, Tensor]:
    """Allocate both outputs; as torch_npu's META, this checks nothing."""
    return x.new_empty(x.shape), gamma.new_empty(gamma.shape, dtype=torch.float32)
