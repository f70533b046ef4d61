"""``npu_fusion_attention``, its second and third version: attention as models are trained with it.

Sources: DOC, its documentation; SOURCE, CANN's kernels for A2 and A3 (``flash_attention_score_s1s2_bn2gs1.h``,
``flash_attention_var_len_score.h``). Scores are float32, hidden ones are replaced by its lowest number; exponentials
are summed before a dropout, and before they are rounded to the inputs' dtype, half away from zero, and multiplied
after; the sum divides at the end. The kernels take keys in tiles, here all keys of a sequence are one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.fused_attention.dropout import Dropout, drawn, next_state
from npudiff.device.simulator.fused_attention.fusion_parts import (
    LOWEST,
    Span,
    attention_shape,
    dropped,
    forces_invalid_rows,
    pieces,
    products,
    scores_of,
    sink_of,
    softmax_rows,
    softmax_shape,
    spans,
    weights_of,
)
from npudiff.device.simulator.fused_attention.fusion_request import FusionRequest, check, check_wrapper
from npudiff.device.simulator.fused_attention.layouts import rows
from npudiff.device.simulator.fused_attention.rounding import half_away_from_zero
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from torch import Tensor

Outputs = tuple["Tensor", "Tensor", "Tensor", "Tensor", int, int, int]
OutputsV3 = tuple["Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor"]


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
        What the dropout was drawn from, 0 and 0 without; and how many bits it has, or would have.

    Raises
    ------
    OperatorRejected
        The real operator refuses the call.
    NotSimulated
        Sparse modes above 6 with a mask, and pse with TND; of the second version also rope parts, and slopes in place
        of pse.
    UndefinedBehaviour
        A mask or a length that the operator does not check and cannot work with.
    """
    check_wrapper(request)
    check(request)
    attention = unwritten(attention_shape(request), request.query.dtype)
    maximum, total = (unwritten(softmax_shape(request), torch.float32) for _ in range(2))
    if not request.packed or request.actual_seq_qlen[-1] == 0:  # type: ignore[index]
        for tensor in (attention, maximum, total):
            tensor.zero_()  # zeros at the end of the lengths let the kernel fill what is left
    numels = weights_of(request)
    seed, offset, dropout = _dropout(request, numels)
    for span in spans(request):
        target = rows(attention, request.input_layout, request.head_num, span.batch, span.window)
        places = [softmax_rows(request, tensor, span) for tensor in (maximum, total)]
        if span.kept:
            _attend(request, span, target, places, dropout)
            continue
        for tensor in (target, *places):
            tensor.zero_()
    return attention, maximum, total, request.query.new_empty(0), seed, offset, numels


def fusion_attention_v3(request: FusionRequest) -> OutputsV3:
    """Run one call of the third version: seed and offset are int64 [1], and there is no number of bits."""
    *tensors, seed, offset, _ = fusion_attention(request)
    return *tensors, torch.tensor([seed]), torch.tensor([offset])  # type: ignore[return-value]


def fusion_attention_v3_meta(request: FusionRequest) -> OutputsV3:
    """Return empty outputs."""
    *tensors, _, _, _ = fusion_attention_meta(request)
    numbers = (request.query.new_empty(1, dtype=torch.int64) for _ in range(2))
    return *tensors, *numbers  # type: ignore[return-value]


def fusion_attention_meta(request: FusionRequest) -> Outputs:
    """Return empty outputs; numbers are 0 there, as torch_npu's own shape function says."""
    softmax = [request.query.new_empty(softmax_shape(request), dtype=torch.float32) for _ in range(2)]
    attention = request.query.new_empty(attention_shape(request))
    return attention, softmax[0], softmax[1], request.query.new_empty(0), 0, 0, 0


def _dropout(request: FusionRequest, numels: int) -> tuple[int, int, Dropout | None]:
    """Return seed, offset and bits; a mask that is given has what it was drawn from beside it."""
    if request.dropout_mask is not None:
        if request.dropout_mask.numel() * 8 < numels:
            given = f"of {request.dropout_mask.numel()} bytes"
            raise request.check.rejected("dropout_mask", given, f"a bit for each of {numels} weights")
        return request.seed, request.offset, Dropout(request.dropout_mask, request.keep_prob)
    if request.keep_prob == 1:
        return 0, 0, None
    seed, offset = next_state()
    return seed, offset, Dropout(drawn(seed, offset, numels, request.keep_prob), request.keep_prob)


def _attend(
    request: FusionRequest, span: Span, attention: Tensor, places: list[Tensor], dropout: Dropout | None
) -> None:
    queries, keys, values = request.rows_of(span.batch, span.window, span.kept)
    scores_in = scores_of(request, span)
    forced = forces_invalid_rows(request)
    for window in pieces(request.head_num, span):
        scores = scores_in(queries, keys, window)
        maximum = scores.amax(-1, keepdim=True)
        if request.sink is not None and active_profile().fusion_sink_maximum == "keys_and_sink":
            maximum = torch.maximum(maximum, request.sink.view(-1, 1, 1))
        exponentials = (scores - maximum).exp()
        total = exponentials.sum(-1, keepdim=True) + sink_of(request, maximum)
        if forced and scores_in.hidden is not None:
            invalid = maximum == LOWEST
            exponentials, total = exponentials.masked_fill(invalid, 0), total.masked_fill(invalid, -LOWEST)
        exponentials = dropped(dropout, request, span, exponentials, window)
        weighted = products(half_away_from_zero(exponentials, values.dtype), values.transpose(1, 2))
        attention[:, window] = half_away_from_zero(weighted / total, attention.dtype)
        places[0][:, window], places[1][:, window] = maximum, total
