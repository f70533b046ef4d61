"""Pools of keys and values, in pages."""

import os

import torch
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.told import told

STRIP = 16


class _Pool:
    """Two buffers of all layers, ``[layers, pages, page_size, heads, dim]``; page 0 is nobody's."""

    cpu_offloading_chunk_size = 8192

    def __init__(self, size, page_size, dtype, heads, dims, layer_num, device):
        self.page_size, self.device = page_size, device
        pages = size // page_size + 1
        self.k_buffer, self.v_buffer = (
            torch.zeros(layer_num, pages, page_size, heads, dim, dtype=dtype, device=device) for dim in dims
        )

    def get_key_buffer(self, layer_id):
        return self.k_buffer[layer_id]

    def get_value_buffer(self, layer_id):
        return self.v_buffer[layer_id]

    def set_kv_buffer(self, layer, loc_info, cache_k, cache_v):
        loc = loc_info.loc if isinstance(loc_info, KVWriteLoc) else loc_info
        self.write(layer.layer_id, loc, cache_k, cache_v)

    def write(self, layer_id, loc, cache_k, cache_v):
        if told("swapped_write"):
            cache_k, cache_v = cache_v, cache_k
        for buffer, rows in ((self.k_buffer[layer_id], cache_k), (self.v_buffer[layer_id], cache_v)):
            buffer.view(-1, *buffer.shape[2:])[loc.long()] = rows.view(-1, *buffer.shape[2:])

    def get_cpu_copy(self, indices, **unused):
        """Return chunks of keys and values of each layer, on the host."""
        step = self.cpu_offloading_chunk_size
        return [[self._rows(layer, chunk) for chunk in indices.split(step)] for layer in range(len(self.k_buffer))]

    def _rows(self, layer_id, loc):
        caches = (self.k_buffer[layer_id], self.v_buffer[layer_id])
        return tuple(cache.view(-1, *cache.shape[2:])[loc].cpu() for cache in caches)


class NPUMHATokenToKVPool(_Pool):
    def __init__(
        self, size, page_size, dtype, head_num, head_dim, layer_num, device, enable_memory_saver, v_head_dim=None,
    ):  # fmt: skip
        super().__init__(size, page_size, dtype, head_num, (head_dim, v_head_dim or head_dim), layer_num, device)


class NPUMLATokenToKVPool(_Pool):
    """Latents and rotated keys of MLA; in NZ a page lies in strips of 16 columns."""

    def __init__(
        self, size, page_size, dtype, kv_lora_rank, qk_rope_head_dim, layer_num, device, enable_memory_saver,
        index_head_dim=None,
    ):  # fmt: skip
        super().__init__(size, page_size, dtype, 1, (kv_lora_rank, qk_rope_head_dim), layer_num, device)
        if index_head_dim is not None:
            shape = layer_num, size // page_size + 1, page_size, 1, index_head_dim
            self.index_k_buffer = torch.zeros(shape, dtype=dtype, device=device)
        self.is_nz = os.environ.get("SGLANG_USE_FIA_NZ", "0") == "1"

    def get_index_k_buffer(self, layer_id):
        return self.index_k_buffer[layer_id]

    def write(self, layer_id, loc, cache_k, cache_v):
        if cache_v is None:
            cache_k, cache_v = cache_k.split((self.k_buffer.shape[-1], self.v_buffer.shape[-1]), dim=-1)
        if not self.is_nz or told("nz_write_as_nd"):
            return super().write(layer_id, loc, cache_k, cache_v)
        page, place = loc.long() // self.page_size, loc.long() % self.page_size
        for buffer, rows in ((self.k_buffer[layer_id], cache_k), (self.v_buffer[layer_id], cache_v)):
            strips = buffer.view(len(buffer), -1, self.page_size, STRIP)
            strips[page, :, place] = rows.reshape(len(loc), -1, STRIP)
        return None
