"""Checks that the rotary and norm operators have in common: dtype, rank and shape of one argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

from npudiff.device.simulator.errors import ErrorCode, OperatorRejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

FLOATS = ("float16", "bfloat16", "float32")


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype without ``torch.``."""
    return str(tensor.dtype).removeprefix("torch.")


def require_dtype(operator: str, argument: str, tensor: Tensor, allowed: Sequence[str]) -> None:
    """Refuse a tensor of another dtype.

    Parameters
    ----------
    operator, argument : str
        Names for the message.
    tensor : Tensor
        What was given.
    allowed : sequence of str
        Names of dtypes, without ``torch.``.

    Raises
    ------
    OperatorRejected
        With aclnn's code for parameters.
    """
    if dtype_name(tensor) not in allowed:
        choices = " or ".join(allowed)
        raise OperatorRejected(operator, argument, dtype_name(tensor), choices, ErrorCode.PARAMETER)


def require_same_dtype(operator: str, argument: str, tensor: Tensor, other: Tensor, name: str) -> None:
    """Refuse a tensor whose dtype is not that of another argument, which ``name`` names.

    Raises
    ------
    OperatorRejected
        With aclnn's code for parameters.
    """
    if tensor.dtype != other.dtype:
        allowed = f"{dtype_name(other)}, as {name}"
        raise OperatorRejected(operator, argument, dtype_name(tensor), allowed, ErrorCode.PARAMETER)


def require_rank(
    operator: str, argument: str, tensor: Tensor, rank: int, code: ErrorCode = ErrorCode.PARAMETER
) -> None:
    """Refuse a tensor of another rank.

    Raises
    ------
    OperatorRejected
        With the given code.
    """
    if tensor.dim() != rank:
        raise OperatorRejected(operator, argument, f"of rank {tensor.dim()}", f"rank {rank}", code)


def require_shape(operator: str, argument: str, tensor: Tensor, shape: Sequence[int], meaning: str) -> None:
    """Refuse a tensor of another shape; ``meaning`` says the shape in letters.

    Raises
    ------
    OperatorRejected
        With aclnn's code for parameters.
    """
    if tuple(tensor.shape) != tuple(shape):
        allowed = f"{list(shape)}, {meaning}"
        raise OperatorRejected(operator, argument, f"of shape {list(tensor.shape)}", allowed, ErrorCode.PARAMETER)
