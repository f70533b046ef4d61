"""``npu_rotary_mul_backward``: by which torch_npu differentiates ``npu_rotary_mul``.

Sources: op-plugin's code and test, and the wheel's META rule. That the kernel is float32 from the beginning and rounds
once is inferred. Hardware leaves the gradients of r1 and r2 unwritten where nobody asked for these; here they are
always computed, since a kernel does not see what requires a gradient.
"""

from __future__ import annotations

from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.rotary.rotary_mul import check_rotation
from npudiff.device.simulator.rotary.rotation import rotate_half, rotate_pairs

_CHECK = ArgumentChecks("npu_rotary_mul_backward", default=ErrorCode.PARAMETER)


def rotary_mul_backward(
    grad: Tensor, x: Tensor, /, r1: Tensor, r2: Tensor, rotary_mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, r1 and r2 for ``x * r1 + turned(x) * r2``.

    Parameters
    ----------
    grad : Tensor
        The shape of x; cast to its dtype, as r1 and r2 are.
    x, r1, r2, rotary_mode
        As :func:`~npudiff.device.simulator.rotary.rotary_mul.rotary_mul` takes them.

    Returns
    -------
    dx, dr1, dr2 : Tensor
        The dtype of x, the shapes of x, r1 and r2; summed over the axes along which these broadcast.

    Raises
    ------
    OperatorRejected
        Mode, dtype, rank, shape or size is not one that the forward operator takes.
    """
    words = f"The rotary_mode of npu_rotary_mul_backward should be half or interleave, but got {rotary_mode}"
    _CHECK.choice("rotary_mode", rotary_mode, ("half", "interleave"), ErrorCode.WRAPPER, words)
    check_rotation(x, r1, r2, rotary_mode)
    _CHECK.shape("grad", grad, x.shape, meaning="as input")
    wide, out, cos, sin = (one.to(x.dtype).float() for one in (x, grad, r1, r2))
    turn = rotate_half if rotary_mode == "half" else rotate_pairs
    # A turn by a quarter the other way undoes one.
    dx = out * cos - turn(out * sin)
    gradients = (dx, _summed(out * wide, r1), _summed(out * turn(wide), r2))
    return gradients[0].to(x.dtype), gradients[1].to(x.dtype), gradients[2].to(x.dtype)


def rotary_mul_backward_meta(_grad: Tensor, x: Tensor, /, r1: Tensor, r2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs; as torch_npu's META, this checks nothing."""
    return x.new_empty(x.shape), r1.new_empty(r1.shape, dtype=x.dtype), r2.new_empty(r2.shape, dtype=x.dtype)


def _summed(gradient: Tensor, like: Tensor) -> Tensor:
    """Sum over the axes that another tensor has once."""
    axes = [axis for axis, size in enumerate(like.shape) if size == 1 and gradient.shape[axis] != 1]
    return gradient.sum(axes, keepdim=True) if axes else gradient
