"""Queries of int8: the two forms, their checks, and the arithmetic that goes with a call.

Per tensor, three numbers go with int8 queries, keys and values of several queries in the plain layouts
(``dequant_scale1``, ``quant_scale1``, ``dequant_scale2``). In latent attention each query and head has a scale, all
keys have one and all values one, the rotated parts stay in bfloat16, and the cache is in NZ order. Sources: DOC of both
versions and of ``npu_prompt_flash_attention``, CANN's checks (``CheckParaExistenceMlaFullquant``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.fused_attention.arithmetic import Floats, Halves, LatentInt8, ProductScales
from npudiff.device.simulator.fused_attention.layouts import rows
from npudiff.device.simulator.fused_attention.length_checks import check_tiles
from npudiff.device.simulator.quantisation.hardware_scales import decoded, shortened

if TYPE_CHECKING:
    from npudiff.device.simulator.fused_attention.arithmetic import Arithmetic
    from npudiff.device.simulator.fused_attention.layouts import Span
    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.profiles import CannProfile

LATENT_SCALES = ("dequant_scale_query", "dequant_scale_key", "dequant_scale_value")
"""The scales of latent attention, which only the second version has."""

LATENT_NAMES = frozenset({*LATENT_SCALES, "query_quant_mode"})
"""Arguments that an int8 query of latent attention has a use for."""

_PER_TOKEN_AND_HEAD = 3
_LATENT_BLOCK = 128
_CAUSAL = 3
_MAX_QUERIES = 16
_ROPE_DIM = 64
_WORDS = (torch.uint64, torch.int64)


def check_int8_query(request: FusedAttentionRequest) -> None:
    """Refuse int8 queries that neither form has.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        The second version without rotated parts, for which no source has scales.
    """
    if request.query_rope is not None:
        _check_latent(request)
    elif not request.names.full_quant:
        raise request.check.not_simulated("query", "int8 without query_rope", "int8 with query_rope and head dim 512")
    else:
        _check_per_tensor(request)
    for argument in ("key", "value"):
        tensor: Tensor = getattr(request, argument)
        if tensor.dtype != torch.int8:
            raise request.check.rejected(argument, tensor.dtype, "torch.int8, as query", ErrorCode.PARAMETER)


def _check_per_tensor(request: FusedAttentionRequest) -> None:
    for name, floats in zip(request.names.full_quant, (False, True, False), strict=True):
        scale = request.given_extra(name)
        if not isinstance(scale, Tensor):
            raise request.check.rejected(name, "None", "given, for an int8 query")
        dtypes = (torch.float32,) if floats else (torch.float32, *_WORDS)
        if scale.dtype not in dtypes:
            allowed = "float32" if floats else "float32 or uint64"
            raise request.check.rejected(name, scale.dtype, allowed, ErrorCode.PARAMETER)
        if scale.numel() != 1:
            raise request.check.rejected(name, f"of shape {list(scale.shape)}", "1 element")


def _check_latent(request: FusedAttentionRequest) -> None:
    if not any(name in LATENT_SCALES for name, _ in request.extras) and request.names.full_quant:
        raise request.check.rejected("query", "int8 with query_rope", "a 16-bit query; the second version has scales")
    if request.given_extra("query_quant_mode") != _PER_TOKEN_AND_HEAD:
        given = request.given_extra("query_quant_mode") or 0
        raise request.check.rejected("query_quant_mode", given, f"{_PER_TOKEN_AND_HEAD}, with an int8 query")
    for name in LATENT_SCALES:
        scale = request.given_extra(name)
        if not isinstance(scale, Tensor):
            raise request.check.rejected(name, "None", "float32, for an int8 query")
        if scale.dtype != torch.float32:
            raise request.check.rejected(name, scale.dtype, "float32", ErrorCode.PARAMETER)
    if request.block_table is None or request.key.dim() != 5:
        raise request.check.rejected("key", f"int8 of rank {request.key.dim()}", "pages in NZ order, of rank 5")
    for name in ("key", "value"):
        check_tiles(request, name, getattr(request, name))
    if request.block_size != _LATENT_BLOCK:
        raise request.check.rejected("block_size", f"{request.block_size} with int8", f"{_LATENT_BLOCK}")
    _check_latent_shapes(request)
    _check_latent_mask(request)


def _check_latent_shapes(request: FusedAttentionRequest) -> None:
    sizes = _row_shape(request)
    given = _tensor(request, "dequant_scale_query")
    if given.numel() != torch.Size(sizes).numel():
        meaning = "that of query without its dim"
        raise request.check.rejected("dequant_scale_query", f"of shape {list(given.shape)}", f"{sizes}, {meaning}")
    for name in LATENT_SCALES[1:]:
        if _tensor(request, name).numel() != 1:
            raise request.check.rejected(name, f"of shape {list(_tensor(request, name).shape)}", "[1]")


def _check_latent_mask(request: FusedAttentionRequest) -> None:
    """Refuse other masks than DOC has: none for one query, a causal template for several."""
    queries = None if request.packed else request.query.shape[request.axes.index("S")]
    if queries is not None and queries > _MAX_QUERIES:
        raise request.check.rejected("query", f"int8 of {queries} queries", f"at most {_MAX_QUERIES}")
    if request.mask is None and request.sparse_mode == 0:
        return
    if request.sparse_mode != _CAUSAL or queries == 1:
        allowed = f"{_CAUSAL} with a mask, or 0 without; 0 for one query"
        raise request.check.rejected("sparse_mode", f"{request.sparse_mode} with an int8 query", allowed)


def _row_shape(request: FusedAttentionRequest) -> list[int]:
    """Return the axes of the query without its dim: of BSH those of [B, S, N]."""
    shape = list(request.query.shape)
    return [*shape[:2], request.heads] if "H" in request.axes else shape[:-1]


def _tensor(request: FusedAttentionRequest, name: str) -> Tensor:
    found = request.given_extra(name)
    if not isinstance(found, Tensor):
        raise TypeError(f"{name}, which was checked, is missing")
    return found


def arithmetic_of(request: FusedAttentionRequest, span: Span, profile: CannProfile) -> Arithmetic:
    """Return what the steps of one sequence of a checked call round."""
    if request.query.dtype != torch.int8:
        fast = request.names.halves and request.query.dtype == torch.float16 and request.shift is None
        fast = fast and request.inner_precise == 1 and profile.prompt_float16 == "float16"
        return Halves() if fast else Floats()
    if request.query_rope is None:
        first, middle, last = (_tensor(request, name) for name in request.names.full_quant)
        return Halves(ProductScales(_number(first), float(middle), _number(last)))
    scale = _tensor(request, "dequant_scale_query").reshape(*_row_shape(request), 1)
    axes = request.axes.replace("H", "ND")
    window = range(span.query_start, span.query_start + span.query_length)
    of_rows = rows(scale, axes, request.heads, span.batch, window) * _tensor(request, "dequant_scale_key").flatten()
    grouped = of_rows.reshape(request.kv_heads, request.heads // request.kv_heads, len(window), 1)
    value_scale = float(_tensor(request, "dequant_scale_value"))
    return LatentInt8(grouped, value_scale, rope_dim=_ROPE_DIM)


def _number(scale: Tensor) -> float:
    """Return a scale as the matrix unit takes it: the upper 19 bits, of a float32 or of a word of 64."""
    if scale.dtype in _WORDS:
        scale = decoded(scale.view(torch.int64).reshape(1))[0]
    return float(shortened(scale.reshape(1)))
