"""``npu_interleave_rope``: turn interleaved pairs and return them in half order.

Sources: the operator's documentation in op-plugin, aclnnInterleaveRope, and CANN's ``interleave_rope``
kernels (ops-transformer). What goes in as pairs (2i, 2i + 1) comes out as (i, i + 32).
"""

from __future__ import annotations

from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.rotary.rotation import deinterleave, rotate_half, turn

_CHECK = ArgumentChecks("npu_interleave_rope", default=ErrorCode.PARAMETER)
HEAD_DIM = 64


def interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x in float32 and round once, to even.

    Parameters
    ----------
    x : Tensor
        [B, N, S, 64], pairs interleaved; float16 or bfloat16.
    cos, sin : Tensor
        [B, 1, S, 64] or [B, 1, 1, 64] in the dtype of x, in half order: 32 values, twice.

    Returns
    -------
    Tensor
        [B, N, S, 64] in half order, dtype of x.

    Raises
    ------
    OperatorRejected
        Dtype, rank or shape is not one of the above.
    """
    _check(x, cos, sin, active_profile())
    values = deinterleave(x.float())
    return turn(values, rotate_half(values), cos.float(), sin.float()).to(x.dtype)


def interleave_rope_meta(x: Tensor) -> Tensor:
    """Allocate the output; as torch_npu's META, this checks nothing."""
    return x.new_empty(x.shape)


def _check(x: Tensor, cos: Tensor, sin: Tensor, profile: CannProfile) -> None:
    _CHECK.rank("x", x, 4)
    _CHECK.dtype("x", x, *profile.interleave_rope_dtypes)
    batch, _, length, dim = x.shape
    if dim != HEAD_DIM:
        raise _CHECK.rejected("x", f"of head dim {dim}", f"head dim {HEAD_DIM}")
    _CHECK.rank("cos", cos, 4)
    # aclnn speaks of broadcasting; every kernel (b11d, b1sd, split_s) has the batch in full.
    length = 1 if cos.shape[2] == 1 else length
    _CHECK.shape("cos", cos, (batch, 1, length, HEAD_DIM), meaning="[B, 1, S or 1, 64]")
    _CHECK.shape("sin", sin, cos.shape, meaning="as cos")
    for argument, tensor in (("cos", cos), ("sin", sin)):
        _CHECK.same_dtype(argument, tensor, "x", x)
    if profile.non_contiguous == "rejected":
        _CHECK.contiguous(x=x, cos=cos, sin=sin)
