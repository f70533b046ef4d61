"""``npu_scatter_nd_update`` and its in-place form: rows of a tensor, found by index, are overwritten.

Sources: the torch_npu documentation of the operators, and aclnn's page aclnnScatterNdUpdate (ops-nn).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.cache.slots import written_tokens
from npudiff.device.simulator.errors import DeviceFault, ErrorCode

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = ("float32", "float16", "bool", "bfloat16", "int64", "int8")
_MAX_RANK = 8


def scatter_nd_in_place(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Overwrite parts of a tensor.

    Parameters
    ----------
    input : Tensor
        Rank 1 to 8, with any strides; float32, float16, bfloat16, bool, int64 or int8. Written.
    indices : Tensor
        int32 or int64 [..., a]: each row is an index into the first ``a`` axes of ``input``.
    updates : Tensor
        [..., rest of the axes of ``input``] in its dtype.

    Returns
    -------
    Tensor
        ``input`` itself.

    Raises
    ------
    OperatorRejected
        Shapes or dtypes that aclnn refuses.
    DeviceFault
        An index outside ``input``, negative ones included: the operator does not check them.

    Notes
    -----
    Where an index occurs more than once, the last update stays. Hardware leaves it open.
    """
    return _update("npu_scatter_nd_update_", input, indices, updates)


def scatter_nd(input: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Return a copy of ``input`` with parts overwritten, as :func:`scatter_nd_in_place` would."""
    return _update("npu_scatter_nd_update", input.clone(), indices, updates)


def scatter_nd_in_place_meta(x: Tensor, /) -> Tensor:
    """Return ``input``."""
    return x


def scatter_nd_meta(x: Tensor, /) -> Tensor:
    """Return an empty tensor like ``input``."""
    return torch.empty_like(x)


def _update(operator: str, target: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    check = ArgumentChecks(operator, default=ErrorCode.TILING)
    _check(check, target, indices, updates)
    depth = indices.shape[-1]
    rows = indices.reshape(-1, depth).to(torch.int64)
    _check_indices(operator, target, rows)
    places = (rows * torch.tensor(_row_steps(target.shape[:depth]))).sum(1)
    chosen = written_tokens(places)
    source = updates.reshape(len(rows), *target.shape[depth:])
    with torch.no_grad():
        target.index_put_(rows[chosen].unbind(1), source[chosen])
    return target


def _check(check: ArgumentChecks, target: Tensor, indices: Tensor, updates: Tensor) -> None:
    check.dtype("input", target, *_DTYPES)
    check.same_dtype("updates", updates, "input", target)
    check.dtype("indices", indices, "int32", "int64")
    if not 1 <= target.dim() <= _MAX_RANK:
        raise check.rejected("input", f"of rank {target.dim()}", f"rank 1 to {_MAX_RANK}")
    if indices.dim() < 2:
        raise check.rejected("indices", f"of rank {indices.dim()}, {list(indices.shape)}", "rank 2 or more")
    depth = indices.shape[-1]
    if depth > target.dim():
        raise check.rejected("indices", f"of {depth} numbers per index", f"up to {target.dim()}, the rank of input")
    if depth == 0:
        raise check.not_simulated("indices", "of 0 numbers per index", "at least 1")
    wanted = (*indices.shape[:-1], *target.shape[depth:])
    check.shape("updates", updates, wanted, meaning=f"indices without its last axis, then input from axis {depth} on")


def _check_indices(operator: str, target: Tensor, rows: Tensor) -> None:
    sizes = torch.tensor(target.shape[: rows.shape[1]])
    outside = ((rows < 0) | (rows >= sizes)).any(1).nonzero()
    if len(outside):
        position = int(outside[0])
        index, shape = rows[position].tolist(), list(target.shape)
        raise DeviceFault(f"{operator}: index {position} of indices is {index}, input has shape {shape}")


def _row_steps(sizes: torch.Size) -> list[int]:
    """Return by how much a flat index grows with each axis."""
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
