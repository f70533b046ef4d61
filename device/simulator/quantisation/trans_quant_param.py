"""``npu_trans_quant_param``: scales and offsets in the words that ``npu_quant_matmul`` takes.

Sources: the wheel's documentation of the operator and its META rule, op-plugin's checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.quantisation.hardware_scales import encoded

_CHECK = ArgumentChecks("npu_trans_quant_param", default=ErrorCode.PARAMETER)


def trans_quant_param(scale: Tensor, offset: Tensor | None = None, round_mode: int | None = 0) -> Tensor:
    """Return the upper 19 bits of scales, and offsets as integers of 9 bits, in words of 64 bits.

    Parameters
    ----------
    scale : Tensor
        float32, [t] or [1, n].
    offset : Tensor, optional
        float32, [t] with a size of scale's or 1, or [1, n].
    round_mode : int, optional
        0 cuts the lower bits of a scale, 1 rounds.

    Returns
    -------
    Tensor
        int64, with the bits of an unsigned number; the shape of both together.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or mode is not one of the above.
    """
    _CHECK.dtype("scale", scale, "float32")
    if offset is not None:
        _CHECK.dtype("offset", offset, "float32")
    shape = _shape(scale, offset, round_mode)
    return encoded(scale, offset, nearest=round_mode == 1).expand(shape).contiguous()


def trans_quant_param_meta(scale: Tensor, offset: Tensor | None, round_mode: int | None) -> Tensor:
    """Allocate the output; torch_npu's META checks shapes and mode, as this does."""
    return scale.new_empty(_shape(scale, offset, round_mode), dtype=torch.int64)


def _shape(scale: Tensor, offset: Tensor | None, round_mode: int | None) -> list[int]:
    """Return the shape of the output, or refuse the call."""
    _CHECK.choice("round_mode", round_mode, (None, 0, 1), ErrorCode.WRAPPER)
    if not (scale.dim() == 1 or (scale.dim() == 2 and scale.shape[0] == 1)) or not scale.numel():
        raise _CHECK.rejected("scale", f"of shape {list(scale.shape)}", "[t] or [1, n], not empty", ErrorCode.WRAPPER)
    if offset is None:
        return list(scale.shape)
    sizes = {scale.shape[-1], offset.shape[-1] if offset.dim() else 0}
    fits = offset.shape == scale.shape or (scale.dim() == offset.dim() == 1 and 1 in sizes and 0 not in sizes)
    if not fits:
        allowed = f"{list(scale.shape)}, as scale" + (", or one of both with one element" if scale.dim() == 1 else "")
        raise _CHECK.rejected("offset", f"of shape {list(offset.shape)}", allowed, ErrorCode.WRAPPER)
    return [*scale.shape[:-1], max(sizes)]
