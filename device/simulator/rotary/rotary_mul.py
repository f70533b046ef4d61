"""``npu_rotary_mul``: turn a tensor by cosines and sines that broadcast.

Sources: the wheel's documentation of the operator, and CANN's ``rotary_position_embedding`` kernels
(``rotate_half.h``, ``rotate_half_bf16.h``, ``rotate_interleaved_split_bsn_pad.h``, ``rotate_matrix.h`` in
ops-transformer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.rotary.rotation import rotate_half, rotate_pairs, turn

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECK = ArgumentChecks("npu_rotary_mul", default=ErrorCode.PARAMETER)
_HEAD_DIM_END = 896
_BATCH_OR_HEADS_END = 1000


@dataclass(frozen=True)
class _Reading:
    """One way to read shapes: the axes that r1 and r2 have in full, and which axes of input are B and N."""

    layout: str
    full: frozenset[int]
    batch_axis: int
    head_axis: int
    interleave: bool


def _reading(layout: str, r: str, *, interleave: bool = False) -> _Reading:
    full = frozenset(axis for axis, letter in enumerate(r[:3]) if letter != "1")
    return _Reading(layout, full, layout.index("B"), layout.index("N"), interleave)


# DOC: what r1 and r2 may be for each layout of input; interleave has only one full axis.
_READINGS = (
    _reading("BNSD", "11SD", interleave=True),
    _reading("BNSD", "B1SD"),
    _reading("BNSD", "BNSD"),
    _reading("BSND", "1S1D", interleave=True),
    _reading("BSND", "BS1D"),
    _reading("BSND", "BSND"),
    _reading("SBND", "S11D", interleave=True),
    _reading("SBND", "SB1D"),
    _reading("SBND", "SBND"),
)


def rotary_mul(x: Tensor, /, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    """Return ``x * r1 + turned(x) * r2``.

    Parameters
    ----------
    x : Tensor
        [B, N, S, D], [B, S, N, D], [S, B, N, D] or [T, N, D]; float16, bfloat16 or float32. D is even and below 896.
    r1, r2 : Tensor
        Cosines and sines, of one shape and the rank of x: D in full and 1 where they broadcast; cast to the dtype of x.
    rotary_mode : str
        ``half`` or ``interleave``; the output keeps the order of x.
    rotate : Tensor, optional
        [D, D]: ``x @ rotate`` takes the place of the turned x, and the mode does not matter.

    Returns
    -------
    Tensor
        Shape and dtype of x.

    Raises
    ------
    OperatorRejected
        Mode, dtype, rank, shape or size is not one of the above.
    """
    profile = active_profile()
    _check(x, r1, r2, rotary_mode, rotate, profile)
    # SOURCE rotate_half.h: float16 in half order is never widened, so both products round to float16. All
    # other kernels compute in float32 and round once, to even.
    narrow = x.dtype == torch.float16 and rotary_mode == "half" and rotate is None
    arithmetic = x.dtype if narrow and profile.rotary_mul_float16 == "float16" else torch.float32
    values = x.to(arithmetic)
    cos, sin = (r.to(x.dtype).to(arithmetic) for r in (r1, r2))
    if rotate is not None:
        turned = values @ rotate.to(x.dtype).to(arithmetic)
    else:
        turned = rotate_half(values) if rotary_mode == "half" else rotate_pairs(values)
    return turn(values, turned, cos, sin).to(x.dtype)


def rotary_mul_meta(x: Tensor, /) -> Tensor:
    """Allocate the output; as torch_npu's META, this checks nothing."""
    return x.new_empty(x.shape)


def _check(x: Tensor, r1: Tensor, r2: Tensor, mode: str, rotate: Tensor | None, profile: CannProfile) -> None:
    # quarter and interleave-half are of Ascend 950 (op-plugin test_npu_rotary_mul).
    words = f"The rotary_mode of npu_rotary_mul should be half or interleave, but got {mode}"
    _CHECK.choice("rotary_mode", mode, ("half", "interleave"), ErrorCode.WRAPPER, words)
    _CHECK.rank("input", x, 4 if profile.rotary_mul_three_axes == "rejected" else (3, 4))
    for argument, tensor in (("input", x), ("r1", r1), ("r2", r2)):
        _CHECK.rank(argument, tensor, x.dim(), "as input")
        _CHECK.dtype(argument, tensor, *FLOATS)
    _CHECK.shape("r2", r2, r1.shape, meaning="as r1")
    dim = x.shape[-1]
    if dim % 2 or not 0 < dim < _HEAD_DIM_END:
        allowed = f"an even head dim below {_HEAD_DIM_END}"
        raise _CHECK.rejected("input", f"of head dim {dim}", allowed, ErrorCode.TILING)
    if rotate is not None:
        _CHECK.dtype("rotate", rotate, *FLOATS)
        _CHECK.shape("rotate", rotate, (dim, dim), meaning="[D, D]")
    if x.dim() == len("TND"):
        _check_tokens(x, r1, mode, profile)
        return
    readings = list(_readings(x, r1, mode))
    if not readings:
        allowed = "[1, 1, S, D], [1, S, 1, D] or [S, 1, 1, D]" + (
            ", or with the batch or every axis in full too" if mode == "half" else ""
        )
        given = f"of shape {list(r1.shape)} for input {list(x.shape)}"
        raise _CHECK.rejected("r1", given, allowed, ErrorCode.TILING)
    if profile.rotary_mul_sizes == "documented" and not any(_fits(x, reading, mode) for reading in readings):
        what = "batch and heads below" if mode == "half" else "batch times heads below"
        given = f"of shape {list(x.shape)}"
        raise _CHECK.rejected("input", given, f"{what} {_BATCH_OR_HEADS_END}", ErrorCode.TILING)


def _check_tokens(x: Tensor, r: Tensor, mode: str, profile: CannProfile) -> None:
    """Check [T, N, D]. DOC: r1 and r2 are [T, 1, D], or [T, N, D] in half mode; op-plugin's tests have ones too."""
    tokens, heads, dim = x.shape
    shapes = {(tokens, 1, dim), (tokens, heads, dim)} if mode == "half" else {(tokens, 1, dim)}
    if profile.rotary_mul_three_axes == "broadcast":
        shapes |= {(1, 1, dim), (1, heads, dim), (tokens, heads, dim)}
    _CHECK.shape("r1", r, *sorted(shapes), meaning="which broadcasts over input [T, N, D]", code=ErrorCode.TILING)
    if profile.rotary_mul_sizes == "documented" and heads >= _BATCH_OR_HEADS_END:
        given = f"of shape {list(x.shape)}"
        raise _CHECK.rejected("input", given, f"heads below {_BATCH_OR_HEADS_END}", ErrorCode.TILING)


def _readings(x: Tensor, r: Tensor, mode: str) -> Iterator[_Reading]:
    """Yield the readings that fit both shapes; an axis of size 1 is full and broadcast at once."""
    if r.shape[3] != x.shape[3] or any(size not in (1, whole) for size, whole in zip(r.shape, x.shape, strict=True)):
        return
    required = {axis for axis in range(3) if r.shape[axis] > 1}
    possible = required | {axis for axis in range(3) if x.shape[axis] == 1}
    for reading in _READINGS:
        if required <= reading.full <= possible and (reading.interleave or mode == "half"):
            yield reading


def _fits(x: Tensor, reading: _Reading, mode: str) -> bool:
    batch, heads = x.shape[reading.batch_axis], x.shape[reading.head_axis]
    if mode == "half":
        return max(batch, heads) < _BATCH_OR_HEADS_END
    return batch * heads < _BATCH_OR_HEADS_END


def check_rotation(x: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str) -> None:
    """Refuse what :func:`rotary_mul` refuses, in its name: for its gradient.

    Raises
    ------
    OperatorRejected
        Mode, dtype, rank, shape or size is not one that it takes.
    """
    _check(x, r1, r2, rotary_mode, None, active_profile())
