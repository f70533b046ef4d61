"""``npu_swiglu``, the swish of the first half times the second half, and its gradient.

Sources: the wheel's documentation of the operator and its META rule. No host check is known; what is refused here is
what the documentation excludes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.activation.gates import swish_gate
from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode

_CHECK = ArgumentChecks("npu_swiglu", default=ErrorCode.PARAMETER)
_BACKWARD = ArgumentChecks("npu_swiglu_backward", default=ErrorCode.PARAMETER)


def swiglu(x: Tensor, /, dim: int = -1) -> Tensor:
    """Return ``a * sigmoid(a) * b``, a and b the halves of x.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32, rank 1 to 8.
    dim : int
        The axis that is halved, of even size.

    Returns
    -------
    Tensor
        The dtype of x, half its size along the axis. Computed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype, rank or axis is not one of the above.
    """
    _CHECK.dtype("input", x, *FLOATS)
    _CHECK.rank("input", x, range(1, 9))
    axis = _CHECK.axis("dim", dim, x.dim())
    _CHECK.even("input", x, axis)
    gate, up = x.float().tensor_split(2, axis)
    return swish_gate(gate, up).to(x.dtype)


def swiglu_backward(grad: Tensor, x: Tensor, /, dim: int) -> Tensor:
    """Return the gradient of :func:`swiglu` times that of its output.

    Parameters
    ----------
    grad : Tensor
        Half the size of x along the axis; dtype of x.
    x, dim
        As swiglu takes them.

    Returns
    -------
    Tensor
        As x. Computed in float32 and rounded once, as CANN's ``swi_glu_grad`` kernel (ops-nn) does.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or axis is not one of the above.
    """
    _BACKWARD.dtype("input", x, *FLOATS)
    _BACKWARD.rank("input", x, range(1, 9))
    axis = _BACKWARD.axis("dim", dim, x.dim())
    _BACKWARD.even("input", x, axis)
    _BACKWARD.same_dtype("grad_output", grad, "input", x)
    _BACKWARD.shape("grad_output", grad, half_of(x, axis).shape, meaning="half of input")
    gate, up = x.float().tensor_split(2, axis)
    swish, slope = gate.sigmoid(), grad.float()
    by_gate = (swish * (1 - swish) * gate + swish) * slope * up
    return torch.cat((by_gate, swish * gate * slope), axis).to(x.dtype)


def swiglu_backward_meta(_grad: Tensor, x: Tensor, /) -> Tensor:
    """Allocate the output; as torch_npu's META, this checks nothing."""
    return x.new_empty(x.shape)


def swiglu_meta(x: Tensor, /, dim: int) -> Tensor:
    """Allocate the output; as torch_npu's META, this checks nothing."""
    return half_of(x, dim)


def half_of(x: Tensor, dim: int) -> Tensor:
    """Allocate a tensor of half a tensor's size along an axis, in its dtype."""
    shape = list(x.shape)
    shape[dim] //= 2
    return x.new_empty(shape)
