"""Products, layer norm, sums for a batch norm, cross entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode

_CHANNEL = 1


def linear(x: Tensor, /, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x times the transposed weight, and bias.

    Parameters
    ----------
    x, weight : Tensor
        [M, K] and [N, K], of one dtype: float16, bfloat16 or float32. The formats of x and weight may be FRACTAL_NZ.
    bias : Tensor, optional
        [N], of a floating dtype.

    Returns
    -------
    Tensor
        [M, N], the dtype of x; summed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype or shape is not one of the above.
    """
    check = _check("npu_linear")
    _check_product(check, x, weight.mT, "weight")
    if bias is not None:
        check.dtype("bias", bias, *FLOATS)
        check.shape("bias", bias, (len(weight),), meaning="[N]")
    return functional.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def linear_meta(x: Tensor, /, weight: Tensor) -> Tensor:
    """Allocate the output."""
    return x.new_empty((x.shape[0], weight.shape[0]))


def linear_backward(grad: Tensor, x: Tensor, weight: Tensor, /) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight."""
    wide = grad.float()
    return (wide @ weight.float()).to(grad.dtype), (wide.mT @ x.float()).to(grad.dtype)


def linear_backward_meta(grad: Tensor, x: Tensor, weight: Tensor, /) -> tuple[Tensor, Tensor]:
    """Allocate the outputs."""
    return grad.new_empty(x.shape), grad.new_empty(weight.shape)


def batch_product(x: Tensor, /, mat2: Tensor, output_sizes: Sequence[int]) -> Tensor:
    """Return the products of matrices, whose batches broadcast.

    Parameters
    ----------
    x, mat2 : Tensor
        [..., M, K] and [..., K, N], of one dtype: float16, bfloat16 or float32, in any format.
    output_sizes : sequence of int
        Empty.

    Returns
    -------
    Tensor
        [..., M, N], the dtype of x; summed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype or shape is not one of the above.
    NotSimulated
        output_sizes asks for sums over batches.
    """
    check = _check("npu_bmmV2")
    if output_sizes:
        raise check.not_simulated("output_sizes", list(output_sizes), "[]")
    _check_product(check, x, mat2, "mat2")
    return (x.float() @ mat2.float()).to(x.dtype)


def batch_product_meta(x: Tensor, /, mat2: Tensor) -> Tensor:
    """Allocate the output."""
    return x.new_empty((x @ mat2.to(x.dtype)).shape)


def gradient_of_first(grad: Tensor, _first: Tensor, second: Tensor, size: Sequence[int], /) -> Tensor:
    """Return the gradient of the first factor of :func:`batch_product`, summed to its size."""
    return (grad.float() @ second.float().mT).sum_to_size(list(size)).to(grad.dtype)


def gradient_of_second(grad: Tensor, first: Tensor, _second: Tensor, size: Sequence[int], /) -> Tensor:
    """Return the gradient of the second factor of :func:`batch_product`, summed to its size."""
    return (first.float().mT @ grad.float()).sum_to_size(list(size)).to(grad.dtype)


def gradient_meta(grad: Tensor, _first: Tensor, _second: Tensor, size: Sequence[int], /) -> Tensor:
    """Allocate the output."""
    return grad.new_empty(list(size))


def layer_norm_eval(
    x: Tensor, /, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return x less its mean, over its deviation, times weight, and bias; over its last axes.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32.
    normalized_shape : sequence of int
        The last axes of x.
    weight, bias : Tensor, optional
        Of that shape; ones and zeros without them.
    eps : float
        Added to the variance.

    Returns
    -------
    Tensor
        As x; computed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype or shape is not one of the above.
    """
    check = _check("npu_layer_norm_eval")
    check.dtype("input", x, *FLOATS)
    shape = tuple(normalized_shape)
    if not shape or tuple(x.shape[-len(shape) :]) != shape:
        raise check.rejected("normalized_shape", list(shape), f"the last axes of {list(x.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            check.shape(name, tensor, shape, meaning="normalized_shape")
    wide_weight, wide_bias = (None if one is None else one.float() for one in (weight, bias))
    return functional.layer_norm(x.float(), shape, wide_weight, wide_bias, eps).to(x.dtype)


def batch_norm_reduce(x: Tensor, /) -> tuple[Tensor, Tensor]:
    """Return the sums of elements and of their squares, per channel.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32 [N, C, H, W].

    Returns
    -------
    tuple of Tensor
        float32 [C] each; summed in float32.

    Raises
    ------
    OperatorRejected
        Dtype or rank is not one of the above.
    """
    check = _check("batch_norm_reduce")
    if x.dim() <= 1:
        words = "The dim input tensor [self] must more than 1."
        raise check.rejected("input", f"of rank {x.dim()}", "rank 4", ErrorCode.WRAPPER, words)
    check.dtype("input", x, *FLOATS)
    check.rank("input", x, 4, "[N, C, H, W]")
    wide, others = x.float(), [axis for axis in range(x.dim()) if axis != _CHANNEL]
    return wide.sum(others), wide.square().sum(others)


def batch_norm_reduce_meta(x: Tensor, /) -> tuple[Tensor, Tensor]:
    """Allocate both sums."""
    sums, squares = (x.new_empty(x.shape[_CHANNEL], dtype=torch.float32) for _ in range(2))
    return sums, squares


def layer_norm_eval_meta(x: Tensor, /) -> Tensor:
    """Allocate the output."""
    return x.new_empty(x.shape)


def cross_entropy(x: Tensor, /, labels: Tensor) -> Tensor:
    """Return minus the sum of labels times the logarithms of the softmax, of each row.

    Parameters
    ----------
    x, labels : Tensor
        [N, C], of one dtype: float16, bfloat16 or float32.

    Returns
    -------
    Tensor
        [N], the dtype of x; computed in float32 and rounded once.

    Raises
    ------
    OperatorRejected
        Dtype or shape is not one of the above.
    """
    check = _check("npu_softmax_cross_entropy_with_logits")
    check.dtype("input", x, *FLOATS)
    check.rank("input", x, 2, "[N, C]")
    check.same_dtype("labels", labels, "input", x)
    check.shape("labels", labels, x.shape, meaning="as input")
    return -(labels.float() * x.float().log_softmax(-1)).sum(-1).to(x.dtype)


def cross_entropy_meta(x: Tensor, /) -> Tensor:
    """Allocate the output."""
    return x.new_empty(x.shape[:1])


def _check(operator: str) -> ArgumentChecks:
    return ArgumentChecks(operator, default=ErrorCode.PARAMETER)


def _check_product(check: ArgumentChecks, first: Tensor, second: Tensor, name: str) -> None:
    check.dtype("input", first, *FLOATS)
    check.same_dtype(name, second, "input", first)
    if first.dim() < 2 or second.dim() < 2 or first.shape[-1] != second.shape[-2]:
        raise check.rejected(name, f"of shape {list(second.shape)} as a factor", f"one for {list(first.shape)}")
