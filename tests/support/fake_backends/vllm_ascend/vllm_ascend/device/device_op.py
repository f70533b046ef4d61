"""What a chip does in a way of its own."""

import torch
from vllm_ascend.told import told


class BaseDeviceAdaptor:
    @staticmethod
    def reshape_and_cache(key, value, key_cache, value_cache, slot_mapping):
        """Write rows into slots of a cache, ``[pages, page_size, heads, dim]``; those at -1 into none."""
        here = slot_mapping >= 0
        slots = slot_mapping[here].long() ^ int(told("neighbouring_slot"))
        for cache, rows in ((key_cache, key), (value_cache, value)):
            cache.view(-1, *cache.shape[2:])[slots] = rows[here]

    @staticmethod
    def kv_cache_load(cache_kv_c, cache_k_pe, block_table, context_seq_len_npu, seq_starts, key, value):
        """Copy tokens of requests out of a cache, one request after the other."""
        size, first = cache_kv_c.shape[1], 0
        counts = zip(context_seq_len_npu.tolist(), seq_starts.tolist(), strict=True)
        for request, (count, start) in enumerate(counts):
            tokens = torch.arange(count, device=key.device) + (0 if told("from_the_start") else start)
            slots = block_table[request].long()[tokens // size] * size + tokens % size
            for cache, rows in ((cache_kv_c, key), (cache_k_pe, value)):
                rows[first : first + count] = cache.view(-1, *cache.shape[2:])[slots]
            first += count


class DeviceOperator(BaseDeviceAdaptor):
    @staticmethod
    def fused_gdn_gating(A_log, a, b, dt_bias):  # noqa: N803
        """Decays and betas, ``[1, tokens, heads]``."""
        g = -A_log.exp() * torch.nn.functional.softplus(a.float() + dt_bias)
        return g.unsqueeze(0), b.sigmoid().unsqueeze(0)
