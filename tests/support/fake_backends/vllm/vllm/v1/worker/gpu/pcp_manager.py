"""Chunks of prefills for ranks: one of the head of each request, one of its tail."""

from types import SimpleNamespace

import torch
from vllm_ascend.told import told


def get_pcp_group():
    """The group of all ranks, which an engine sets."""


class PCPManager:
    """Which rows a rank has."""

    def __init__(self, ranks, rank, device):
        self.ranks, self.rank = ranks, rank

    def _build_batch_layout(self, new, computed, prefilling, starts):
        """Segments of all ranks, and how many rows each has."""
        segments = [
            [
                SimpleNamespace(global_batch_req_idx=r, global_batch_slice=rows, num_tokens=rows.stop - rows.start)
                for r, count in enumerate(new.tolist())
                for chunk in (rank, 2 * self.ranks - 1 - rank)
                if (rows := _rows(int(starts[r]), count, chunk, -(-count // (2 * self.ranks)))).stop > rows.start
            ]
            for rank in range(self.ranks)
        ]
        own = [
            [row for one in mine for row in range(one.global_batch_slice.start, one.global_batch_slice.stop)]
            for mine in segments
        ]
        most = max(map(len, own))
        filled = torch.tensor([rows + [-1] * (most - len(rows)) for rows in own]).flatten()
        self._restored = (filled == torch.arange(int(starts[-1])).unsqueeze(1)).int().argmax(dim=1)
        self._padded_gather_idx, self._written = filled.clamp(min=0), filled >= int(told("first_key_lost"))
        return segments, list(map(len, own))

    def _convert_to_gathered_slot_mappings(self, slots):
        """Slots of gathered rows, -1 for those that are nobody's."""
        return slots[:, self._padded_gather_idx].masked_fill(~self._written, -1)

    def restore_hidden_states(self, states):
        """Rows of all ranks in the order of the batch."""
        return get_pcp_group().all_gather(states, dim=0)[self._restored]


def _rows(start, count, chunk, size):
    return slice(start + min(count, chunk * size), start + min(count, (chunk + 1) * size))
