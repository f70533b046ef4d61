"""``npu_group_quant``: rows times the scales of their group, and an offset, as integers.

Sources: op-plugin's documentation, host code and test, and the wheel's META rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.quantisation.integers import INT4, INT8, PER_WORD, packed, saturated

_CHECK = ArgumentChecks("npu_group_quant", default=ErrorCode.PARAMETER)

_INT8 = (None, torch.int8, torch.qint8)


def group_quant(
    x: Tensor, scale: Tensor, group_index: Tensor, offset: Tensor | None, dst_dtype: torch.dtype | None
) -> Tensor:
    """Return ``round(x * scale + offset)`` with the scale of each row's group.

    Parameters
    ----------
    x : Tensor
        float16, bfloat16 or float32 [S, H].
    scale : Tensor
        Of these [E, H], E at least 1.
    group_index : Tensor
        int32 or int64 [E]: where each group ends, the last at S.
    offset : Tensor, optional
        The dtype of scale, [1].
    dst_dtype : torch.dtype, optional
        int8, qint8 or quint4x2; int8 without it.

    Returns
    -------
    Tensor
        int8 [S, H], saturated; for quint4x2 int32 [S, H / 8].

    Raises
    ------
    OperatorRejected
        Dtype or shape is not one of the above.
    UndefinedBehaviour
        Ends fall, or the last is not S.
    """
    words = _check_words(x, dst_dtype)
    _CHECK.dtype("x", x, *FLOATS)
    _CHECK.rank("x", x, 2, "[S, H]")
    _CHECK.dtype("scale", scale, *FLOATS)
    _CHECK.shape("scale", scale, (-1, x.shape[1]), meaning="[E, H]")
    if not len(scale):
        raise _CHECK.rejected("scale", "of no group", "at least one")
    _CHECK.dtype("group_index", group_index, "int32", "int64")
    _CHECK.shape("group_index", group_index, (len(scale),), meaning="[E]")
    ends = group_index.tolist()
    if ends != sorted(ends) or ends[0] < 0 or ends[-1] != len(x):
        raise UndefinedBehaviour(f"npu_group_quant: group_index is {ends}; it never falls, and ends at {len(x)}")
    rows = group_index.long().diff(prepend=group_index.new_zeros(1, dtype=torch.int64))
    product = x.float() * scale.float().repeat_interleave(rows, 0)
    if offset is not None:
        _CHECK.same_dtype("offset", offset, "scale", scale)
        _CHECK.shape("offset", offset, (1,), meaning="one for all")
        product = product + offset.float()
    return packed(saturated(product, INT4, torch.int8)) if words else saturated(product, INT8, torch.int8)


def group_quant_meta(x: Tensor, dst_dtype: torch.dtype | None) -> Tensor:
    """Allocate the output, after the check of words."""
    if not _check_words(x, dst_dtype):
        return x.new_empty(x.shape, dtype=torch.int8)
    return x.new_empty((*x.shape[:-1], x.shape[-1] // PER_WORD), dtype=torch.int32)


def _check_words(x: Tensor, dst_dtype: torch.dtype | None) -> bool:
    """Say whether eight integers share a word."""
    if dst_dtype in _INT8:
        return False
    words = "dst_dtype must be Int8 or Int4"
    _CHECK.choice("dst_dtype", dst_dtype, (torch.quint4x2,), ErrorCode.WRAPPER, words)
    if x.shape[-1] % PER_WORD:
        words = "input shape last dim must be divded by 8"
        given = f"of shape {list(x.shape)}"
        raise _CHECK.rejected("x", given, f"a last axis of words of {PER_WORD}", ErrorCode.WRAPPER, words)
    return True
