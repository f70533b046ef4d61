"""Keys and values that all sequences of a call begin with: they stand before those of each sequence.

Source: DOC of ``npu_fused_infer_attention_score``, shared prefix. Masks, bands and shifts count keys from the first one
of the prefix.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.fused_attention.axes import row_axis

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile

SIDES = ("key_shared_prefix", "value_shared_prefix")
LENGTH = "actual_shared_prefix_len"


def with_shared_prefix(request: FusedAttentionRequest, profile: CannProfile) -> FusedAttentionRequest:
    """Return a call without a shared prefix that attends to the same keys.

    A form without one, or one that has no prefix on hardware or here, is returned as it is, for the checks of extras.

    Raises
    ------
    OperatorRejected
        One of both is missing, another batch than 1, other heads or dtypes than key and value have, or a length that
        the prefix does not have.
    """
    given = [request.given_extra(name) for name in SIDES]
    if given == [None, None] or not _is_simulated(request):
        return request
    if profile.strided_keys == "rejected":
        request.check.contiguous(key=request.key, value=request.value)
    key = _checked(request, 0, "key", request.key)
    value = _checked(request, 1, "value", request.value)
    rows = row_axis(request.axes)
    length = _length(request, key.shape[rows], value.shape[rows])
    lengths = request.key_lengths
    return replace(
        request,
        key=_joined(key.narrow(rows, 0, length), request.key, rows),
        value=_joined(value.narrow(rows, 0, length), request.value, rows),
        key_lengths=None if lengths is None else tuple(length + one for one in lengths),
        extras=tuple((name, given) for name, given in request.extras if name not in (*SIDES, LENGTH)),
    )


def _is_simulated(request: FusedAttentionRequest) -> bool:
    """Whether a call is one of 16-bit tensors in a batch, neither paged nor with rotated parts."""
    plain = request.block_table is None and request.query_rope is None and "B" in request.axes
    return plain and request.query.dtype != torch.int8 and not request.integer_cache


def _checked(request: FusedAttentionRequest, side: int, whose: str, own: Tensor) -> Tensor:
    """Return one of both prefixes, which has to have what key or value has, but for batch and tokens."""
    name, prefix = SIDES[side], request.given_extra(SIDES[side])
    if not isinstance(prefix, torch.Tensor):
        raise request.check.rejected(name, "None", f"given together with {SIDES[1 - side]}")
    if not prefix.is_contiguous():
        raise request.check.rejected(name, f"not contiguous, strides {prefix.stride()}", "a contiguous tensor")
    request.check.same_dtype(name, prefix, whose, own)
    sizes = dict(zip(request.axes, own.shape, strict=False)) | {"B": 1, "S": -1}
    meaning = f"batch 1, and the heads and head dim of {whose}"
    request.check.shape(name, prefix, [sizes[axis] for axis in request.axes], meaning=meaning)
    return prefix


def _length(request: FusedAttentionRequest, keys: int, values: int) -> int:
    """Return how many tokens of the prefix count."""
    if keys != values:
        raise request.check.rejected(SIDES[1], f"of {values} tokens", f"the {keys} tokens of {SIDES[0]}")
    given = request.given_extra(LENGTH)
    if given is None:
        return keys
    lengths: list[int] = list(given)  # type: ignore[call-overload]
    if len(lengths) != 1 or not 0 <= lengths[0] <= keys:
        raise request.check.rejected(LENGTH, lengths, f"one length of 0 to {keys}")
    return lengths[0]


def _joined(prefix: Tensor, own: Tensor, rows: int) -> Tensor:
    return torch.cat([prefix.expand(len(own), *prefix.shape[1:]), own], rows)
