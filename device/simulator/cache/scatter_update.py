"""``scatter_update`` and its in-place form: each batch of a tensor is overwritten from an offset on.

Sources: the torch_npu documentation of the operators, and aclnn's page aclnnInplaceScatterUpdate (ops-nn).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import DeviceFault, ErrorCode

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = ("int8", "uint8", "float16", "float32", "int32", "bfloat16")
_MAX_RANK = 8


def scatter_update_in_place(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """Overwrite ``updates.shape[axis]`` places of each batch, from the batch's own offset on.

    Parameters
    ----------
    input : Tensor
        Rank 2 to 8, with any strides; int8, uint8, int32, float16, bfloat16 or float32. Written.
    indices : Tensor
        int32 or int64 [batches], or a scalar for one batch: offsets on ``axis``.
    updates : Tensor
        In the dtype of ``input``, with its sizes but for the batches, which may be fewer, and for ``axis``.
    axis : int
        Any but the first.

    Returns
    -------
    Tensor
        ``input`` itself.

    Raises
    ------
    OperatorRejected
        Shapes or dtypes that aclnn refuses.
    NotSimulated
        Indices of rank 2, whose meaning is not documented.
    DeviceFault
        An offset that leads outside ``input``, negative ones included: the operator does not check them.
    """
    return _update("scatter_update_", input, indices, updates, axis)


def scatter_update(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    """Return a copy of ``input``, overwritten as :func:`scatter_update_in_place` would."""
    return _update("scatter_update", input.clone(), indices, updates, axis)


def scatter_update_in_place_meta(x: Tensor, /) -> Tensor:
    """Return ``input``."""
    return x


def scatter_update_meta(x: Tensor, /) -> Tensor:
    """Return an empty tensor like ``input``."""
    return torch.empty_like(x)


def _update(operator: str, target: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
    check = ArgumentChecks(operator, default=ErrorCode.PARAMETER)
    _check(check, target, indices, updates, axis)
    axis %= target.dim()
    count = updates.shape[axis]
    with torch.no_grad():
        for batch, offset in enumerate(indices.view(-1).tolist()):
            if not 0 <= offset <= target.shape[axis] - count:
                where = f"{count} places of axis {axis}, which has {target.shape[axis]}"
                raise DeviceFault(f"{operator}: index {batch} of indices is {offset}, for {where}")
            target[batch].narrow(axis - 1, offset, count).copy_(updates[batch])
    return target


def _check(check: ArgumentChecks, target: Tensor, indices: Tensor, updates: Tensor, axis: int) -> None:
    check.dtype("input", target, *_DTYPES)
    check.same_dtype("updates", updates, "input", target)
    check.dtype("indices", indices, "int32", "int64")
    rank = target.dim()
    if not 2 <= rank <= _MAX_RANK:
        raise check.rejected("input", f"of rank {rank}", f"rank 2 to {_MAX_RANK}")
    if not -rank < axis < rank or axis == 0:
        raise check.rejected("axis", axis, f"{1 - rank} to {rank - 1}, and not 0")
    for name, tensor in (("input", target), ("indices", indices), ("updates", updates)):
        if not tensor.numel():
            raise check.rejected(name, f"of shape {list(tensor.shape)}", "at least one element")
    if indices.dim() == 2:
        raise check.not_simulated("indices", "of rank 2", "rank 0 or 1")
    if indices.dim() > 2:
        raise check.rejected("indices", f"of rank {indices.dim()}", "rank 0 to 2")
    if indices.numel() > target.shape[0]:
        raise check.rejected("indices", f"of {indices.numel()} batches", f"up to {target.shape[0]}, those of input")
    wanted = [indices.numel(), *target.shape[1:]]
    wanted[axis] = -1
    check.shape("updates", updates, wanted, meaning="the batches of indices, and input but for the axis")
