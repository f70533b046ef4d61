"""``npu_clipped_swiglu``: a gate with limits, of neighbours or of halves.

Source: the wheel's documentation of the operator. No host check is known; what is refused here is what the
documentation excludes.
"""

from __future__ import annotations

import math

from torch import Tensor

from npudiff.device.simulator.activation.gates import clipped_gate
from npudiff.device.simulator.activation.swiglu import half_of
from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation.groups import group_of_rows

_CHECK = ArgumentChecks("npu_clipped_swiglu", default=ErrorCode.PARAMETER)


def clipped_swiglu(
    x: Tensor,
    *,
    group_index: Tensor | None = None,
    dim: int = -1,
    alpha: float = 1.702,
    limit: float = 7.0,
    bias: float = 1.0,
    interleaved: bool = True,
) -> Tensor:
    """Return ``a * sigmoid(alpha * a) * (b + bias)`` with a at most ``limit`` and b within ``limit`` of 0.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32, rank 2 to 8. The axes before ``dim`` make rows, all others the elements of one.
    group_index : Tensor, optional
        int64, [G]: only as many rows are computed as it has in sum.
    dim : int
        The axis whose size is halved; even.
    alpha, limit, bias : float
        Constants of the formula.
    interleaved : bool
        Whether a is every other element of a row, from the first on, and b the elements between; else a is the
        first half of a row. With axes after ``dim`` they are elements of the row as well.

    Returns
    -------
    Tensor
        The dtype of x, half its size along the axis. Computed in float32 and rounded once; rows beyond the groups
        are not written.

    Raises
    ------
    OperatorRejected
        Dtype, rank or axis is not one of the above.
    UndefinedBehaviour
        The content of group_index is not what is said above.
    """
    _CHECK.dtype("x", x, *FLOATS)
    _CHECK.rank("x", x, range(2, 9))
    if active_profile().non_contiguous == "rejected":
        _CHECK.contiguous(x=x)
    axis = _CHECK.axis("dim", dim, x.dim())
    _CHECK.even("x", x, axis)
    rows = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    count = len(rows)
    if group_index is not None:
        _CHECK.dtype("group_index", group_index, "int64")
        _CHECK.rank("group_index", group_index, 1)
        count = len(group_of_rows(_CHECK.operator, "group_index", group_index, len(rows)))
    wide = rows[:count].float()
    gate, up = (wide[:, ::2], wide[:, 1::2]) if interleaved else wide.tensor_split(2, 1)
    shape = list(x.shape)
    shape[axis] //= 2
    result = unwritten((len(rows), rows.shape[1] // 2), x.dtype)
    result[:count] = clipped_gate(gate, up, limit=limit, alpha=alpha, bias=bias).to(x.dtype)
    return result.view(shape)


def clipped_swiglu_meta(x: Tensor, dim: int) -> Tensor:
    """Allocate the output; as torch_npu's META, this checks nothing."""
    return half_of(x, dim)
