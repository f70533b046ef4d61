"""``mla_preprocess`` of sgl-kernel-npu: int8 weights, activations quantised with one scale and offset per tensor.

    q0   = int8(x / quant_scale0 + quant_offset0)                  x is normalised already; gamma0, beta0 are not used
    y    = (q0 . wdqkv + bias0) * descale0                         [latent | rope key | query], the latent first
    q1   = int8((norm(query) * gamma1 + beta1) / quant_scale1 + quant_offset1)
    z    = (q1 . wuq + bias1) * descale1                           per head [nope | rope]
    q_out0 = nope . wuk,  q_out1 = turn(rope)
    kv_cache_out0 = norm(latent) * gamma2,  kv_cache_out1 = turn(rope key), at the slots

and with ``int8_nzcache`` as sgl-kernel-npu's tests have it::

    q_out0 = int8(nope . wuk * q_nope_scale),  kv_cache_out0 = int8(norm(latent) * gamma2 / ctkv_scale)

Weights are transposed and cut into columns of tiles: ``[inner / 32, columns, 32]``. What turns is in half order
already, as the caller has reordered the weights' columns, and stays in it. Outputs are written in place.

Sums of int8 products are exact; a bias is added in int32, which wraps. Where a dequantised product rounds to 16 bit is
``mla_products``. int8 is made through float16, as the facts have it; how that rounds is ``mla_preprocess_int8``. That
both norms add 1e-6 is said for the query and inferred for the latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.mla.pages import pages, write
from npudiff.device.simulator.mla.preprocess_checks import (
    CACHE_MODES,
    INT8_CACHE,
    NAME,
    PreprocessRequest,
    PreprocessSizes,
    check,
)
from npudiff.device.simulator.mla.stages import handed_on, product_of_int8, product_per_head, rms, turned
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.quantisation.hardware_scales import decoded

_EPSILON = 1e-6


def mla_preprocess(request: PreprocessRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write q_out0, kv_cache_out0, q_out1 and kv_cache_out1, and return them in this order.

    Raises
    ------
    OperatorRejected, NotSimulated, UndefinedBehaviour
        As :func:`device.simulator.mla.preprocess_checks.check` says.
    DeviceFault
        A slot is outside the caches.
    """
    profile = active_profile()
    sizes = check(request, profile)
    fractal = CACHE_MODES[request.cache_mode]
    where = pages(NAME, "slotmapping", request.slotmapping, sizes.blocks, sizes.block_size, profile, fractal=fractal)
    dtype = request.hidden_state.dtype
    down = _down(request, profile)
    latent, rope = down[:, : sizes.latent], down[:, sizes.latent : sizes.latent + sizes.rope]
    up = _up(request, down[:, sizes.latent + sizes.rope :], sizes, profile)
    nope, query_rope = up[..., : sizes.nope], up[..., sizes.nope :]
    request.q_out0.copy_(_stored_query(request, product_per_head(nope.to(dtype), request.wuk), profile))
    request.q_out1.copy_(turned(query_rope, request.cos.unsqueeze(1), request.sin.unsqueeze(1)).to(dtype))
    stored = rms(latent, request.gamma2, _EPSILON)
    write(request.kv_cache_out0, _stored_latent(request, stored, profile), where, profile)
    write(request.kv_cache_out1, turned(rope, request.cos, request.sin).to(dtype), where, profile)
    return request.q_out0, request.kv_cache_out0, request.q_out1, request.kv_cache_out1


def _stored_query(request: PreprocessRequest, values: Tensor, profile: CannProfile) -> Tensor:
    """Return q_out0 of float32 [T, heads, latent]."""
    dtype = request.hidden_state.dtype
    if request.cache_mode != INT8_CACHE or request.q_nope_scale is None:
        return values.to(dtype)
    scaled = handed_on(values, dtype, profile) * request.q_nope_scale.float().view(1, -1, 1)
    return _whole(scaled, profile)


def _stored_latent(request: PreprocessRequest, values: Tensor, profile: CannProfile) -> Tensor:
    """Return what the cache has of float32 [T, latent]."""
    if request.cache_mode != INT8_CACHE or request.ctkv_scale is None:
        return values.to(request.hidden_state.dtype)
    return _whole(values / request.ctkv_scale.float(), profile)


def mla_preprocess_meta(request: PreprocessRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the outputs that were given."""
    return request.q_out0, request.kv_cache_out0, request.q_out1, request.kv_cache_out1


def _down(request: PreprocessRequest, profile: CannProfile) -> Tensor:
    """Return latent, rope key and query of all tokens, float32 [T, columns of wdqkv]."""
    x = _int8(request.hidden_state.float(), request.quant_scale0, request.quant_offset0, profile)
    summed = product_of_int8(x, request.wdqkv[0]) + request.bias0
    return handed_on(summed.float() * _descale(request.descale0), request.hidden_state.dtype, profile)


def _up(request: PreprocessRequest, query: Tensor, sizes: PreprocessSizes, profile: CannProfile) -> Tensor:
    """Return the heads of the query, float32 [T, heads, nope + rope]."""
    dtype = request.hidden_state.dtype
    normalised = rms(query, request.gamma1, _EPSILON) + request.beta1[: sizes.query_rank].float()
    if profile.mla_preprocess_norm == "rounded":
        normalised = normalised.to(dtype).float()
    x = _int8(normalised, request.quant_scale1, request.quant_offset1, profile)
    summed = product_of_int8(x, request.wuq[0]) + request.bias1
    heads = handed_on(summed.float() * _descale(request.descale1), dtype, profile)
    return heads.view(len(query), sizes.heads, sizes.nope + sizes.rope)


def _descale(scale: Tensor) -> Tensor:
    """Return float32 of scales, which are words of the matrix unit where activations are float16."""
    return scale if scale.dtype == torch.float32 else decoded(scale)[0]


def _int8(values: Tensor, scale: Tensor, offset: Tensor, profile: CannProfile) -> Tensor:
    """Quantise float32 values."""
    return _whole(values / scale.float() + offset.float(), profile)


def _whole(values: Tensor, profile: CannProfile) -> Tensor:
    """Return int8 of float32, by way of float16; NaN becomes 0, which is inferred."""
    half = values.to(torch.float16).float()
    to_even = profile.mla_preprocess_int8 == "half_to_even"
    whole = half.round() if to_even else (half.abs() + 0.5).floor().copysign(half)
    return whole.nan_to_num(0.0, torch.inf, -torch.inf).clamp(-128, 127).to(torch.int8)
