"""``npu_quant_scatter`` and its in-place form: updates are quantised, and overwrite places of each batch.

Sources: op-plugin's documentation, host code and test, which has ``npu_quantize`` and ``scatter_update`` as its golden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import DeviceFault, ErrorCode
from npudiff.device.simulator.quantisation.integers import INT8, saturated

_ALIGNED = 32


def quant_scatter_in_place(
    x: Tensor,
    /,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None,
    axis: int,
    quant_axis: int,
    reduce: str,
) -> Tensor:
    """Overwrite places of each batch with ``round(updates / quant_scales) + quant_zero_points``.

    Parameters
    ----------
    x : Tensor
        int8, rank 3 to 8. Written.
    indices : Tensor
        int32 [B], the first place of ``axis`` in batch i, or [B, 2], a batch and its first place.
    updates : Tensor
        float16 or bfloat16, [B, ...], otherwise of x's sizes but for ``axis``; the last axis in whole 32 bytes of int8.
    quant_scales : Tensor
        float32 or bfloat16, as many as the last axis of updates.
    quant_zero_points : Tensor, optional
        int32 or bfloat16, as many.
    axis : int
        Neither the first nor the last.
    quant_axis : int
        The last.
    reduce : str
        ``update``.

    Returns
    -------
    Tensor
        x itself.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape, axis or reduce is not one of the above.
    DeviceFault
        An index leads outside.
    """
    return _scattered(
        "npu_quant_scatter_", x, indices, updates, quant_scales, quant_zero_points, axis, quant_axis, reduce
    )


def quant_scatter(
    x: Tensor,
    /,
    indices: Tensor,
    updates: Tensor,
    quant_scales: Tensor,
    quant_zero_points: Tensor | None,
    axis: int,
    quant_axis: int,
    reduce: str,
) -> Tensor:
    """Return a copy of x, overwritten as :func:`quant_scatter_in_place` would."""
    given = (indices, updates, quant_scales, quant_zero_points, axis, quant_axis, reduce)
    return _scattered("npu_quant_scatter", x.clone(), *given)


def quant_scatter_in_place_meta(x: Tensor, /) -> Tensor:
    """Return x."""
    return x


def quant_scatter_meta(x: Tensor, /) -> Tensor:
    """Allocate the output."""
    return torch.empty_like(x)


def _scattered(
    operator: str,
    target: Tensor,
    indices: Tensor,
    updates: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    axis: int,
    quant_axis: int,
    reduce: str,
) -> Tensor:
    check = ArgumentChecks(operator, default=ErrorCode.PARAMETER)
    axis = _check(check, target, indices, updates, axis, quant_axis)
    check.choice("reduce", reduce, ("update",))
    check.dtype("quant_scales", scales, "float32", "bfloat16")
    columns = updates.shape[-1]
    for name, tensor in (("quant_scales", scales), ("quant_zero_points", zero_points)):
        if tensor is not None and tensor.numel() != columns:
            raise check.rejected(name, f"of shape {list(tensor.shape)}", f"{columns} elements, as updates has columns")
    values = (updates.float() / scales.float().flatten()).round()
    if zero_points is not None:
        check.dtype("quant_zero_points", zero_points, "int32", "bfloat16")
        values = values + zero_points.float().flatten()
    quantised, count = saturated(values, INT8, torch.int8), updates.shape[axis]
    places = indices.tolist() if indices.dim() == 2 else list(enumerate(indices.tolist()))
    for number, (batch, first) in enumerate(places):
        if not (0 <= batch < len(target) and 0 <= first <= target.shape[axis] - count):
            where = f"{count} places of axis {axis}, which has {target.shape[axis]}, of {len(target)} batches"
            raise DeviceFault(f"{operator}: indices[{number}] is batch {batch}, place {first}, for {where}")
        target[batch].narrow(axis - 1, first, count).copy_(quantised[number])
    return target


def _check(check: ArgumentChecks, target: Tensor, indices: Tensor, updates: Tensor, axis: int, quant_axis: int) -> int:
    check.dtype("input", target, "int8")
    check.rank("input", target, range(3, 9))
    check.dtype("indices", indices, "int32")
    check.shape("indices", indices, (-1,), (-1, 2), meaning="[B], or [B, 2] with the batch")
    check.dtype("updates", updates, "float16", "bfloat16")
    rank = target.dim()
    axis = check.axis("axis", axis, rank)
    check.between("axis", axis, 1, rank - 2)
    if check.axis("quant_axis", quant_axis, rank) != rank - 1:
        raise check.rejected("quant_axis", quant_axis, f"{rank - 1} or -1, the last axis")
    wanted = [len(indices), *target.shape[1:]]
    wanted[axis] = -1
    check.shape("updates", updates, wanted, meaning="as many as indices, and input but for the axis")
    check.between("indices", len(indices), 0, len(target))
    if updates.shape[-1] % _ALIGNED:
        raise check.rejected("updates", f"of {updates.shape[-1]} columns", f"a multiple of {_ALIGNED}")
    return axis
