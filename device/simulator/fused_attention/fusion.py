"""``npu_fusion_attention``: attention as models are trained with it, forward, without dropout.

Sources: DOC, its documentation; SOURCE, CANN's kernels for A2 and A3 (``flash_attention_score_s1s2_bn2gs1.h``,
``flash_attention_var_len_score.h``). Scores are float32, hidden ones are replaced by its lowest number; exponentials
are summed before they are rounded to the inputs' dtype, half away from zero, and multiplied after; the sum divides
at the end. The kernels take keys in tiles, here all keys of a sequence are one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import UndefinedBehaviour
from npudiff.device.simulator.fused_attention.fusion_request import (
    CHECK,
    TEMPLATE_MODES,
    FusionRequest,
    check,
    check_wrapper,
)
from npudiff.device.simulator.fused_attention.layouts import rows
from npudiff.device.simulator.fused_attention.rounding import half_away_from_zero
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

Outputs = tuple["Tensor", "Tensor", "Tensor", "Tensor", int, int, int]

_LOWEST = torch.finfo(torch.float32).min
_COPIES = 8
_INVALID_ROWS = 2
_MAXIMUM = 2147483647

# Scores that are in memory at once.
_SCORES = 1 << 22


def fusion_attention(request: FusionRequest) -> Outputs:
    """Run one call on CPU tensors, under the active profile.

    Returns
    -------
    attention : Tensor
        In the layout and dtype of the query, with the values' head dim.
    softmax_max, softmax_sum : Tensor
        float32 [B, N, S, 8], with TND [T, N, 8]: the largest score of each row and the sum of exponentials under it,
        eight times each. With TND and without ``softmax_layout`` each sequence lies there as [N, its rows, 8]. Of a row
        that is forced to 0 they are the lowest and the largest float32.
    softmax_out : Tensor
        Empty.
    seed, offset, numels : int
        0, 0, and how many numbers a dropout would draw.

    Raises
    ------
    OperatorRejected
        The real operator refuses the call.
    NotSimulated
        Dropout, a sink, prefixes, sparse modes above 4 with a mask, and pse with TND.
    UndefinedBehaviour
        A mask or a length that the operator does not check and cannot work with.
    """
    check_wrapper(request)
    check(request)
    attention = unwritten(_attention_shape(request), request.query.dtype)
    maximum, total = (unwritten(_softmax_shape(request), torch.float32) for _ in range(2))
    if not request.packed or request.actual_seq_qlen[-1] == 0:  # type: ignore[index]
        for tensor in (attention, maximum, total):
            tensor.zero_()  # zeros at the end of the lengths let the kernel fill what is left
    numels = 0
    for batch, (start, count, key_start, keys) in enumerate(_spans(request)):
        numels += count * keys * request.head_num
        window = range(start, start + count)
        where = (batch, window)
        target = rows(attention, request.input_layout, request.head_num, *where)
        places = [_softmax_rows(request, tensor, *where) for tensor in (maximum, total)]
        if not keys:
            for tensor in (target, *places):
                tensor.zero_()
            continue
        kept = range(key_start, key_start + keys)
        _attend(
            request, batch, rows(request.query, request.input_layout, request.head_num, *where), kept, target, places
        )
    return attention, maximum, total, request.query.new_empty(0), 0, 0, numels


def fusion_attention_meta(request: FusionRequest) -> Outputs:
    """Return empty outputs; numbers are 0 there, as torch_npu's own shape function says."""
    softmax = [request.query.new_empty(_softmax_shape(request), dtype=torch.float32) for _ in range(2)]
    attention = request.query.new_empty(_attention_shape(request))
    return attention, softmax[0], softmax[1], request.query.new_empty(0), 0, 0, 0


def _attention_shape(request: FusionRequest) -> list[int]:
    sizes = {**request.sizes, "D": request.value_dim}
    sizes["H"] = sizes["N"] * sizes["D"]
    return [sizes[axis] for axis in request.input_layout]


def _softmax_shape(request: FusionRequest) -> list[int]:
    sizes = request.sizes
    if request.packed:
        return [sizes["T"], sizes["N"], _COPIES]
    return [sizes["B"], sizes["N"], sizes["S"], _COPIES]


def _softmax_rows(request: FusionRequest, tensor: Tensor, batch: int, window: range) -> Tensor:
    """View the numbers of one sequence as [heads, rows, 8]."""
    if not request.packed:
        return tensor[batch]
    part = tensor[window.start : window.stop]
    if request.softmax_layout:
        return part.transpose(0, 1)
    return part.view(request.head_num, len(window), _COPIES)


def _spans(request: FusionRequest) -> Iterator[tuple[int, int, int, int]]:
    """Yield first row, rows, first key and keys of each sequence; zeros at the end are none."""
    if not request.packed:
        for _ in range(request.sizes["B"]):
            yield 0, request.sizes["S"], 0, request.key_rows
        return
    start = key_start = 0
    for end, key_end in zip(request.actual_seq_qlen or (), request.actual_seq_kvlen or (), strict=True):
        if end >= start:
            yield start, end - start, key_start, max(0, key_end - key_start)
        start, key_start = max(start, end), max(key_start, key_end)


def _attend(
    request: FusionRequest, batch: int, queries: Tensor, kept: range, attention: Tensor, places: list[Tensor]
) -> None:
    keys, values = (
        rows(tensor, request.input_layout, request.kv_heads, batch, kept) for tensor in (request.key, request.value)
    )
    heads, count, _ = queries.shape
    hidden, pse = _hidden(request, batch, count, len(kept)), _pse(request, batch, count)
    forced = request.inner_precise == _INVALID_ROWS or request.sparse_mode in TEMPLATE_MODES
    step = max(1, _SCORES // (heads * len(kept)))
    for start in range(0, count, step):
        window = slice(start, min(start + step, count))
        scores = _products(queries[:, window], keys)
        scores = _scaled(scores, request.scale, None if pse is None else pse[:, window])
        if hidden is not None:
            scores = scores.masked_fill(hidden[:, window], _LOWEST)
        maximum = scores.amax(-1, keepdim=True)
        exponentials = (scores - maximum).exp()
        total = exponentials.sum(-1, keepdim=True)
        if forced and hidden is not None:
            invalid = maximum == _LOWEST
            exponentials, total = exponentials.masked_fill(invalid, 0), total.masked_fill(invalid, -_LOWEST)
        weighted = _products(half_away_from_zero(exponentials, values.dtype), values.transpose(1, 2))
        attention[:, window] = half_away_from_zero(weighted / total, attention.dtype)
        places[0][:, window], places[1][:, window] = maximum, total


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Multiply [heads, rows, n] with [kv heads, columns, n], of which a head has that of its group."""
    grouped = left.float().reshape(len(right), -1, left.shape[2])
    return torch.bmm(grouped, right.float().transpose(1, 2)).view(*left.shape[:2], -1)


def _scaled(products: Tensor, scale: float, pse: Tensor | None) -> Tensor:
    if pse is None:
        return products * scale
    if active_profile().fusion_pse == "scaled":
        return (products + pse) * scale
    return products * scale + pse


def _pse(request: FusionRequest, batch: int, count: int) -> Tensor | None:
    """Return float32 [heads, rows, keys] of one sequence."""
    if request.pse is None:
        return None
    return request.pse[batch % len(request.pse)].float().expand(-1, count, -1)


def _hidden(request: FusionRequest, batch: int, count: int, keys: int) -> Tensor | None:
    """Return bool [1 or heads, rows, keys], True where a key is hidden."""
    mask = request.atten_mask
    if mask is None:  # modes and tokens have no effect then
        return None
    shift = 0 if request.sparse_mode in (0, 2) else keys - count
    before, after = request.pre_tockens, request.next_tockens
    if request.sparse_mode in (2, 3):
        before, after = _MAXIMUM, 0
    offset = torch.arange(keys) - torch.arange(count).unsqueeze(1) - shift
    outside = ((offset < -before) | (offset > after)).unsqueeze(0)
    if request.sparse_mode in TEMPLATE_MODES:
        return outside
    own = mask if mask.dim() == 2 else mask[batch % len(mask)]
    own = own.view(-1, *own.shape[-2:]).to(torch.bool)
    if own.shape[1] < count or own.shape[2] < keys:
        allowed = f"{count} rows and {keys} keys, as sequence {batch} has, or more"
        raise CHECK.rejected("atten_mask", f"of shape {list(mask.shape)}", allowed)
    own = own[:, :count, :keys]
    if request.sparse_mode == 0 and (outside & ~own).any():
        raise UndefinedBehaviour(
            f"{CHECK.operator}: atten_mask shows keys outside of pre_tockens {before} and next_tockens {after}; they "
            "must say the same with sparse_mode 0, or hardware gives wrong values"
        )
    return own
