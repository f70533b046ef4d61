"""Writers of sglang's pools: ``hardware_backend/npu/memory_pool_npu.py``, ``set_kv_buffer``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from npudiff import Target, implementation
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.pool_world import NZ, buffers, of_mha, of_mla
from npudiff.device.backends.sglang.world import options_of
from npudiff.model.constraints import Box
from npudiff.reference.paged_cache import PagedCacheInputs

Outputs = dict[str, torch.Tensor]

_POOL: Box = {"page_size": (PAGE,), "padding": ("slot 0",), "dtype": ("bfloat16", "float16")}

FLAGS = {"ASCEND_USE_FIA": ("1", "0"), "SGLANG_NPU_USE_SCATTER_PA_KV_CACHE": ("0", "1")}
"""They choose the writer: npu_scatter_nd_update_, npu_scatter_pa_kv_cache or _npu_reshape_and_cache."""

VALUES = "cache_v"
"""Whether the rotated keys of MLA are given beside the latents, or as the last columns of the same rows."""

_LATENT: Box = {**_POOL, "kv_heads": (1,), "head_dims": ("512/64", "256/32")}


def _written(pool: Any, inputs: PagedCacheInputs, key: torch.Tensor, value: torch.Tensor | None) -> Outputs:  # noqa: ANN401
    """Write into the second layer, and return what is in it."""
    pool.set_kv_buffer(SimpleNamespace(layer_id=1), inputs.slots, key, value)
    caches = (inputs.key_cache, inputs.value_cache)
    names = ("key_cache", "value_cache")
    return {
        name: now.view(-1).view(cache.shape) for name, now, cache in zip(names, buffers(pool, 1), caches, strict=True)
    }


@implementation(
    "paged_cache", name="set_kv_buffer", supports={**_POOL, "layout": ("PA_BSND",)}, options=FLAGS, on_device=True
)
def set_kv_buffer(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """NPUMHATokenToKVPool.set_kv_buffer, with each of its writers."""
    return _written(of_mha(inputs.key_cache, inputs.value_cache, inputs), inputs, inputs.key, inputs.value)


@implementation(
    "paged_cache",
    name="set_kv_buffer_mla",
    supports=[{**_LATENT, NZ: ("0",), "layout": ("PA_BSND",)}, {**_LATENT, NZ: ("1",), "layout": ("PA_NZ",)}],
    options={NZ: ("0", "1"), VALUES: ("beside", "joined")},
    on_device=True,
)
def set_kv_buffer_mla(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """NPUMLATokenToKVPool.set_kv_buffer, in ND and in NZ."""
    pool = of_mla(inputs.key_cache, inputs.value_cache, inputs.page_size, inputs)
    if options_of(inputs)[VALUES] == "joined":
        return _written(pool, inputs, torch.cat([inputs.key, inputs.value], dim=-1), None)
    return _written(pool, inputs, inputs.key, inputs.value)
