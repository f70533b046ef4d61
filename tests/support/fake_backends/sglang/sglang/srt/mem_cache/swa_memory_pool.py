"""The pools of a hybrid model."""

from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.told import told


class SWAKVPool:
    """Layers with a window have a pool of their own, whose slots a mapping finds."""

    def __init__(
        self, size, size_swa, page_size, dtype, head_num, head_dim, swa_attention_layer_ids, full_attention_layer_ids,
        device, token_to_kv_pool_class, **more,
    ):  # fmt: skip
        self.page_size = page_size
        self._layers = {layer: (False, place) for place, layer in enumerate(full_attention_layer_ids)}
        self._layers |= {layer: (True, place) for place, layer in enumerate(swa_attention_layer_ids)}
        common = {
            "page_size": page_size, "dtype": dtype, "head_num": head_num, "head_dim": head_dim, "device": device,
            "enable_memory_saver": False, **more,
        }  # fmt: skip
        self.full_kv_pool = token_to_kv_pool_class(size=size, layer_num=len(full_attention_layer_ids), **common)
        self.swa_kv_pool = token_to_kv_pool_class(size=size_swa, layer_num=len(swa_attention_layer_ids), **common)
        self.full_to_swa_index_mapping = None

    def register_mapping(self, full_to_swa_index_mapping):
        self.full_to_swa_index_mapping = full_to_swa_index_mapping

    def translate_loc_from_full_to_swa(self, kv_indices):
        return self.full_to_swa_index_mapping[kv_indices.long()]

    def is_swa(self, layer_id):
        return self._layers[layer_id][0]

    def _pool(self, layer_id):
        sliding, place = self._layers[layer_id]
        return (self.swa_kv_pool if sliding else self.full_kv_pool), place

    def get_key_buffer(self, layer_id):
        pool, place = self._pool(layer_id)
        return pool.get_key_buffer(place)

    def get_value_buffer(self, layer_id):
        pool, place = self._pool(layer_id)
        return pool.get_value_buffer(place)

    def set_kv_buffer(self, layer, loc_info, cache_k, cache_v):
        pool, place = self._pool(layer.layer_id)
        if not isinstance(loc_info, KVWriteLoc):
            loc_info = KVWriteLoc(loc_info, self.translate_loc_from_full_to_swa(loc_info))
        sliding = self.is_swa(layer.layer_id) and not told("unmapped_write")
        pool.write(place, loc_info.swa_loc if sliding else loc_info.loc, cache_k, cache_v)
