"""``npu_geglu`` and ``npu_fast_gelu``, with the gradient of the latter.

Sources: op-plugin's documentation, checks and tests, the wheel's META rules, and CANN's ``ge_glu_v2`` kernel (ops-nn),
which widens to float32 and rounds both outputs once, each by itself. The formulas of fast gelu are those for A2 and A3;
that its kernel widens likewise is inferred.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode

_GEGLU = ArgumentChecks("npu_geglu", default=ErrorCode.WRAPPER)
_FAST = ArgumentChecks("npu_fast_gelu", default=ErrorCode.PARAMETER)
_FAST_BACKWARD = ArgumentChecks("npu_fast_gelu_backward", default=ErrorCode.PARAMETER)

_ERF, _TANH = 0, 1
_STEEPNESS = 1.702


def geglu(x: Tensor, /, dim: int, approximate: int, activate_left: bool) -> tuple[Tensor, Tensor]:
    """Return one half times the gelu of the other half, and that gelu.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32, rank 1 to 8.
    dim : int
        The axis that is halved, of even size.
    approximate : int
        0: by the error function. 1: by the hyperbolic tangent.
    activate_left : bool
        Whether the gelu is of the first half.

    Returns
    -------
    y, gelu : Tensor
        The dtype of x, half its size along the axis.

    Raises
    ------
    OperatorRejected
        Dtype, rank, axis or approximate is not one of the above.
    """
    axis = _halved_axis(x, dim)
    _GEGLU.dtype("input", x, *FLOATS)
    _GEGLU.choice("approximate", approximate, (_ERF, _TANH), ErrorCode.PARAMETER)
    left, right = x.float().tensor_split(2, axis)
    other, activated = (right, left) if activate_left else (left, right)
    gelu = torch.nn.functional.gelu(activated, approximate="tanh" if approximate == _TANH else "none")
    return (other * gelu).to(x.dtype), gelu.to(x.dtype)


def geglu_meta(x: Tensor, /, dim: int) -> tuple[Tensor, Tensor]:
    """Allocate both outputs; torch_npu's META checks rank and axis, as this does."""
    shape = list(x.shape)
    shape[_halved_axis(x, dim)] //= 2
    return x.new_empty(shape), x.new_empty(shape)


def _halved_axis(x: Tensor, dim: int) -> int:
    if not 1 <= x.dim() <= 8:
        raise _GEGLU.rejected("input", f"of rank {x.dim()}", "rank 1 to 8", words="dim num out of range [1, 8]")
    if not -x.dim() <= dim < x.dim():
        words = f"attribute [dim] out of range [-{x.dim()}, {x.dim() - 1}]"
        raise _GEGLU.rejected("dim", dim, f"{-x.dim()} to {x.dim() - 1}", words=words)
    _GEGLU.even("input", x, dim)
    return dim % x.dim()


def fast_gelu(x: Tensor, /) -> Tensor:
    """Return ``x / (1 + exp(-1.702 * x))``.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32, rank up to 8.

    Returns
    -------
    Tensor
        As x; computed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype or rank is not one of the above.
    """
    _check_fast(_FAST, x)
    wide = x.float()
    return (wide * (wide * _STEEPNESS).sigmoid()).to(x.dtype)


def fast_gelu_backward(grad: Tensor, x: Tensor, /) -> Tensor:
    """Return the gradient of :func:`fast_gelu` times that of its output.

    Parameters
    ----------
    grad, x : Tensor
        One shape and dtype: float16, bfloat16 or float32, rank up to 8.

    Returns
    -------
    Tensor
        As x; computed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one of the above.
    """
    _check_fast(_FAST_BACKWARD, x)
    _FAST_BACKWARD.same_dtype("grad", grad, "input", x)
    _FAST_BACKWARD.shape("grad", grad, x.shape, meaning="as input")
    wide = x.float()
    gate = (wide * _STEEPNESS).sigmoid()
    return (grad.float() * (gate + wide * _STEEPNESS * gate * (1 - gate))).to(x.dtype)


def _check_fast(check: ArgumentChecks, x: Tensor) -> None:
    check.dtype("input", x, *FLOATS)
    check.rank("input", x, range(9))


def fast_gelu_meta(x: Tensor, /) -> Tensor:
    """Allocate the output; as torch_npu's META, this checks nothing."""
    return x.new_empty(x.shape)


def fast_gelu_backward_meta(_grad: Tensor, x: Tensor, /) -> Tensor:
    """Allocate the output; as torch_npu's META, this checks nothing."""
    return x.new_empty(x.shape)
