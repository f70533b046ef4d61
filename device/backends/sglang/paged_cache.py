"""Writers of sglang's pool: ``hardware_backend/npu/memory_pool_npu.py``, ``set_kv_buffer``."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from sglang.srt.hardware_backend.npu.memory_pool_npu import NPUMHATokenToKVPool

from npudiff import Target, implementation
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.world import configured, environment, options_of
from npudiff.model.constraints import Box
from npudiff.reference.paged_cache import PagedCacheInputs

Outputs = dict[str, torch.Tensor]

_POOL: Box = {"layout": ("PA_BSND",), "page_size": (PAGE,), "padding": ("slot 0",), "dtype": ("bfloat16", "float16")}


def _written(inputs: PagedCacheInputs) -> Outputs:
    """Write into the second of three layers, and return what is in it."""
    configured()
    pages, _, heads, dim = inputs.key_cache.shape
    with environment(options_of(inputs)):
        pool = NPUMHATokenToKVPool(
            size=(pages - 1) * PAGE, page_size=PAGE, dtype=inputs.key.dtype, head_num=heads, head_dim=dim,
            v_head_dim=inputs.value_cache.shape[3], layer_num=3, device="npu", enable_memory_saver=False,
        )  # fmt: skip
    caches = (inputs.key_cache, inputs.value_cache)
    for buffer, before in zip((pool.get_key_buffer(1), pool.get_value_buffer(1)), caches, strict=True):
        buffer.view_as(before).copy_(before)
    pool.set_kv_buffer(SimpleNamespace(layer_id=1), inputs.slots, inputs.key, inputs.value)
    after = (pool.get_key_buffer(1), pool.get_value_buffer(1))
    names = ("key_cache", "value_cache")
    return {name: now.view_as(cache) for name, now, cache in zip(names, after, caches, strict=True)}


FLAGS = {"ASCEND_USE_FIA": ("1", "0"), "SGLANG_NPU_USE_SCATTER_PA_KV_CACHE": ("0", "1")}
"""They choose the writer: npu_scatter_nd_update_, npu_scatter_pa_kv_cache or _npu_reshape_and_cache."""


@implementation(
    "paged_cache", name="set_kv_buffer", supports={**_POOL, "rows": ("contiguous",)}, options=FLAGS, on_device=True
)
def set_kv_buffer(inputs: PagedCacheInputs, target: Target) -> Outputs:
    """NPUMHATokenToKVPool.set_kv_buffer, with each of its writers."""
    return _written(inputs)
