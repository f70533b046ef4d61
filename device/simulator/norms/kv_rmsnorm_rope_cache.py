"""``npu_kv_rmsnorm_rope_cache``, version 2, and the functional form of version 2.

From kv [B, 1, S, 576] the first 512 elements are normalised (the latent), the last 64 are turned as in
``npu_interleave_rope`` (the rope part). The rope part goes to ``k_cache``, the latent to ``ckv_cache``: rope
first, in the arguments and in what is returned.

With ``v`` [B, N, S, 128], kv is [B, N, S, 192] and holds keys: all of it is normalised, then its first 64 elements
are turned. Keys go to ``k_cache``, ``v`` as it is to ``ckv_cache`` (documentation and golden of
``aclnnKvRmsNormRopeCacheV2``; that all is float32 there, too, is the golden's).

SOURCE (``kv_rms_norm_rope_cache_b16_pa.h``, ``..._b16_pa_nz_quant.h``): all is float32 with one rounding at
the end. The norm divides by the root. int8 is made of the float32 values, not of the rounded ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npudiff.device.simulator.norms.kv_request import CACHE_MODES, ROPE_DIM, KvRequest, check, check_host
from npudiff.device.simulator.norms.kv_slots import offsets_of_heads, slots
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.rotary.rotation import deinterleave, rotate_half, turn

if TYPE_CHECKING:
    from npudiff.device.simulator.profiles import CannProfile


def write(request: KvRequest) -> tuple[Tensor, Tensor]:
    """Write both caches under the active profile and return the two plain outputs.

    Returns
    -------
    rope : Tensor
        [B, 1, S, 64] in the dtype of kv, not quantised. Memory that was never written, unless
        ``is_output_kv`` and the mode is paged. With ``v``, keys [B, N, S, 192], written in mode Norm, too, if a cache
        is quantised.
    latent : Tensor
        [B, 1, S, 512], likewise. With ``v``, its values.

    Raises
    ------
    OperatorRejected
        The real operator refuses the call.
    NotSimulated
        It may be legal, but is not implemented here.
    DeviceFault, UndefinedBehaviour
        An index points where it must not.
    """
    profile = active_profile()
    check(request, profile)
    slot = slots(request)
    rope, latent = _joint(request) if request.values is None else _separate(request, request.values)
    rope_stored = _stored(rope, request.k_rope_scale, request.k_rope_offset, request)
    _scatter(request, request.k_cache, rope_stored, slot, profile)
    latent_stored = _stored(latent, request.c_kv_scale, request.c_kv_offset, request)
    _scatter(request, request.ckv_cache, latent_stored, slot, profile)
    dtype = request.kv.dtype
    paged, separate = CACHE_MODES[request.cache_mode].paged, request.values is not None
    if request.is_output_kv and (paged or (separate and request.scaled)):
        return rope.to(dtype), latent.to(dtype)
    return unwritten(rope.shape, dtype), unwritten(latent.shape, dtype)


def _joint(request: KvRequest) -> tuple[Tensor, Tensor]:
    """Return the rope part and the latent, float32 [B, 1, S, D]."""
    width = request.form.normed
    return _turned(request.kv[..., width:].float(), request), _normalised(request.kv[..., :width].float(), request)


def _separate(request: KvRequest, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values, float32 [B, N, S, D]."""
    keys = _normalised(request.kv.float(), request)
    return torch.cat((_turned(keys[..., :ROPE_DIM], request), keys[..., ROPE_DIM:]), -1), values.float()


def _turned(pairs: Tensor, request: KvRequest) -> Tensor:
    """Return float32 [B, N, S, 64] turned, in half order."""
    halves = deinterleave(pairs)
    return turn(halves, rotate_half(halves), request.cos.float(), request.sin.float())


def _normalised(x: Tensor, request: KvRequest) -> Tensor:
    mean = (x * x).sum(-1, keepdim=True) * (1.0 / x.shape[-1])
    return x / (mean + request.epsilon).sqrt() * request.gamma.float()


def _stored(values: Tensor, scale: Tensor | None, offset: Tensor | None, request: KvRequest) -> Tensor:
    """Return what a cache stores of float32 values [B, N, S, D]: the dtype of kv, or int8 with a scale."""
    if scale is None:
        return values.to(request.kv.dtype)
    scaled = values * _per_head(scale)
    if offset is not None:
        scaled = scaled + _per_head(offset)
    # SOURCE: float32 to int32 half to even, then to int8 with saturation. That NaN becomes 0 is inferred.
    return scaled.round().nan_to_num(0.0).clamp(-128, 127).to(torch.int8)


def _per_head(factors: Tensor) -> Tensor:
    """Return [N, D], [D] or [1] as something that goes with [B, N, S, D]."""
    return factors.unsqueeze(-2)


def _scatter(request: KvRequest, cache: Tensor, values: Tensor, slot: Tensor, profile: CannProfile) -> None:
    """Put one row per token into a cache, where its bytes belong."""
    kept = slot >= 0
    rows = values.movedim(1, 2).flatten(0, 1).flatten(1)[kept]
    ordered, order = slot[kept].sort(stable=True)
    is_last = torch.ones_like(ordered, dtype=torch.bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    mode, flat = CACHE_MODES[request.cache_mode], cache.view(-1)
    offsets = offsets_of_heads(ordered, cache, request.heads, request.slots_per_block, mode)
    flat[offsets[is_last]] = rows[order[is_last]]
    if profile.kv_rmsnorm_duplicate_index == "unpredictable":
        flat[offsets[~is_last]] = unwritten((rows.shape[-1],), values.dtype)


def kv_rmsnorm_rope_cache(request: KvRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write the caches that are given, and return them before rope and latent; the schema shows no alias."""
    rope, latent = write(request)
    return request.k_cache, request.ckv_cache, rope, latent


def kv_rmsnorm_rope_cache_v2_functional(request: KvRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rope, latent and updated copies of both caches."""
    copied = replace(request, k_cache=request.k_cache.clone(), ckv_cache=request.ckv_cache.clone())
    written = request if active_profile().kv_rmsnorm_functional == "updates_inputs" else copied
    return *write(written), copied.k_cache, copied.ckv_cache


def kv_rmsnorm_rope_cache_v2_meta(request: KvRequest) -> tuple[Tensor, Tensor]:
    """Allocate rope and latent by META's rule, after META's checks."""
    check_host(request)
    tokens = request.kv.shape[:3]
    with_v = request.v is not None and request.v.dim() > 0
    rope_dim = request.kv.shape[3] if with_v else request.cos.shape[3]
    latent_dim = request.v.shape[3] if request.v is not None and with_v else request.gamma.shape[0]
    return request.kv.new_empty((*tokens, rope_dim)), request.kv.new_empty((*tokens, latent_dim))


def kv_rmsnorm_rope_cache_meta(request: KvRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate all four outputs: torch_npu's META does not show the alias either."""
    rope, latent = kv_rmsnorm_rope_cache_v2_meta(request)
    return torch.empty_like(request.k_cache), torch.empty_like(request.ckv_cache), rope, latent


def kv_rmsnorm_rope_cache_v2_functional_meta(request: KvRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate rope, latent and both caches."""
    k_cache, ckv_cache, rope, latent = kv_rmsnorm_rope_cache_meta(request)
    return rope, latent, k_cache, ckv_cache
