"""The arithmetic of RMS norms: where float32 is rounded, operator by operator.

Sources: CANN's kernels ``rms_norm.h``, ``rms_norm_merge_n.h`` and ``rms_norm_single_row.h`` (ops-nn), and its
``add_rms_norm`` kernel with the golden of vllm-ascend's test_add_rms_norm_bias, which ran on hardware.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reciprocal_root(squares: Tensor, axes: int, epsilon: float, *, scale_first: bool) -> Tensor:
    """Return ``1 / sqrt(mean + epsilon)`` over the last axes.

    Parameters
    ----------
    squares : Tensor
        float32, x * x.
    axes : int
        How many of the last axes are averaged.
    epsilon : float
        Added to the mean.
    scale_first : bool
        Whether each square is multiplied by 1 / n before the sum (add_rms_norm), or the sum after it.

    Returns
    -------
    Tensor
        float32, the rank of the input, 1 in place of the averaged axes.
    """
    last = tuple(range(squares.dim() - axes, squares.dim()))
    count = squares.shape[squares.dim() - axes :].numel()
    factor = 1.0 / count if count else 0.0
    mean = (squares * factor).sum(last, keepdim=True) if scale_first else squares.sum(last, keepdim=True) * factor
    return 1.0 / (mean + epsilon).sqrt()


def times_gamma(normalised: Tensor, gamma: Tensor, dtype: torch.dtype, *, rounded_first: bool) -> Tensor:
    """Multiply by gamma and narrow to the output's dtype.

    Parameters
    ----------
    normalised : Tensor
        float32, x * rstd.
    gamma : Tensor
        In the output's dtype, or float32.
    dtype : torch.dtype
        Of the output.
    rounded_first : bool
        Whether x * rstd rounds to a 16-bit dtype before gamma; their product rounds once. With float32 gamma or output
        nothing is rounded before the end.

    Returns
    -------
    Tensor
        In the output's dtype.
    """
    if not rounded_first or torch.float32 in (dtype, gamma.dtype):
        return (normalised * gamma.float()).to(dtype)
    return (normalised.to(dtype).float() * gamma.float()).to(dtype)


def rstd_shape(x: Tensor, gamma: Tensor) -> list[int]:
    """Return the shape of rstd: that of x, with 1 in place of gamma's axes."""
    leading = x.dim() - gamma.dim()
    return [size if axis < leading else 1 for axis, size in enumerate(x.shape)]
