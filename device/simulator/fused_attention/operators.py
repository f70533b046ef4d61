"""The operators: functional, ``.out``, workspace and output-inference forms of both versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention import schemas
from npudiff.device.simulator.fused_attention.antiquant import key_values
from npudiff.device.simulator.fused_attention.axes import LAYOUTS
from npudiff.device.simulator.fused_attention.checks import check
from npudiff.device.simulator.fused_attention.dropout import gen_mask, gen_mask_meta
from npudiff.device.simulator.fused_attention.flash import Softmax, attend
from npudiff.device.simulator.fused_attention.full_quant import arithmetic_of
from npudiff.device.simulator.fused_attention.fusion import (
    fusion_attention,
    fusion_attention_meta,
    fusion_attention_v3,
    fusion_attention_v3_meta,
)
from npudiff.device.simulator.fused_attention.fusion_grad import (
    fusion_attention_grad,
    fusion_attention_grad_meta,
    fusion_attention_grad_v2,
    fusion_attention_grad_v2_meta,
    normalise_fusion_grad,
    normalise_fusion_grad_v2,
    normalise_fusion_grad_v3,
)
from npudiff.device.simulator.fused_attention.fusion_request import (
    normalise_fusion,
    normalise_fusion_v2,
    normalise_fusion_v3,
)
from npudiff.device.simulator.fused_attention.layouts import Geometry, lse_rows, rows, spans
from npudiff.device.simulator.fused_attention.prompt import check_branch, normalise_incremental, normalise_prompt
from npudiff.device.simulator.fused_attention.request import (
    V1_NAMES,
    V2_NAMES,
    ArgumentNames,
    FusedAttentionRequest,
    normalise,
)
from npudiff.device.simulator.fused_attention.rounding import HalfInt8, Int8
from npudiff.device.simulator.fused_attention.shapes import check_wrapper, empty_outputs
from npudiff.device.simulator.fused_attention.shared_prefix import with_shared_prefix
from npudiff.device.simulator.fused_attention.sparse_modes import check_template, see
from npudiff.device.simulator.fused_attention.update import attention_update, attention_update_meta
from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.schemas import qualified_name

if TYPE_CHECKING:
    from torch import Tensor

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
    request = with_shared_prefix(request, profile)
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
    int8 = _int8_output(request, geometry)
    queries = (request.query,) if request.query_rope is None else (request.query, request.query_rope)
    for span in spans(request, geometry):
        if span.query_length == 0:
            continue
        visibility = see(request, geometry, span, profile)
        for quirk in profile.quirks:
            if quirk.on_visibility is not None:
                visibility = quirk.on_visibility(request, visibility)
        window = range(span.query_start, span.query_start + span.query_length)
        where = (request.heads, span.batch, window)
        shift = None if request.shift is None else request.shift[span.batch % len(request.shift)]
        softmax = Softmax(request.scale, sink, profile.lse_includes_sink, shift)
        attend(
            torch.cat([rows(part, request.axes, *where) for part in queries], -1),
            key_values(request, span, profile),
            visibility,
            softmax,
            kv_heads=request.kv_heads,
            output=rows(attention, LAYOUTS[request.layout].output, *where),
            lse=None if lse is None else lse_rows(lse, span.batch, window),
            int8=int8,
            arithmetic=arithmetic_of(request, span, profile),
        )


def _int8_output(request: FusedAttentionRequest, geometry: Geometry) -> Int8 | HalfInt8 | None:
    """Return what makes int8 of a call's output, with numbers per tensor or per head and channel."""
    if request.out_scale is None:
        return None
    shape = (1,) if request.out_scale.numel() == 1 else (request.heads, 1, geometry.value_dim)
    kind = HalfInt8 if request.query.dtype == torch.int8 else Int8
    return kind(request.out_scale.view(shape), None if request.out_offset is None else request.out_offset.view(shape))


def _out(request: FusedAttentionRequest) -> tuple[Tensor, Tensor]:
    attention, lse = fused_attention(request)
    _check_out(request, attention, lse)
    request.out[0].copy_(attention)
    if request.return_lse:
        request.out[1].copy_(lse)
    return request.out[0], request.out[1]


def _check_out(request: FusedAttentionRequest, attention: Tensor, lse: Tensor) -> None:
    """Refuse outputs of another shape or dtype; the log-sum-exp only where it is written.

    Graph users pass any tensor for a log-sum-exp that they do not want (vllm-ascend, mla_v1.py).
    """
    out = request.out
    if len(out) != 2:
        given = f"a list of {len(out)} tensors"
        allowed = "[attention_out, softmax_lse]"
        raise request.check.rejected("out", given, allowed, ErrorCode.WRAPPER)
    wanted = [("out[0]", attention, out[0])] + ([("out[1]", lse, out[1])] if request.return_lse else [])
    for argument, computed, given_tensor in wanted:
        if given_tensor.shape != computed.shape or given_tensor.dtype != computed.dtype:
            given = f"{given_tensor.dtype} {list(given_tensor.shape)}"
            allowed = f"{computed.dtype} {list(computed.shape)}"
            raise request.check.rejected(argument, given, allowed, ErrorCode.PARAMETER)


def _out_meta(request: FusedAttentionRequest) -> tuple[Tensor, Tensor]:
    return request.out[0], request.out[1]


def _workspace(request: FusedAttentionRequest) -> Tensor:
    # Asking aclnn for a workspace is its first phase, which checks all that the call would check.
    check_wrapper(request)
    if request.query.numel():
        check(request, active_profile())
    return _workspace_meta(request)


def _workspace_meta(request: FusedAttentionRequest) -> Tensor:
    return request.query.new_empty(_WORKSPACE_BYTES, dtype=torch.uint8)


def _inferred(request: FusedAttentionRequest) -> tuple[Tensor, Tensor]:
    check_wrapper(request)
    return empty_outputs(request, active_profile())


def _branch(request: FusedAttentionRequest) -> Tensor:
    check_branch(request)
    return fused_attention(request)[0]


def _branch_meta(request: FusedAttentionRequest) -> Tensor:
    check_branch(request)
    return empty_outputs(request, active_profile())[0]


Kernel = Callable[[FusedAttentionRequest], object]


def _operators(name: str, names: ArgumentNames, kernels: Mapping[str, tuple[Kernel, Kernel]]) -> Iterator[Operator]:
    """Yield the forms of one version, by their schemas; all but the inference of outputs go by the operator's name."""
    for schema, (cpu, meta) in kernels.items():
        called = qualified_name(schema) if cpu is _inferred else name
        yield Operator(schema, cpu, meta, request=partial(normalise, called, names))


_V1 = {
    schemas.FUSED_ATTENTION: (fused_attention, _inferred),
    schemas.FUSED_ATTENTION_OUT: (_out, _out_meta),
    schemas.FUSED_ATTENTION_WORKSPACE: (_workspace, _workspace_meta),
    schemas.FUSED_ATTENTION_INFER_OUTPUT: (_inferred, _inferred),
}
_V2 = {
    schemas.FUSED_ATTENTION_V2: (fused_attention, _inferred),
    schemas.FUSED_ATTENTION_V2_OUT: (_out, _out_meta),
    schemas.FUSED_ATTENTION_V2_WORKSPACE: (_workspace, _workspace_meta),
    schemas.FUSED_ATTENTION_V2_INFER_OUTPUT: (_inferred, _inferred),
}

_LENGTHS = ("actual_seq_qlen", "actual_seq_kvlen")

OPERATORS = (
    *_operators("npu_fused_infer_attention_score", V1_NAMES, _V1),
    *_operators("npu_fused_infer_attention_score_v2", V2_NAMES, _V2),
    Operator(schemas.PROMPT_FLASH_ATTENTION, _branch, _branch_meta, request=normalise_prompt),
    Operator(schemas.INCRE_FLASH_ATTENTION, _branch, _branch_meta, request=normalise_incremental),
    Operator(schemas.ATTENTION_UPDATE, attention_update, attention_update_meta),
    Operator(schemas.FUSION_ATTENTION, fusion_attention, fusion_attention_meta, request=normalise_fusion),
    Operator(schemas.FUSION_ATTENTION_V2, fusion_attention, fusion_attention_meta, request=normalise_fusion_v2),
    Operator(
        schemas.FUSION_ATTENTION_GRAD,
        fusion_attention_grad,
        fusion_attention_grad_meta,
        request=normalise_fusion_grad,
    ),
    Operator(
        schemas.FUSION_ATTENTION_GRAD_V2,
        fusion_attention_grad_v2,
        fusion_attention_grad_v2_meta,
        request=normalise_fusion_grad_v2,
    ),
    Operator(
        schemas.FUSION_ATTENTION_V3,
        fusion_attention_v3,
        fusion_attention_v3_meta,
        request=normalise_fusion_v3,
        host=_LENGTHS,
        random=True,
    ),
    Operator(
        schemas.FUSION_ATTENTION_GRAD_V3,
        fusion_attention_grad,
        fusion_attention_grad_meta,
        request=normalise_fusion_grad_v3,
        host=(*_LENGTHS, "seed", "offset"),
    ),
    Operator(schemas.DROPOUT_GEN_MASK, gen_mask, gen_mask_meta, random=False),  # its seed is an argument
)
"""Both versions of the operator with all their forms, its branches, what merges partial attention, and what trains."""
