"""MLA's write into the cache as sglang and vllm call it: npu_kv_rmsnorm_rope_cache in each of its cache modes.

Sources: sglang 0.5.23, ``hardware_backend/npu/attention/mla_preprocess.py`` 455-477 (decode) and
``models/deepseek_common/attention_forward_methods/forward_mha_npu`` 104-122 (prefill). The operator takes the cache of
the rope key before that of the latent; the backend's pool returns them the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from npudiff import Target, implementation
from npudiff.model.constraints import Box
from npudiff.reference.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheInputs

Outputs = dict[str, torch.Tensor]

OPERATOR: Box = {"dims": ("512/64",)}
"""The dims that the operator is made for."""

ND: Box = {"layout": ("PA_BSND",)}
NZ: Box = {"layout": ("PA_NZ",)}
PAGED: Box = {"placement": ("scattered", "pages")}
WHOLE_PAGES: Box = {"placement": ("pages",)}
ROWS: Box = {"placement": ("rows",), "quantised": (False,)}
"""Cache mode Norm has no scales."""


@dataclass(frozen=True)
class FusedCall:
    """One call of npu_kv_rmsnorm_rope_cache, whose caches are views of those that the inputs hold."""

    tensors: tuple[torch.Tensor, ...]
    """kv ``[batch, 1, length, 576]``, gamma, cos and sin ``[batch, 1, length, 64]``, index, rope and latent cache."""
    options: Mapping[str, Any]
    """Keyword arguments."""

    def having(self, **changes: Any) -> FusedCall:  # noqa: ANN401 - operator arguments of many types
        """Return the same call with some keyword arguments changed."""
        return replace(self, options={**self.options, **changes})


def fused_call(inputs: KvRmsnormRopeCacheInputs, cache_mode: str, index: torch.Tensor) -> FusedCall:
    """Build the call of a cache mode; the caches are seen with the shape that the mode declares."""
    cosine, sine = (table.unsqueeze(1) for table in half_tables(inputs.cos_sin_cache, inputs.positions))
    if cache_mode == "Norm":
        shape: tuple[int, ...] = (inputs.kv.shape[0], 1, inputs.page_size)
    else:
        shape = (inputs.latent_cache.shape[0], inputs.page_size, 1)
    caches = [cache.view(*shape, -1) for cache in (inputs.rope_cache, inputs.latent_cache)]
    options = {
        "k_rope_scale": inputs.rope_scale,
        "c_kv_scale": inputs.latent_scale,
        "epsilon": inputs.epsilon,
        "cache_mode": cache_mode,
    }
    return FusedCall((inputs.kv.unsqueeze(1), inputs.weight, cosine, sine, index, *caches), options)


def half_tables(cos_sin_cache: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the tokens, ``[..., rope_dim]``: those of a pair in each half."""
    cosine, sine = (torch.cat([half, half], dim=-1) for half in cos_sin_cache[positions].chunk(2, dim=-1))
    return cosine, sine


def caches(inputs: KvRmsnormRopeCacheInputs) -> Outputs:
    """The caches, after an operator wrote into them in place."""
    return {"rope_cache": inputs.rope_cache, "latent_cache": inputs.latent_cache}


def decode(inputs: KvRmsnormRopeCacheInputs, call: FusedCall) -> Outputs:
    """Run the call for its caches, which is what a decode uses."""
    torch.ops.npu.npu_kv_rmsnorm_rope_cache(*call.tensors, **call.options)
    return caches(inputs)


def prefill(inputs: KvRmsnormRopeCacheInputs, call: FusedCall) -> Outputs:
    """Run the call for its caches and for the rope keys and latents of the new tokens."""
    options = {**call.options, "is_output_kv": True}
    _, _, rope, latent = torch.ops.npu.npu_kv_rmsnorm_rope_cache(*call.tensors, **options)
    return {"rope": rope.squeeze(1), "latent": latent.squeeze(1), **caches(inputs)}


def page_starts(inputs: KvRmsnormRopeCacheInputs) -> torch.Tensor:
    """The first slot of each page of each request, int64 ``[batch * ceil(length / page_size)]``."""
    return inputs.slots[:, :: inputs.page_size].flatten().contiguous()


@implementation("kv_rmsnorm_rope_cache", supports={**OPERATOR, **ND, **PAGED}, on_device=True, graph=True)
def decode_pa_bnsd(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Mode PA_BNSD: a slot per token."""
    return decode(inputs, fused_call(inputs, "PA_BNSD", inputs.slots.flatten()))


@implementation("kv_rmsnorm_rope_cache", supports={**OPERATOR, **ND, **PAGED}, on_device=True, graph=True)
def prefill_pa(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Mode PA, with what was written as outputs besides."""
    return prefill(inputs, fused_call(inputs, "PA", inputs.slots.flatten()))


@implementation("kv_rmsnorm_rope_cache", supports={**OPERATOR, **NZ, **PAGED}, on_device=True, graph=True)
def decode_pa_nz(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Mode PA_NZ: the same declared shape, bytes in strips."""
    return decode(inputs, fused_call(inputs, "PA_NZ", inputs.slots.flatten()))


@implementation("kv_rmsnorm_rope_cache", supports={**OPERATOR, **ND, **WHOLE_PAGES}, on_device=True, graph=True)
def prefill_blk_bnsd(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Mode PA_BLK_BNSD: the first slot of each page of a request."""
    return prefill(inputs, fused_call(inputs, "PA_BLK_BNSD", page_starts(inputs)))


@implementation("kv_rmsnorm_rope_cache", supports={**OPERATOR, **NZ, **WHOLE_PAGES}, on_device=True, graph=True)
def prefill_blk_nz(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Mode PA_BLK_NZ."""
    return prefill(inputs, fused_call(inputs, "PA_BLK_NZ", page_starts(inputs)))


@implementation("kv_rmsnorm_rope_cache", supports={**OPERATOR, **ND, **ROWS}, on_device=True, graph=True)
def decode_norm(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Mode Norm: a row of the cache per request, and a place in it per token."""
    return decode(inputs, fused_call(inputs, "Norm", inputs.slots % inputs.page_size))


@implementation("kv_rmsnorm_rope_cache", supports={**OPERATOR, **ND, **PAGED}, on_device=True, graph=True)
def prefill_v2(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """npu_kv_rmsnorm_rope_cache_v2: returns rope keys and latents, and declares that it writes into the caches."""
    call = fused_call(inputs, "PA_BNSD", inputs.slots.flatten()).having(is_output_kv=True)
    rope, latent = torch.ops.npu.npu_kv_rmsnorm_rope_cache_v2(*call.tensors, **call.options)
    return {"rope": rope.squeeze(1), "latent": latent.squeeze(1), **caches(inputs)}


@implementation("kv_rmsnorm_rope_cache", on_device=True)
def native_mla_write(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Composed of elementwise operators and an indexed write: the path without the fused operator."""
    states, keys = inputs.kv.tensor_split([inputs.latent_dim], dim=-1)
    latent = normalised(states, inputs.weight, inputs.epsilon)
    rope = turned(keys, inputs.cos_sin_cache[inputs.positions])
    return written(inputs, latent, rope)


def normalised(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMS norm of rows ``[..., dim]`` in float32, rounded once."""
    wide = states.float()
    rstd = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + epsilon)
    return (wide * rstd * weight.float()).to(states.dtype)


def turned(keys: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of neighbours of ``[..., rope_dim]`` in float32; the result holds them as halves."""
    cosine, sine = cos_sin.float().chunk(2, dim=-1)
    even, odd = keys.float()[..., 0::2], keys.float()[..., 1::2]
    return torch.cat([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).to(keys.dtype)


def written(inputs: KvRmsnormRopeCacheInputs, latent: torch.Tensor, rope: torch.Tensor) -> Outputs:
    """Write both at the slots that are not negative, quantised where there are scales."""
    slots = inputs.slots.flatten()
    for cache, rows, scale in (
        (inputs.latent_cache, latent, inputs.latent_scale),
        (inputs.rope_cache, rope, inputs.rope_scale),
    ):
        flat = rows.flatten(0, 1)
        if scale is not None:
            flat = (flat.float() * scale).round().clamp(-128, 127).to(torch.int8)
        write_at(slots, cache, flat, inputs.page_size, inputs.layout)
    return {"rope": rope, "latent": latent, **caches(inputs)}


def write_at(slots: torch.Tensor, cache: torch.Tensor, rows: torch.Tensor, page_size: int, layout: str) -> None:
    """Write rows ``[tokens, dim]`` at the slots that are not negative."""
    kept = slots >= 0
    page, offset = slots[kept] // page_size, slots[kept] % page_size
    if layout == "PA_NZ":  # [pages, strips, page_size, strip]
        cache[page, :, offset] = rows[kept].view(-1, cache.shape[1], cache.shape[3])
    else:
        cache[page, offset, 0] = rows[kept]
