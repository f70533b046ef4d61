"""The operators: functional, ``.out``, workspace and output-inference forms of both versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from npudiff.device.simulator.errors import ErrorCode, OperatorRejected
from npudiff.device.simulator.fused_attention import schemas
from npudiff.device.simulator.fused_attention.checks import check
from npudiff.device.simulator.fused_attention.flash import Softmax, attend
from npudiff.device.simulator.fused_attention.layouts import Geometry, lse_rows, rows, spans
from npudiff.device.simulator.fused_attention.paging import key_values
from npudiff.device.simulator.fused_attention.request import (
    V1_NAMES,
    V2_NAMES,
    ArgumentNames,
    FusedAttentionRequest,
    normalise,
)
from npudiff.device.simulator.fused_attention.shapes import check_wrapper, empty_outputs
from npudiff.device.simulator.fused_attention.visibility import check_template, see
from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.profiles import CannProfile, active_profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_V1 = "npu_fused_infer_attention_score"
_V2 = "npu_fused_infer_attention_score_v2"

# A number of our own: the content is scratch, and nothing reads it here.
_WORKSPACE_BYTES = 1024


def fused_attention(request: FusedAttentionRequest) -> tuple[Tensor, Tensor]:
    """Run one call on CPU tensors, under the active profile.

    Returns
    -------
    attention : Tensor
        In the layout and dtype of the query, with the values' head dim. Rows beyond an actual query length
        are 0.
    lse : Tensor
        float32 [B, N, S, 1] or [T, N, 1], if asked for: -inf beyond an actual query length, +inf where a row
        was forced empty.

    Raises
    ------
    OperatorRejected
        The real operator refuses the call.
    NotSimulated
        It may be legal, but is not implemented here.
    UndefinedBehaviour
        A block id or a compressed mask has a content that the operator does not check and cannot work with.
    """
    profile = active_profile()
    check_wrapper(request)
    attention, lse = empty_outputs(request, profile)
    attention.zero_()
    if request.return_lse:
        lse.fill_(-torch.inf)
    if request.query.numel() == 0:
        return attention, lse
    geometry = check(request, profile)
    check_template(request, geometry)
    for quirk in profile.quirks:
        if quirk.on_request is not None:
            request = quirk.on_request(request)
    if geometry.key_rows == 0 and request.return_lse:
        lse.fill_(torch.inf)
    _attend_sequences(request, geometry, profile, attention, lse if request.return_lse else None)
    return attention, lse


def _attend_sequences(
    request: FusedAttentionRequest,
    geometry: Geometry,
    profile: CannProfile,
    attention: Tensor,
    lse: Tensor | None,
) -> None:
    sink = None if request.sink is None else request.sink.float()
    softmax = Softmax(request.scale, sink, profile.lse_includes_sink)
    for span in spans(request, geometry):
        if span.query_length == 0:
            continue
        visibility = see(request, geometry, span, profile)
        for quirk in profile.quirks:
            if quirk.on_visibility is not None:
                visibility = quirk.on_visibility(request, visibility)
        window = range(span.query_start, span.query_start + span.query_length)
        where = (request.layout, request.heads, span.batch, window)
        attend(
            rows(request.query, *where),
            key_values(request, span),
            visibility,
            softmax,
            kv_heads=request.kv_heads,
            output=rows(attention, *where),
            lse=None if lse is None else lse_rows(lse, request.layout, span.batch, window),
        )


def _functional(name: str, names: ArgumentNames) -> Callable[..., tuple[Tensor, Tensor]]:
    def kernel(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        return fused_attention(normalise(name, names, (query, key, value), arguments))

    return kernel


def _functional_meta(name: str, names: ArgumentNames) -> Callable[..., tuple[Tensor, Tensor]]:
    def kernel(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        request = normalise(name, names, (query, key, value), arguments)
        check_wrapper(request)
        return empty_outputs(request, active_profile())

    return kernel


def _out(name: str, names: ArgumentNames) -> Callable[..., tuple[Tensor, Tensor]]:
    def kernel(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        out: list[Tensor],
        **arguments: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        request = normalise(name, names, (query, key, value), arguments)
        attention, lse = fused_attention(request)
        _check_out(request, out, attention, lse)
        out[0].copy_(attention)
        if request.return_lse:
            out[1].copy_(lse)
        return out[0], out[1]

    return kernel


def _check_out(request: FusedAttentionRequest, out: list[Tensor], attention: Tensor, lse: Tensor) -> None:
    """Refuse outputs of another shape or dtype; the log-sum-exp only where it is written.

    Graph users pass any tensor for a log-sum-exp that they do not want (vllm-ascend, mla_v1.py).
    """
    if len(out) != 2:
        given = f"a list of {len(out)} tensors"
        allowed = "[attention_out, softmax_lse]"
        raise OperatorRejected(request.operator, "out", given, allowed, ErrorCode.WRAPPER)
    wanted = [("out[0]", attention, out[0])] + ([("out[1]", lse, out[1])] if request.return_lse else [])
    for argument, computed, given_tensor in wanted:
        if given_tensor.shape != computed.shape or given_tensor.dtype != computed.dtype:
            given = f"{given_tensor.dtype} {list(given_tensor.shape)}"
            allowed = f"{computed.dtype} {list(computed.shape)}"
            raise OperatorRejected(request.operator, argument, given, allowed, ErrorCode.PARAMETER)


def _out_meta(
    query: Tensor,  # noqa: ARG001 - the dispatcher passes what the schema has
    key: Tensor,  # noqa: ARG001
    value: Tensor,  # noqa: ARG001
    *,
    out: list[Tensor],
    **_: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor]:
    return out[0], out[1]


def _workspace(name: str, names: ArgumentNames) -> Callable[..., Tensor]:
    def kernel(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:  # noqa: ANN401
        # Asking aclnn for a workspace is its first phase, which checks all that the call would check.
        request = normalise(name, names, (query, key, value), arguments)
        check_wrapper(request)
        if query.numel():
            check(request, active_profile())
        return query.new_empty(_WORKSPACE_BYTES, dtype=torch.uint8)

    return kernel


def _workspace_meta(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:  # noqa: ANN401, ARG001
    return query.new_empty(_WORKSPACE_BYTES, dtype=torch.uint8)


def _infer_output(name: str, names: ArgumentNames) -> Callable[..., tuple[Tensor, Tensor]]:
    def kernel(query: Tensor, value: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        request = normalise(name, names, (query, value, value), arguments)
        check_wrapper(request)
        return empty_outputs(request, active_profile())

    return kernel


def _operators() -> tuple[Operator, ...]:
    infer_v1 = _infer_output(f"_{_V1}_infer_output", V1_NAMES)
    infer_v2 = _infer_output(f"_{_V2}_infer_output", V2_NAMES)
    return (
        Operator(schemas.FUSED_ATTENTION, _functional(_V1, V1_NAMES), _functional_meta(_V1, V1_NAMES)),
        Operator(schemas.FUSED_ATTENTION_OUT, _out(_V1, V1_NAMES), _out_meta),
        Operator(schemas.FUSED_ATTENTION_WORKSPACE, _workspace(_V1, V1_NAMES), _workspace_meta),
        Operator(schemas.FUSED_ATTENTION_INFER_OUTPUT, infer_v1, infer_v1),
        Operator(schemas.FUSED_ATTENTION_V2, _functional(_V2, V2_NAMES), _functional_meta(_V2, V2_NAMES)),
        Operator(schemas.FUSED_ATTENTION_V2_OUT, _out(_V2, V2_NAMES), _out_meta),
        Operator(schemas.FUSED_ATTENTION_V2_WORKSPACE, _workspace(_V2, V2_NAMES), _workspace_meta),
        Operator(schemas.FUSED_ATTENTION_V2_INFER_OUTPUT, infer_v2, infer_v2),
    )


OPERATORS = _operators()
"""Both versions of the operator with all their forms."""
