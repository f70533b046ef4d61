"""``npu_prefetch``: a hint that memory will be read, which changes no number.

Source: op-plugin's code, whose words the checks have; the wheel's META rule has others.
"""

from __future__ import annotations

from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode

_CHECK = ArgumentChecks("npu_prefetch", default=ErrorCode.WRAPPER)


def prefetch(x: Tensor, /, max_size: int, offset: int) -> None:
    """Do nothing, after the checks.

    Parameters
    ----------
    x : Tensor
        Any tensor.
    max_size : int
        How many bytes at most; 1 or more.
    offset : int
        The first byte; inside the tensor.

    Raises
    ------
    OperatorRejected
        A number is not one of the above.
    """
    prefetch_meta(x, max_size, offset)
    size = x.numel() * x.element_size()
    if offset >= size:
        words = f"offset out of range of tensor size, tensor size: {size}, offset: {offset}"
        raise _CHECK.rejected("offset", offset, f"less than {size}, the bytes of input", words=words)


def prefetch_meta(_: Tensor, /, max_size: int, offset: int) -> None:
    """Check both numbers, as torch_npu's META does."""
    if max_size <= 0:
        words = f"max_size should be greater than zero, but got {max_size}"
        raise _CHECK.rejected("max_size", max_size, "1 or more", words=words)
    if offset < 0:
        words = f"offset should not be smaller than zero, but got {offset}"
        raise _CHECK.rejected("offset", offset, "0 or more", words=words)
