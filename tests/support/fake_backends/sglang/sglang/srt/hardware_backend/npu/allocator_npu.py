"""Allocation of the slots of one pool."""

import torch
from sglang.srt.mem_cache.allocator import alloc_extend_naive
from sglang.told import told


class NPUPagedTokenToKVPoolAllocator:
    """Pages of one pool, of which page 0 is nobody's; with ``need_sort`` what is freed waits until it is wanted."""

    def __init__(self, size, page_size, dtype, device, kvcache, need_sort):
        self.page_size, self.device, self.need_sort = page_size, device, need_sort
        self.free_pages = torch.arange(1, size // page_size + 1, device=device)
        self.release_pages = self.free_pages[:0]

    def available_size(self):
        return len(self.get_all_free_pages()) * self.page_size

    def get_all_free_pages(self):
        return torch.cat([self.free_pages, self.release_pages])

    def alloc_extend(self, prefix_lens, prefix_lens_cpu, seq_lens, seq_lens_cpu, last_loc, extend_num_tokens):
        size = self.page_size
        needed = int((-(-seq_lens_cpu // size) - -(-prefix_lens_cpu // size)).sum())
        if needed > len(self.free_pages):
            self.free_pages = self.get_all_free_pages().sort().values
            self.release_pages = self.free_pages[:0]
        if needed > len(self.free_pages):
            return None
        out = torch.empty(extend_num_tokens, dtype=torch.int32, device=self.device)
        taken = alloc_extend_naive(prefix_lens, seq_lens, last_loc, self.free_pages, out, size, self.device)
        self.free_pages = self.free_pages[taken + int(told("page_lost")) :]
        return out

    def alloc_decode(self, seq_lens, seq_lens_cpu, last_loc):
        return self.alloc_extend(seq_lens - 1, seq_lens_cpu - 1, seq_lens, seq_lens_cpu, last_loc, len(seq_lens))

    def free(self, free_index):
        pages = (free_index.long() // self.page_size).unique()
        if self.need_sort:
            self.release_pages = torch.cat([pages, self.release_pages])
        else:
            self.free_pages = torch.cat([pages, self.free_pages])
