"""``npu_gelu``, ``npu_gelu_mul``, ``npu_silu`` and ``npu_mish``, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode

_MODES = ("none", "tanh")
_MODE_WORDS = "NPU error, approximate argument must be either none or tanh."
_MOST_GATED, _MOST_ROWS = 1024, 200_000


def gelu(x: Tensor, /, approximate: str) -> Tensor:
    """Return the gelu of x, by the error function (``none``) or by the hyperbolic tangent (``tanh``).

    x is float16, bfloat16 or float32, of rank up to 8, and so is the result.

    Raises
    ------
    OperatorRejected
        Dtype, rank or approximate is not one of the above.
    """
    check = _checked("npu_gelu", x, range(9))
    check.choice("approximate", approximate, _MODES, ErrorCode.WRAPPER, _MODE_WORDS)
    return functional.gelu(x.float(), approximate=approximate).to(x.dtype)


def gelu_backward(grad: Tensor, x: Tensor, /, approximate: str) -> Tensor:
    """Return the gradient of :func:`gelu`, broadcast to the shape of both.

    Raises
    ------
    OperatorRejected
        Dtype, rank or approximate is not one of those of :func:`gelu`.
    """
    check = _checked("npu_gelu_backward", x, range(9))
    check.choice("approximate", approximate, _MODES, ErrorCode.WRAPPER, _MODE_WORDS)
    wide = x.float() + torch.zeros_like(grad, dtype=torch.float32)
    result: Tensor = torch.ops.aten.gelu_backward(grad.float().expand_as(wide), wide, approximate=approximate)
    return result.to(torch.result_type(grad, x))


def gelu_mul(x: Tensor, /, approximate: str) -> Tensor:
    """Return the gelu of the first half of the last axis times the second half.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32, rank 2 to 8, with an even last axis of up to 1,024 and up to 200,000 rows.
    approximate : str
        As in :func:`gelu`.

    Returns
    -------
    Tensor
        As x, with half its last axis; computed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype, shape or approximate is not one of the above.
    """
    check = _checked("npu_gelu_mul", x, range(2, 9))
    check.choice("approximate", approximate, _MODES, ErrorCode.WRAPPER, _MODE_WORDS)
    check.even("input", x, x.dim() - 1)
    check.between("input", x.shape[-1], 2, _MOST_GATED)
    check.between("input", x[..., 0].numel(), 0, _MOST_ROWS)
    first, second = x.float().chunk(2, -1)
    return (functional.gelu(first, approximate=approximate) * second).to(x.dtype)


def silu(x: Tensor, /) -> Tensor:
    """Return x times its sigmoid; float16, bfloat16 or float32.

    Raises
    ------
    OperatorRejected
        The dtype is another.
    """
    _checked("npu_silu", x, range(9))
    return functional.silu(x.float()).to(x.dtype)


def silu_in_place(x: Tensor, /) -> Tensor:
    """Write :func:`silu` into x, and return it."""
    return x.copy_(silu(x))


def silu_backward(grad: Tensor, x: Tensor, _silu: Tensor, /) -> Tensor:
    """Return the gradient of :func:`silu`; its result, which the schema has too, is not needed."""
    _checked("npu_silu_backward", x, range(9))
    return torch.ops.aten.silu_backward(grad.float(), x.float()).to(grad.dtype)  # type: ignore[no-any-return]


def mish(x: Tensor, /) -> Tensor:
    """Return x times the hyperbolic tangent of its softplus; float16, bfloat16 or float32.

    Raises
    ------
    OperatorRejected
        The dtype is another.
    """
    _checked("npu_mish", x, range(9))
    return functional.mish(x.float()).to(x.dtype)


def mish_backward(grad: Tensor, x: Tensor, /) -> Tensor:
    """Return the gradient of :func:`mish`."""
    _checked("npu_mish_backward", x, range(9))
    return torch.ops.aten.mish_backward(grad.float(), x.float()).to(grad.dtype)  # type: ignore[no-any-return]


def like(x: Tensor, /) -> Tensor:
    """Allocate an output like the first argument."""
    return x.new_empty(x.shape)


def itself(x: Tensor, /) -> Tensor:
    """Return the first argument, which is written."""
    return x


def broadcast_like(grad: Tensor, x: Tensor, /) -> Tensor:
    """Allocate an output of the shape that both have together."""
    return torch.empty_like(grad + x)


def half_like(x: Tensor, /) -> Tensor:
    """Allocate an output of half the last axis."""
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _checked(operator: str, x: Tensor, ranks: range) -> ArgumentChecks:
    check = ArgumentChecks(operator, default=ErrorCode.PARAMETER)
    check.dtype("input", x, *FLOATS)
    check.rank("input", x, ranks)
    return check
