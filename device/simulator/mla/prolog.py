"""``npu_mla_prolog``, versions 2 and 3, and the functional form of version 3.

Of token_x, four products and two norms:

    query latent  c = norm(x W_dq) * gamma_cq             per token; times qc_qr_scale in version 3
    query         c W_uq_qr is per head [D | Dr]: the first D times W_uk of the head, the last Dr turned
    latent        the first Hckv of x W_dkv_kr, normalised, * gamma_ckv    goes to kv_cache; times kc_scale in version 3
    rope key      the last Dr of x W_dkv_kr, turned                        goes to kr_cache

What turns goes in as pairs (2i, 2i + 1) and comes out in half order, (i, i + Dr / 2), as in ``npu_interleave_rope``;
sine and cosine are in half order, Dr / 2 values twice, and the sine comes first in the arguments.

Products of bfloat16 are summed in float32. CANN's goldens and kernel round each of them to bfloat16, ``mla_products``
decides; what enters such a product is bfloat16 in any case. Products of int8 are exact, and are float32 behind their
scales; only the part of the query without positions is rounded before the next product. Norms and turns are float32
with one rounding at the end. Of a query in int8 the turned part is multiplied by the cache's scale over the query's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.mla import quantised
from npudiff.device.simulator.mla.pages import pages, write
from npudiff.device.simulator.mla.prolog_checks import CACHE_MODES, check, check_host
from npudiff.device.simulator.mla.prolog_request import PrologRequest
from npudiff.device.simulator.mla.scenes import scene_of
from npudiff.device.simulator.mla.stages import handed_on, product, product_per_head, rms, turned
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.rotary.rotation import deinterleave

if TYPE_CHECKING:
    from npudiff.device.simulator.mla.prolog_request import PrologSizes
    from npudiff.device.simulator.mla.scenes import Scene


_DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Query:
    """What became of the query."""

    nope: Tensor
    """[T, N, Hckv] or [B, S, N, Hckv], bfloat16 or int8."""
    rope: Tensor
    """The same with Dr, bfloat16."""
    norm: Tensor
    """The query latent, [T, Hcq] or [B, S, Hcq], bfloat16 or int8."""
    scale: Tensor | None
    """float32 [tokens, N, 1], of the query in int8."""
    norm_scale: Tensor | None
    """float32 [tokens, 1], of the query latent in int8."""


def prolog(request: PrologRequest) -> Query:
    """Write both caches under the active profile and return what the query became.

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
    sizes, scene = check(request, profile)
    fractal = CACHE_MODES[request.cache_mode]
    where = None
    if request.cache_index is not None:
        place = (request.check.operator, "cache_index", request.cache_index, sizes.blocks, sizes.block_size, profile)
        where = pages(*place, fractal=fractal)
    x = request.token_x.reshape(-1, sizes.hidden)
    query = _queries(request, x, sizes, scene, profile)
    latent, rope = _keys(request, x, sizes, scene, profile)
    if where is not None:
        write(request.kv_cache, latent, where, profile)
        if rope is not None:
            write(request.kr_cache, rope, where, profile)
    shape = (*request.tokens, sizes.heads)
    return replace(
        query,
        nope=query.nope.view(*shape, sizes.latent),
        rope=query.rope.view(*shape, sizes.rope),
        norm=query.norm.view(*request.tokens, sizes.query_rank),
    )


def _given(request: PrologRequest, argument: str) -> Tensor:
    """Return a scale that the checks have required."""
    found = request.scale(argument)
    if found is None:
        raise TypeError(f"{argument}, which was checked, is missing")
    return found


def _down(request: PrologRequest, x: Tensor, weight: str, scale: str, scene: Scene, profile: CannProfile) -> Tensor:
    """Multiply tokens by one of the two weights that lower them; float32."""
    matrix: Tensor = getattr(request, weight)
    if not scene.tokens:
        return handed_on(product(x, matrix), _DTYPE, profile)
    return quantised.int8_product(x, matrix, _given(request, "dequant_scale_x"), _given(request, scale))


def _queries(request: PrologRequest, x: Tensor, sizes: PrologSizes, scene: Scene, profile: CannProfile) -> Query:
    """Return what became of the query, without the axes of token_x."""
    down = _down(request, x, "weight_dq", "dequant_scale_w_dq", scene, profile)
    normalised = rms(down, request.rmsnorm_gamma_cq, request.rmsnorm_epsilon_cq)
    scaled = normalised * request.qc_qr_scale
    norm_scale = None
    if scene.query:
        smooth = request.scale("smooth_scales_cq")
        norm, norm_scale = quantised.per_row(scaled if smooth is None else scaled * smooth)
        columns = _given(request, "dequant_scale_w_uq_qr")
        up = quantised.int8_product(norm, request.weight_uq_qr, norm_scale, columns)
    else:
        latent = scaled.to(_DTYPE)
        up = handed_on(product(latent, request.weight_uq_qr), _DTYPE, profile)
        norm = latent if profile.mla_prolog_query_norm == "scaled" else normalised.to(_DTYPE)
    up = up.view(len(x), sizes.heads, sizes.nope + sizes.rope)
    nope, rope = up[..., : sizes.nope], up[..., sizes.nope :]
    query = product_per_head(nope.to(_DTYPE), request.weight_uk).to(_DTYPE)
    cos, sin = (angles.reshape(-1, 1, sizes.rope) for angles in (request.rope_cos, request.rope_sin))
    query_rope = turned(deinterleave(rope), cos, sin).to(_DTYPE)
    if not scene.query_is_int8:
        return Query(query, query_rope, norm, None, norm_scale)
    query, scale = quantised.per_head(query)
    factor = _given(request, "quant_scale_ckv").flatten()[0] / scale
    return Query(query, (query_rope.float() * factor).to(_DTYPE), norm, scale, norm_scale)


def _keys(
    request: PrologRequest, x: Tensor, sizes: PrologSizes, scene: Scene, profile: CannProfile
) -> tuple[Tensor, Tensor | None]:
    """Return rows for both caches, [tokens, Hckv] and [tokens, Dr]; one row for kv_cache per tile."""
    down = _down(request, x, "weight_dkv_kr", "dequant_scale_w_dkv_kr", scene, profile)
    latent = rms(down[:, : sizes.latent], request.rmsnorm_gamma_ckv, request.rmsnorm_epsilon_ckv) * request.kc_scale
    cos, sin = (angles.reshape(-1, sizes.rope) for angles in (request.rope_cos, request.rope_sin))
    rope = turned(deinterleave(down[:, sizes.latent :]), cos, sin).to(_DTYPE)
    if scene.cache == "none":
        return latent.to(_DTYPE), rope
    if scene.cache == "tile":
        alpha = float(_given(request, "k_nope_clip_alpha"))
        row, scales = quantised.per_tile(latent, request.tile_size, alpha)
        return torch.cat([row, rope.view(torch.int8), scales.view(torch.int8)], -1), None
    scale = _given(request, "quant_scale_ckv")
    if scene.cache == "tensor":
        return quantised.int8(latent * scale.flatten()[0]), rope
    return quantised.int8(latent * scale), quantised.int8(rope.float() * _given(request, "quant_scale_ckr"))


def mla_prolog(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return query, query_rope and the caches, which are written in place; the schema shows no alias."""
    query = prolog(request)
    return query.nope, query.rope, request.kv_cache, request.kr_cache


def mla_prolog_v2(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what version 1 returns, and dequant_scale_q_nope: [1] that nobody writes, unless the query is int8."""
    query = prolog(request)
    scale = unwritten((1,), torch.float32) if query.scale is None else query.scale
    return query.nope, query.rope, request.kv_cache, request.kr_cache, scale


def _outputs_v3(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    query = prolog(request)
    scale, norm, norm_scale = placeholders(query.nope, request)
    if query.scale is not None:
        scale = query.scale
    if request.query_norm_flag:
        norm, norm_scale = query.norm, norm_scale if query.norm_scale is None else query.norm_scale
    return query.nope, query.rope, scale, norm, norm_scale


def mla_prolog_v3(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return query, query_rope, dequant_scale_q_nope, query_norm, dequant_scale_q_norm; caches are written."""
    return _outputs_v3(request)


def mla_prolog_v3_functional(request: PrologRequest) -> tuple[Tensor, ...]:
    """Return what version 3 returns and written copies of both caches."""
    copied = replace(request, kv_cache=request.kv_cache.clone(), kr_cache=request.kr_cache.clone())
    return *_outputs_v3(copied), copied.kv_cache, copied.kr_cache


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
    query, query_rope = _query_shapes(request)
    scene = scene_of(request)
    tokens = request.token_x.shape[:-1].numel()
    empty = request.rope_sin.new_empty
    found = empty(query, dtype=torch.int8 if scene.query_is_int8 else _DTYPE)
    scale, norm, norm_scale = placeholders(found, request)
    if scene.query_is_int8:
        scale = empty([tokens, request.weight_uk.shape[0], 1], dtype=torch.float32)
    if request.query_norm_flag:
        norm = empty([*request.tokens, request.weight_dq.shape[1]], dtype=request.weight_uq_qr.dtype)
        if scene.query:
            norm_scale = empty([tokens, 1], dtype=torch.float32)
    return found, empty(query_rope, dtype=_DTYPE), scale, norm, norm_scale


def mla_prolog_v3_meta(request: PrologRequest) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate all outputs."""
    return _outputs_v3_meta(request)


def mla_prolog_v3_functional_meta(request: PrologRequest) -> tuple[Tensor, ...]:
    """Allocate all outputs."""
    return *_outputs_v3_meta(request), torch.empty_like(request.kv_cache), torch.empty_like(request.kr_cache)
