"""Allocation of slots in both pools of a hybrid model."""

import torch
from sglang.srt.hardware_backend.npu.allocator_npu import NPUPagedTokenToKVPoolAllocator
from sglang.told import told


class SWATokenToKVPoolAllocator:
    """A token has a slot of the full pool, which the mapping leads to that of the sliding pool, or to 0."""

    def __init__(self, size, size_swa, page_size, dtype, device, kvcache, need_sort):
        self.page_size, self._kvcache = page_size, kvcache
        self.full_attn_allocator, self.swa_attn_allocator = (
            NPUPagedTokenToKVPoolAllocator(slots, page_size, dtype, device, kvcache, need_sort)
            for slots in (size, size_swa)
        )
        self.full_to_swa_index_mapping = torch.zeros(size + page_size + 1, dtype=torch.int64, device=device)
        self.full_to_swa_index_mapping[-1] = -1
        kvcache.register_mapping(self.full_to_swa_index_mapping)

    def full_available_size(self):
        return self.full_attn_allocator.available_size()

    def swa_available_size(self):
        return self.swa_attn_allocator.available_size()

    def translate_loc_from_full_to_swa(self, kv_indices):
        return self.full_to_swa_index_mapping[kv_indices.long()]

    def alloc_extend(self, prefix_lens, prefix_lens_cpu, seq_lens, seq_lens_cpu, last_loc, extend_num_tokens):
        lengths = (prefix_lens, prefix_lens_cpu, seq_lens, seq_lens_cpu)
        size = self.page_size
        needed = int((-(-seq_lens_cpu // size) - -(-prefix_lens_cpu // size)).sum()) * size
        if needed > min(self.full_available_size(), self.swa_available_size()):
            return None
        slots = self.full_attn_allocator.alloc_extend(*lengths, last_loc, extend_num_tokens)
        last = self.translate_loc_from_full_to_swa(last_loc)
        own = self.swa_attn_allocator.alloc_extend(*lengths, last, extend_num_tokens)
        self.full_to_swa_index_mapping[slots.long()] = own.long()
        return slots

    def alloc_decode(self, seq_lens, seq_lens_cpu, last_loc):
        return self.alloc_extend(seq_lens - 1, seq_lens_cpu - 1, seq_lens, seq_lens_cpu, last_loc, len(seq_lens))

    def free_swa(self, free_index):
        """Give up the pages of the sliding pool that slots of the full one lead to."""
        pages = free_index.long() // self.page_size
        whole = (pages.unsqueeze(1) * self.page_size + torch.arange(self.page_size, device=pages.device)).flatten()
        own = self.full_to_swa_index_mapping[whole]
        if own.any():
            self.swa_attn_allocator.free(own[own > 0])
        if not told("mapping_kept"):
            self.full_to_swa_index_mapping[whole] = 0

    def free(self, free_index):
        if len(free_index):
            self.free_swa(free_index)
            self.full_attn_allocator.free(free_index)
