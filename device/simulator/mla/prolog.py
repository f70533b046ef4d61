"""``npu_mla_prolog``, versions 2 and 3, and the functional form of version 3, without quantisation.

Of token_x, four products and two norms:

    query latent  c = norm(x W_dq) * gamma_cq             per token; times qc_qr_scale in version 3
    query         c W_uq_qr is per head [D | Dr]: the first D times W_uk of the head, the last Dr turned
    latent        the first Hckv of x W_dkv_kr, normalised, * gamma_ckv    goes to kv_cache; times kc_scale in version 3
    rope key      the last Dr of x W_dkv_kr, turned                        goes to kr_cache

What turns goes in as pairs (2i, 2i + 1) and comes out in half order, (i, i + Dr / 2), as in ``npu_interleave_rope``;
sine and cosine are in half order, Dr / 2 values twice, and the sine comes first in the arguments.

Products are summed in float32. The goldens of CANN round each of them to bfloat16, ``mla_products`` decides; what
enters a product is bfloat16 in any case. Norms and turns are float32 with one rounding at the end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.mla.pages import pages, write
from npudiff.device.simulator.mla.prolog_checks import (
    CACHE_MODES,
    PrologRequest,
    check,
    check_host,
)
from npudiff.device.simulator.mla.stages import handed_on, product, product_per_head, rms, turned
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.rotary.rotation import deinterleave

if TYPE_CHECKING:
    from npudiff.device.simulator.mla.prolog_checks import PrologSizes


_DTYPE = torch.bfloat16


def prolog(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor]:
    """Write both caches under the active profile and return what the query became.

    Returns
    -------
    query : Tensor
        [T, N, Hckv] or [B, S, N, Hckv], bfloat16.
    query_rope : Tensor
        The same with Dr.
    query_norm : Tensor
        The query latent, [T, Hcq] or [B, S, Hcq], bfloat16.

    Raises
    ------
    OperatorRejected
        The real operator refuses the call.
    NotSimulated
        It may be legal, but is not implemented here.
    DeviceFault
        A slot of cache_index is outside the caches.
    """
    profile = active_profile()
    sizes = check(request, profile)
    fractal = CACHE_MODES[request.cache_mode]
    where = None
    if request.cache_index is not None:
        place = (request.check.operator, "cache_index", request.cache_index, sizes.blocks, sizes.block_size, profile)
        where = pages(*place, fractal=fractal)
    x = request.token_x.reshape(-1, sizes.hidden)
    query, query_rope, query_norm = _queries(request, x, sizes, profile)
    latent, rope = _keys(request, x, sizes, profile)
    if where is not None:
        write(request.kv_cache, latent, where, profile)
        write(request.kr_cache, rope, where, profile)
    shape = (*request.tokens, sizes.heads)
    return (
        query.view(*shape, sizes.latent),
        query_rope.view(*shape, sizes.rope),
        query_norm.view(*request.tokens, sizes.query_rank),
    )


def _queries(
    request: PrologRequest, x: Tensor, sizes: PrologSizes, profile: CannProfile
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query [tokens, N, Hckv], query_rope [tokens, N, Dr] and query_norm [tokens, Hcq]."""
    down = handed_on(product(x, request.weight_dq), _DTYPE, profile)
    normalised = rms(down, request.rmsnorm_gamma_cq, request.rmsnorm_epsilon_cq)
    scaled = (normalised * request.qc_qr_scale).to(_DTYPE)
    up = handed_on(product(scaled, request.weight_uq_qr), _DTYPE, profile)
    up = up.view(len(x), sizes.heads, sizes.nope + sizes.rope)
    nope, rope = up[..., : sizes.nope], up[..., sizes.nope :]
    query = product_per_head(nope.to(_DTYPE), request.weight_uk).to(_DTYPE)
    cos, sin = (angles.reshape(-1, 1, sizes.rope) for angles in (request.rope_cos, request.rope_sin))
    query_rope = turned(deinterleave(rope), cos, sin).to(_DTYPE)
    return query, query_rope, scaled if profile.mla_prolog_query_norm == "scaled" else normalised.to(_DTYPE)


def _keys(request: PrologRequest, x: Tensor, sizes: PrologSizes, profile: CannProfile) -> tuple[Tensor, Tensor]:
    """Return the latent [tokens, Hckv] and the rope key [tokens, Dr]."""
    down = handed_on(product(x, request.weight_dkv_kr), _DTYPE, profile)
    latent = rms(down[:, : sizes.latent], request.rmsnorm_gamma_ckv, request.rmsnorm_epsilon_ckv) * request.kc_scale
    cos, sin = (angles.reshape(-1, sizes.rope) for angles in (request.rope_cos, request.rope_sin))
    return latent.to(_DTYPE), turned(deinterleave(down[:, sizes.latent :]), cos, sin).to(_DTYPE)


def mla_prolog(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return query, query_rope and the caches, which are written in place; the schema shows no alias."""
    query, query_rope, _ = prolog(request)
    return query, query_rope, request.kv_cache, request.kr_cache


def mla_prolog_v2(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what version 1 returns, and a dequant_scale_q_nope [1] that nobody writes."""
    query, query_rope, _ = prolog(request)
    return query, query_rope, request.kv_cache, request.kr_cache, unwritten((1,), torch.float32)


def _outputs_v3(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    query, query_rope, query_norm = prolog(request)
    nothing = placeholders(query, request)
    return query, query_rope, nothing[0], query_norm if request.query_norm_flag else nothing[1], nothing[2]


def mla_prolog_v3(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return query, query_rope, dequant_scale_q_nope, query_norm, dequant_scale_q_norm; caches are written."""
    return _outputs_v3(request)


def mla_prolog_v3_functional(request: PrologRequest) -> tuple[Tensor, ...]:
    """Return what version 3 returns and written copies of both caches."""
    copied = replace(request, kv_cache=request.kv_cache.clone(), kr_cache=request.kr_cache.clone())
    return *_outputs_v3(copied), copied.kv_cache, copied.kr_cache


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
        raise request.check.rejected("rope_sin", f"of rank {request.rope_sin.dim()}", allowed)
    return [*request.tokens, heads, latent], [*request.tokens, heads, request.rope_sin.shape[axis]]


def mla_prolog_meta(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate all outputs: META does not show the alias."""
    query, query_rope = (request.rope_sin.new_empty(shape) for shape in _query_shapes(request))
    return query, query_rope, torch.empty_like(request.kv_cache), torch.empty_like(request.kr_cache)


def mla_prolog_v2_meta(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate all outputs; of quantised calls too, whose query is int8 and whose scales are many."""
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
            raise request.check.not_simulated(argument, given, "0, without quantisation")
    query, query_rope = (request.rope_sin.new_empty(shape, dtype=_DTYPE) for shape in _query_shapes(request))
    scale_nope, norm, scale_norm = placeholders(query, request)
    if request.query_norm_flag:
        norm = query.new_empty([*request.tokens, request.weight_dq.shape[1]], dtype=request.weight_uq_qr.dtype)
    return query, query_rope, scale_nope, norm, scale_norm


def mla_prolog_v3_meta(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate all outputs."""
    return _outputs_v3_meta(request)


def mla_prolog_v3_functional_meta(request: PrologRequest) -> tuple[Tensor, ...]:
    """Allocate all outputs."""
    return *_outputs_v3_meta(request), torch.empty_like(request.kv_cache), torch.empty_like(request.kr_cache)
