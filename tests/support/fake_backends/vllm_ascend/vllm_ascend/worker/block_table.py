"""A table of pages, and slots of tokens."""

from types import SimpleNamespace

import torch
from vllm_ascend.told import told


class BlockTable:
    """Pages of each request."""

    def __init__(self, size, requests, width, tokens, pinned, device, num_speculative_tokens=0):
        self.size, self.pages = size, torch.zeros(requests, width, dtype=torch.int64, device=device)

    def add_row(self, pages, row):
        """Take the pages of a request."""
        self.pages[row] = torch.tensor(pages)

    def commit_block_table(self, count):
        """Have the pages on the device, where they are."""

    def compute_slot_mapping(self, count, starts, positions):
        """Slots of tokens."""
        rows = torch.arange(count, device=starts.device).repeat_interleave(starts.diff())
        pages = self.pages[0 if told("pages_of_the_first") else rows, positions // self.size]
        self.slot_mapping = SimpleNamespace(gpu=pages * self.size + positions % self.size)

    def _compute_dcp_slot_mapping(self, requests, positions):
        """Slots of the tokens that are this rank's, -1 of others."""
        stretch, ranks = self.cp_kv_cache_interleave_size, self.dcp_world_size
        owner = positions // stretch % ranks
        local = positions // (stretch * ranks) * stretch + positions % stretch
        pages = self.block_table.gpu[requests, local // self.block_size]
        slots = torch.where(owner == self.dcp_rank, pages * self.block_size + local % self.block_size, -1)
        self.slot_mapping.gpu.copy_(slots)
