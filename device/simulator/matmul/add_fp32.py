"""``_npu_matmul_add_fp32``: a product is added to a float32 matrix, as gradients of weights are gathered.

Source: op-plugin, ``LinearAtb.cpp``: ATB's linear operation with its first matrix transposed, and ``enAccum``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode

if TYPE_CHECKING:
    from torch import Tensor

_CHECK = ArgumentChecks("_npu_matmul_add_fp32", default=ErrorCode.TILING)


def matmul_add_fp32(x: Tensor, weight: Tensor, C: Tensor) -> None:  # noqa: N803 - the operator's name
    """Add ``x`` transposed, times ``weight``, to a matrix; all sums are float32.

    Parameters
    ----------
    x, weight : Tensor
        float16 or bfloat16 [k, m] and [k, n], with any strides.
    C : Tensor
        float32 [m, n], contiguous. Written.

    Raises
    ------
    OperatorRejected
        Other dtypes or shapes.
    NotSimulated
        A ``C`` that is not contiguous: op-plugin hands a copy in and memory in another order out.
    """
    _CHECK.dtype("x", x, "float16", "bfloat16")
    _CHECK.same_dtype("weight", weight, "x", x)
    _CHECK.dtype("C", C, "float32")
    _CHECK.rank("x", x, 2, "[k, m]")
    _CHECK.shape("weight", weight, (x.shape[0], -1), meaning="the rows of x")
    _CHECK.shape("C", C, (x.shape[1], weight.shape[1]), meaning="the columns of x and weight")
    if not C.is_contiguous():
        raise _CHECK.not_simulated("C", f"with strides {list(C.stride())}", "contiguous")
    with torch.no_grad():
        C.add_(x.float().T @ weight.float())


def matmul_add_fp32_meta(x: Tensor, weight: Tensor, C: Tensor) -> None:  # noqa: N803
    """Return nothing."""
