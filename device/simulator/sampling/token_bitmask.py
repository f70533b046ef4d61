"""``apply_token_bitmask`` of sgl-kernel-npu: tokens that a grammar does not allow get minus infinity, in place.

Source: sgl-kernel-npu's host code and kernel (``csrc/apply_token_bitmask``). The schema does not say that ``logits`` is
written, which it is, nor that the result is it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode

_CHECK = ArgumentChecks("apply_token_bitmask", default=ErrorCode.WRAPPER)

_BITS = 32


def apply_token_bitmask(logits: Tensor, bitmask: Tensor, indices: Tensor | None) -> Tensor:
    """Write minus infinity where a bit is 0.

    Parameters
    ----------
    logits : Tensor
        [B, V], float32, float16 or bfloat16.
    bitmask : Tensor
        int32 [B, words]: bit v % 32 of word v // 32 is token v, 1 for one that stays. Tokens without a word go.
    indices : Tensor, optional
        [rows]: rows of both that are looked at; all without it, or if it is empty.

    Returns
    -------
    Tensor
        logits itself.

    Raises
    ------
    OperatorRejected
        Rank, dtype or number of rows is not one of the above, or a tensor has gaps.
    DeviceFault
        An index is outside.
    """
    _check(logits, bitmask, indices)
    rows = slice(None) if indices is None or not indices.numel() else indices.long()
    if isinstance(rows, Tensor):
        _CHECK.indices("indices", rows, len(logits), "rows of logits", low=-len(logits))
    shifts = torch.arange(_BITS, dtype=torch.int32)
    allowed = (bitmask[rows].unsqueeze(-1) >> shifts & 1).bool().flatten(1)[:, : logits.shape[1]]
    gone = torch.nn.functional.pad(~allowed, (0, logits.shape[1] - allowed.shape[1]), value=True)
    logits[rows] = logits[rows].masked_fill(gone, -math.inf)
    return logits


def apply_token_bitmask_meta(logits: Tensor) -> Tensor:
    """Return a tensor like logits."""
    return torch.empty_like(logits)


def _check(logits: Tensor, bitmask: Tensor, indices: Tensor | None) -> None:
    for argument, tensor in (("logits", logits), ("bitmask", bitmask)):
        if tensor.dim() != 2:
            words = f"{argument} must be 2D, got {tensor.dim()}D tensor"
            raise _CHECK.rejected(argument, f"of rank {tensor.dim()}", "rank 2", words=words)
    if len(logits) != len(bitmask):
        words = f"logits and bitmask batch size mismatch: {len(logits)} vs {len(bitmask)}"
        raise _CHECK.rejected("bitmask", f"of {len(bitmask)} rows", f"{len(logits)}, as logits", words=words)
    for argument, tensor in (("logits", logits), ("bitmask", bitmask)):
        if not tensor.is_contiguous():
            words = f"{argument} must be contiguous"
            raise _CHECK.rejected(argument, f"of strides {tensor.stride()}", "a contiguous tensor", words=words)
    if bitmask.dtype != torch.int32:
        raise _CHECK.rejected("bitmask", dtype_name(bitmask), "int32", words="bitmask must be int32")
    if dtype_name(logits) not in FLOATS:
        words = "logits must be float32, float16 or bfloat16"
        raise _CHECK.rejected("logits", dtype_name(logits), " or ".join(FLOATS), words=words)
    if not logits.shape[1]:
        raise _CHECK.rejected("logits", f"of shape {list(logits.shape)}", "tokens", words="vocab_size must be > 0")
    if indices is not None and indices.numel() and indices.dim() != 1:
        raise _CHECK.rejected("indices", f"of rank {indices.dim()}", "rank 1", words="indices must be 1D")
