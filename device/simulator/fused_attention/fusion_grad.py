"""``npu_fusion_attention_grad``: gradients of attention, from what the forward call kept of its softmax.

Sources: DOC, ``aclnnFlashAttentionScoreGrad``; SOURCE, CANN's kernels for A2 and A3
(``flash_attention_score_grad_s1s2_bn2gs1s2.h``, ``flash_attention_score_grad_post.h``). Weights and gradients of
scores are float32, rounded to the inputs' dtype before they are multiplied, half away from zero; the gradients of
query and key are scaled in float32, and rounded at the end. The kernels add tiles up in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.fused_attention.dropout import Dropout, drawn
from npudiff.device.simulator.fused_attention.fusion_parts import (
    Span,
    attention_shape,
    dropped,
    pieces,
    products,
    scores_of,
    sink_of,
    softmax_rows,
    softmax_shape,
    spans,
    weights_of,
)
from npudiff.device.simulator.fused_attention.fusion_request import (
    FusionRequest,
    check,
    check_wrapper,
    normalise_fusion,
    normalise_fusion_v2,
    normalise_fusion_v3,
)
from npudiff.device.simulator.fused_attention.layouts import rows
from npudiff.device.simulator.fused_attention.rounding import half_away_from_zero
from npudiff.device.simulator.norms.unwritten import unwritten

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Gradients = tuple["Tensor", "Tensor", "Tensor", "Tensor | None", "Tensor"]
GradientsV2 = tuple["Tensor", "Tensor", "Tensor", "Tensor | None", None, None, "Tensor"]


@dataclass(frozen=True, kw_only=True)
class FusionGradRequest:
    """A call of ``npu_fusion_attention_grad``; names are its own."""

    forward: FusionRequest
    dy: Tensor
    softmax_max: Tensor
    softmax_sum: Tensor
    attention_in: Tensor


def normalise_fusion_grad(**arguments: object) -> FusionGradRequest:
    """Take the arguments of a call."""
    return _normalise("npu_fusion_attention_grad", normalise_fusion, arguments)


def normalise_fusion_grad_v2(**arguments: object) -> FusionGradRequest:
    """Take the arguments of a call of the second version."""
    return _normalise("npu_fusion_attention_grad_v2", normalise_fusion_v2, arguments)


def normalise_fusion_grad_v3(**arguments: object) -> FusionGradRequest:
    """Take the arguments of a call of the third version."""
    return _normalise("npu_fusion_attention_grad_v3", normalise_fusion_v3, arguments)


def _normalise(
    operator: str, normalise: Callable[..., FusionRequest], arguments: dict[str, object]
) -> FusionGradRequest:
    """Part what the forward call had from what it gave; all that it gave must be there."""
    arguments.pop("softmax_in", None)  # empty
    given = {name: arguments.pop(name, None) for name in ("dy", "softmax_max", "softmax_sum", "attention_in")}
    if "scale_value" in arguments:
        arguments["scale"] = arguments.pop("scale_value")
    forward = replace(normalise(**arguments), operator=operator)
    for name, tensor in given.items():
        if tensor is None:
            raise forward.check.rejected(name, None, "a tensor")
    return FusionGradRequest(forward=forward, **given)  # type: ignore[arg-type]


def fusion_attention_grad(request: FusionGradRequest) -> Gradients:
    """Run one call on CPU tensors, under the active profile.

    Returns
    -------
    dq, dk, dv : Tensor
        As query, key and value; 0 for tokens that are in no sequence.
    dpse : Tensor or None
        As ``pse``, not written; None without.
    dsink : Tensor
        float32 [heads]; empty without a sink.

    Raises
    ------
    OperatorRejected, NotSimulated, UndefinedBehaviour
        As the forward call, and for what it gave in another shape or dtype.
    """
    forward = request.forward
    check_wrapper(forward)
    check(forward)
    _check_forward(request)
    query, key, value = (one.new_zeros(one.shape) for one in (forward.query, forward.key, forward.value))
    gradients = replace(forward, query=query, key=key, value=value)
    dropout = None  # the host code draws it again, whatever mask the forward call was given
    if forward.keep_prob != 1:
        bits = drawn(forward.seed, forward.offset, weights_of(forward), forward.keep_prob)
        dropout = Dropout(bits, forward.keep_prob)
    dsink = _empty_or_like(forward.sink, query).zero_()
    for span in spans(forward):
        if span.window and span.kept:
            _differentiate(request, span, gradients.rows_of(span.batch, span.window, span.kept), dsink, dropout)
    dpse = None if forward.pse is None else unwritten(forward.pse.shape, forward.pse.dtype)
    return query, key, value, dpse, dsink


def _empty_or_like(sink: Tensor | None, query: Tensor) -> Tensor:
    return query.new_empty(0 if sink is None else sink.shape, dtype=torch.float32)


def fusion_attention_grad_v2(request: FusionGradRequest) -> GradientsV2:
    """Run one call of the second version: the same, with None for both rope parts before the last."""
    *gradients, dsink = fusion_attention_grad(request)
    return *gradients, None, None, dsink  # type: ignore[return-value]


def fusion_attention_grad_meta(request: FusionGradRequest) -> Gradients:
    """Return empty outputs; there is no ``dpse``, as torch_npu's own shape function says."""
    forward = request.forward
    given = (forward.query, forward.key, forward.value)
    dq, dk, dv = (one.new_empty(one.shape, dtype=forward.query.dtype) for one in given)
    return dq, dk, dv, None, _empty_or_like(forward.sink, dq)


def fusion_attention_grad_v2_meta(request: FusionGradRequest) -> GradientsV2:
    """Return empty outputs; torch_npu's own shape function fails in every call."""
    *gradients, dsink = fusion_attention_grad_meta(request)
    return *gradients, None, None, dsink  # type: ignore[return-value]


def _check_forward(request: FusionGradRequest) -> None:
    forward, named = request.forward, vars(request)
    for name in ("dy", "attention_in"):
        forward.check.same_dtype(name, named[name], "query", forward.query)
        forward.check.shape(name, named[name], attention_shape(forward), meaning="the forward call's result")
    for name in ("softmax_max", "softmax_sum"):
        forward.check.dtype(name, named[name], "float32")
        forward.check.shape(name, named[name], softmax_shape(forward), meaning="as the forward call gave it")


def _differentiate(
    request: FusionGradRequest,
    span: Span,
    gradients: tuple[Tensor, Tensor, Tensor],
    dsink: Tensor,
    dropout: Dropout | None,
) -> None:
    forward = request.forward
    dtype = forward.query.dtype
    queries, keys, values = forward.rows_of(span.batch, span.window, span.kept)
    dy, attention = (
        rows(one, forward.input_layout, forward.head_num, span.batch, span.window)
        for one in (request.dy, request.attention_in)
    )
    kept = (one.contiguous() for one in (request.softmax_max, request.softmax_sum))
    maximum, total = (softmax_rows(forward, one, span)[..., :1] for one in kept)
    scores_in = scores_of(forward, span)
    key_sums, value_sums = torch.zeros(keys.shape), torch.zeros(values.shape)
    for window in pieces(forward.head_num, span):
        weights = (scores_in(queries, keys, window) - maximum[:, window]).exp() / total[:, window]
        own = (dy[:, window].float() * attention[:, window].float()).sum(-1, keepdim=True)
        if forward.sink is not None:
            weight = (sink_of(forward, maximum[:, window]) / total[:, window]).nan_to_num(0)  # 0 where all is hidden
            dsink -= (weight * own).sum((1, 2))
        through = dropped(dropout, forward, span, products(dy[:, window], values), window)
        changes = half_away_from_zero(weights * (through - own), dtype)
        used = dropped(dropout, forward, span, weights, window)
        value_sums += _gathered(half_away_from_zero(used, dtype), dy[:, window], len(keys))
        key_sums += _gathered(changes, queries[:, window], len(keys))
        gradients[0][:, window] = half_away_from_zero(products(changes, keys.transpose(1, 2)) * forward.scale, dtype)
    gradients[1][:] = half_away_from_zero(key_sums * forward.scale, dtype)
    gradients[2][:] = half_away_from_zero(value_sums, dtype)


def _gathered(weights: Tensor, each: Tensor, kv_heads: int) -> Tensor:
    """Sum [heads, rows, n], weighted by [heads, rows, keys], over a group's heads and rows: [kv heads, keys, n]."""
    weights, each = (one.float().reshape(kv_heads, -1, one.shape[-1]) for one in (weights, each))
    return torch.bmm(weights.transpose(1, 2), each)
