"""Blocks of prompts for ranks: one from the front of each, one from the back."""

from types import SimpleNamespace

import torch
from sglang.srt.runtime_context import get_parallel
from sglang.told import told


class ZigzagCPStrategy:
    """Which rows a rank has, by blocks that differ by one token at most."""

    def __init__(self, cp_size):
        self.cp_size = cp_size

    def build_metadata(self, tokens, totals, new):
        """Rows of each rank, fronts of all prompts before their backs, and lengths of keys up to them."""
        blocks, starts = 2 * self.cp_size, torch.tensor([0, *new]).cumsum(0).tolist()
        ends = [[(count * (b + 1) + blocks - 1) // blocks for b in range(blocks)] for count in new]
        both = [(rank, blocks - 1 - rank) for rank in range(self.cp_size)]
        rows = [
            [[range(start + (end[b - 1] if b else 0), start + end[b]) for start, end in zip(starts, ends, strict=False)]
             for b in pair]
            for pair in both
        ]  # fmt: skip
        prefixes = [total - count for total, count in zip(totals, new, strict=True)]
        mine = both[get_parallel().attn_cp_rank]
        if told("no_prefix"):
            prefixes = [0] * len(prefixes)
        lengths = [[prefix + end[b] for prefix, end in zip(prefixes, ends, strict=True)] for b in mine]
        return SimpleNamespace(rows=rows, lengths=lengths)

    def _flat(self, batch):
        return [[row for half in halves for part in half for row in part] for halves in batch.attn_cp_metadata.rows]

    def shard_hidden_states(self, states, batch):
        """The rows of this rank."""
        return states[self._flat(batch)[get_parallel().attn_cp_rank]]

    def gather_kv_cache(self, states, batch):
        """Rows of all ranks in the order of the batch."""
        rows = self._flat(batch)
        most = max(map(len, rows))
        padded = torch.cat([states, states.new_zeros(most - len(states), *states.shape[1:])])
        gathered = states.new_empty(most * self.cp_size, *states.shape[1:])
        get_parallel().attn_cp_group.all_gather_into_tensor(gathered, padded)
        found = states.new_empty(sum(map(len, rows)), *states.shape[1:])
        for rank, own in enumerate(rows):
            found[own] = gathered[rank * most : rank * most + len(own)]
        return found

    gather_hidden_states = gather_kv_cache
