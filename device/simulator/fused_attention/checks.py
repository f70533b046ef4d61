"""What aclnn refuses of dtypes, sizes and sinks; the entry to all checks.

Sources: DOC of both operator versions and CANN's checkers for ``fused_infer_attention_score``. Where they
disagree, the profile chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention.antiquant_checks import check_antiquant, check_integers
from npudiff.device.simulator.fused_attention.axes import row_axis
from npudiff.device.simulator.fused_attention.extras_checks import check_extras
from npudiff.device.simulator.fused_attention.full_quant import check_int8_query
from npudiff.device.simulator.fused_attention.layouts import Geometry, measure
from npudiff.device.simulator.fused_attention.length_checks import check_lengths, check_paging
from npudiff.device.simulator.fused_attention.mask_checks import check_inner_precise, check_mask, check_sparse_mode
from npudiff.device.simulator.fused_attention.output_checks import check_int8_output, check_shift
from npudiff.device.simulator.fused_attention.rope_checks import check_layout, check_narrow_dims, check_rope
from npudiff.device.simulator.fused_attention.shapes import INT4_PER_INT32

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile

_MAX_HEADS = 256
_MAX_HEAD_DIM = 512
_HEAD_DIM_STEP = 16
_MAX_BATCH = 65536
_MAX_HIDDEN = 65535
_MAX_DECODE_KEYS = 262144
_MAX_KEYS = 20 * 1024 * 1024
_MAX_SINK_VALUE_DIM = 128


def check(request: FusedAttentionRequest, profile: CannProfile) -> Geometry:
    """Refuse what the operator refuses, then what the simulator cannot do.

    Parameters
    ----------
    request : FusedAttentionRequest
        A call that the wrapper lets pass, with a query that is not empty.
    profile : CannProfile
        Decides where sources disagree.

    Returns
    -------
    Geometry
        The sizes of the call.

    Raises
    ------
    OperatorRejected
        With aclnn's code, naming the argument.
    NotSimulated
        A layout, dtype or feature that only hardware has.
    """
    check_layout(request)
    check_extras(request)
    _check_dtypes(request)
    _check_contiguity(request, profile)
    _check_heads(request, profile)
    if request.block_table is not None:
        check_paging(request, request.block_table, profile)
    geometry = measure(request)
    _check_head_dims(request, geometry, profile)
    check_lengths(request, geometry, profile)
    if request.integer_cache:
        check_antiquant(request, geometry, profile)
    _check_limits(request, geometry)
    check_int8_output(request, geometry)
    if request.shift is not None:
        check_shift(request, request.shift, geometry)
    check_sparse_mode(request, geometry, profile)
    check_mask(request, geometry, profile)
    check_inner_precise(request, geometry, profile)
    if request.sink is not None:
        _check_sink(request, request.sink, geometry, profile)
    return geometry


def _check_dtypes(request: FusedAttentionRequest) -> None:
    query, key, value = request.query, request.key, request.value
    if query.dtype == torch.int8:
        check_int8_query(request)
        return
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise request.check.rejected("query", query.dtype, "float16, bfloat16 or int8", ErrorCode.PARAMETER)
    if request.integer_cache:
        check_integers(request)
        return
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise request.check.rejected(name, tensor.dtype, f"the query's dtype {query.dtype}", ErrorCode.PARAMETER)


def _check_contiguity(request: FusedAttentionRequest, profile: CannProfile) -> None:
    key, value, key_rope = request.key, request.value, request.key_rope
    if request.block_table is not None:
        # A cache may have gaps between its blocks, and nowhere else: it is addressed by blocks, and no copy is made of
        # it (CANN's tests test_fia_*noncontiguous*).
        caches = (key, value) if key_rope is None else (key, value, key_rope)
        key, value, *rope = (cache[0] if len(cache) else cache for cache in caches)
        key_rope = rope[0] if rope else None
        request.check.contiguous(key=key, value=value, key_rope=key_rope)
    elif profile.strided_keys == "rejected":
        request.check.contiguous(key=key, value=value, key_rope=key_rope)
    if profile.non_contiguous == "rejected":
        table, mask = request.block_table, request.mask
        request.check.contiguous(query=request.query, atten_mask=mask, block_table=table, key=key, value=value)
        request.check.contiguous(query_rope=request.query_rope, key_rope=key_rope)


def _check_heads(request: FusedAttentionRequest, profile: CannProfile) -> None:
    heads, kv_heads = request.heads, request.kv_heads
    if heads > _MAX_HEADS:
        raise request.check.rejected(request.names.heads, heads, f"at most {_MAX_HEADS}")
    if heads % kv_heads:
        raise request.check.rejected("num_key_value_heads", kv_heads, f"a divisor of {request.names.heads} {heads}")
    limit = None if request.query_rope is not None else profile.max_group_size
    if limit is not None and heads // kv_heads > limit:
        allowed = f"at least {request.names.heads} / {limit}"
        raise request.check.rejected("num_key_value_heads", kv_heads, allowed)
    _check_head_axis(request, "query", request.query, heads)
    if request.block_table is None:
        if request.key.dim() != request.query.dim():
            allowed = f"the query's rank {request.query.dim()}, without block_table"
            raise request.check.rejected("key", f"of rank {request.key.dim()}", allowed, ErrorCode.PARAMETER)
        _check_head_axis(request, "key", request.key, kv_heads)
        _check_head_axis(request, "value", request.value, kv_heads)


def _check_head_axis(request: FusedAttentionRequest, name: str, tensor: Tensor, heads: int) -> None:
    if "H" in request.axes:
        if tensor.shape[2] % heads:
            raise request.check.rejected(name, f"of hidden size {tensor.shape[2]}", f"a multiple of its {heads} heads")
        return
    axis = request.axes.index("N")
    if tensor.shape[axis] != heads:
        given = f"{list(tensor.shape)} with {tensor.shape[axis]} heads on axis {axis}"
        raise request.check.rejected(name, given, f"{heads} heads, as the head count arguments say")


def _check_head_dims(request: FusedAttentionRequest, geometry: Geometry, profile: CannProfile) -> None:
    key_dim = _key_head_dim(request)
    if key_dim != geometry.head_dim:
        raise request.check.rejected("key", f"of head dim {key_dim}", f"the query's head dim {geometry.head_dim}")
    for name, dim in (("query", geometry.head_dim), ("value", geometry.value_dim)):
        step = 2 * _HEAD_DIM_STEP if request.query.dtype == torch.int8 else _HEAD_DIM_STEP
        if not 0 < dim <= _MAX_HEAD_DIM or dim % step:
            allowed = f"a multiple of {step} up to {_MAX_HEAD_DIM}"
            raise request.check.rejected(name, f"of head dim {dim}", allowed)
    if request.query_rope is not None and request.key_rope is not None:
        check_rope(request, request.query_rope, request.key_rope, geometry, profile)
    else:
        check_narrow_dims(request, geometry, profile)
    if request.packed and request.query.dtype == torch.float16 and profile.tnd_float16 == "rejected":
        raise request.check.rejected("query", f"float16 in {request.layout}", "bfloat16", ErrorCode.PARAMETER)


def _key_head_dim(request: FusedAttentionRequest) -> int:
    paged = request.block_table is not None
    packing = INT4_PER_INT32 if request.key.dtype == torch.int32 else 1
    if paged and request.key.dim() == 5:
        return request.key.shape[2] * request.key.shape[4]
    hidden_axis = request.key.dim() == 3 if paged else "H" in request.axes
    if hidden_axis:
        return request.key.shape[2] * packing // request.kv_heads
    return request.key.shape[-1] * packing


def _check_limits(request: FusedAttentionRequest, geometry: Geometry) -> None:
    query, key, value = request.query, request.key, request.value
    if geometry.batch > _MAX_BATCH:
        raise request.check.rejected("query", f"of batch {geometry.batch}", f"at most {_MAX_BATCH}")
    if request.block_table is None and not request.packed and len(key) != geometry.batch:
        raise request.check.rejected("key", f"of batch {len(key)}", f"the query's batch {geometry.batch}")
    if request.block_table is None and _token_axes(request, key) != _token_axes(request, value):
        raise request.check.rejected(
            "value", f"of shape {list(value.shape)}", f"as many tokens as key {list(key.shape)}"
        )
    hidden = request.heads * geometry.head_dim
    # DOC has 128 heads of 512 for the form with a rotated part.
    limited = request.axes in ("BSH", "BSND") and request.query_rope is None
    if limited and geometry.query_rows > 1 and hidden >= _MAX_HIDDEN:
        raise request.check.rejected("query", f"of {hidden} elements per token", f"fewer than {_MAX_HIDDEN}")
    limit = _MAX_DECODE_KEYS if geometry.decode else _MAX_KEYS
    if request.block_table is None and geometry.key_rows > limit:
        raise request.check.rejected("key", f"of {geometry.key_rows} tokens, queries {query.shape}", f"at most {limit}")


def _token_axes(request: FusedAttentionRequest, tensor: Tensor) -> tuple[int, ...]:
    rows = tensor.shape[row_axis(request.axes)]
    return (rows,) if request.packed else (tensor.shape[0], rows)


def _check_sink(request: FusedAttentionRequest, sink: Tensor, geometry: Geometry, profile: CannProfile) -> None:
    """Refuse sinks of other layouts; DOC: shape [heads], bfloat16, value head dim up to 128."""
    if request.layout not in ("TND", "NTD_TND"):
        raise request.check.rejected("learnable_sink", f"given with layout {request.layout}", "layout TND or NTD_TND")
    if tuple(sink.shape) != (request.heads,):
        raise request.check.rejected("learnable_sink", f"of shape {list(sink.shape)}", f"[{request.heads}]")
    if str(sink.dtype).removeprefix("torch.") not in profile.sink_dtypes:
        allowed = " or ".join(profile.sink_dtypes)
        raise request.check.rejected("learnable_sink", sink.dtype, allowed, ErrorCode.PARAMETER)
    if geometry.value_dim > _MAX_SINK_VALUE_DIM:
        given = f"given with value head dim {geometry.value_dim}"
        raise request.check.rejected("learnable_sink", given, f"value head dim up to {_MAX_SINK_VALUE_DIM}")
