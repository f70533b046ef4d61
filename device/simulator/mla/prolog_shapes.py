"""Shapes and dtypes of what ``npu_mla_prolog`` returns, by the rules of the wheel's META."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npudiff.device.simulator.mla.prolog_request import V1, V2, V3, V3_FUNCTIONAL, PrologRequest, check_host, normalise
from npudiff.device.simulator.profiles import active_profile

_DTYPE = torch.bfloat16


def placeholders(like: Tensor, request: PrologRequest) -> tuple[Tensor, Tensor, Tensor]:
    """Return dequant_scale_q_nope, query_norm and dequant_scale_q_norm of a call that has none of them."""
    shape = [0] if active_profile().mla_prolog_placeholders == "empty" else [1]
    scale = like.new_zeros(shape, dtype=torch.float32)
    return scale, like.new_zeros(shape, dtype=request.weight_uq_qr.dtype), scale.clone()


def _query_shapes(request: PrologRequest) -> tuple[list[int], list[int]]:
    """Return the shapes of query and query_rope by META's rule, after META's checks."""
    check_host(request)
    heads, _, latent = request.weight_uk.shape
    axis = request.token_x.dim() - 1
    if request.rope_sin.dim() <= axis:
        # META would ask for an axis that is not there.
        allowed = f"the rank of token_x, {request.token_x.dim()}"
        raise request.rejected("rope_sin", f"of rank {request.rope_sin.dim()}", allowed)
    return [*request.tokens, heads, latent], [*request.tokens, heads, request.rope_sin.shape[axis]]


def mla_prolog_meta(*tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: ANN401
    """Allocate all outputs: META does not show the alias."""
    request = normalise(V1, tensors, options)
    query, query_rope = (request.rope_sin.new_empty(shape) for shape in _query_shapes(request))
    return query, query_rope, torch.empty_like(request.kv_cache), torch.empty_like(request.kr_cache)


def mla_prolog_v2_meta(*tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # noqa: ANN401
    """Allocate all outputs; of quantised calls too, whose query is int8 and whose scales are many."""
    request = normalise(V2, tensors, options)
    query, query_rope = _query_shapes(request)
    quantised = request.token_x.dtype == torch.int8 and "quant_scale_ckv" in dict(request.extras)
    tokens = request.token_x.shape[:-1].numel()
    scales = [tokens, request.weight_uk.shape[0], 1] if quantised else [1]
    return (
        request.rope_sin.new_empty(query, dtype=torch.int8 if quantised else request.rope_sin.dtype),
        request.rope_sin.new_empty(query_rope, dtype=_DTYPE),
        torch.empty_like(request.kv_cache),
        torch.empty_like(request.kr_cache),
        request.rope_sin.new_empty(scales, dtype=torch.float32),
    )


def _outputs_v3_meta(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Follow META for calls without quantisation.

    Raises
    ------
    NotSimulated
        A weight_quant_mode or kv_cache_quant_mode, for which META has other rules.
    """
    for argument in ("weight_quant_mode", "kv_cache_quant_mode"):
        given = dict(request.extras).get(argument, 0)
        if given:
            raise request.not_simulated(argument, given, "0, without quantisation")
    query, query_rope = (request.rope_sin.new_empty(shape, dtype=_DTYPE) for shape in _query_shapes(request))
    scale_nope, norm, scale_norm = placeholders(query, request)
    if request.query_norm_flag:
        norm = query.new_empty([*request.tokens, request.weight_dq.shape[1]], dtype=request.weight_uq_qr.dtype)
    return query, query_rope, scale_nope, norm, scale_norm


def mla_prolog_v3_meta(*tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # noqa: ANN401
    """Allocate all outputs."""
    return _outputs_v3_meta(normalise(V3, tensors, options))


def mla_prolog_v3_functional_meta(*tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    """Allocate all outputs."""
    request = normalise(V3_FUNCTIONAL, tensors, options)
    return *_outputs_v3_meta(request), torch.empty_like(request.kv_cache), torch.empty_like(request.kr_cache)
