"""A table whose rows are split over ranks."""

import torch
import torch.distributed as dist
from vllm_ascend.told import told

get_tp_group = get_embed_tp_group = get_lmhead_tp_group = get_potential_max_tokens = None
embedding_tp_enable = lmhead_tp_enable = bool


class AscendVocabParallelEmbedding(torch.nn.Module):
    def __init__(self, num_embeddings, embedding_dim, params_dtype, org_num_embeddings, padding_size, prefix=""):
        super().__init__()
        self.of_chunks = embedding_tp_enable() and "embed_tokens" in prefix
        self.group = get_embed_tp_group() if self.of_chunks else get_tp_group()
        ranks, added = self.group.world_size, num_embeddings - org_num_embeddings
        self.known, self.all = org_num_embeddings, num_embeddings
        self.own, self.own_added = (-(-n // padding_size) * padding_size // ranks for n in (self.known, added))
        self.weight = torch.nn.Parameter(torch.empty(self.own + self.own_added, embedding_dim, dtype=params_dtype))

    def _rows(self, ids):
        rank = self.group.rank_in_group
        first, late = rank * self.own, self.known + rank * self.own_added
        here = (ids >= first) & (ids < min(first + self.own, self.known) + told("end_included"))
        added = (ids >= late) & (ids < min(late + self.own_added, self.all))
        rows = torch.where(here, ids - first, torch.where(added, ids - late + self.own, 0)).long()
        return self.weight[rows.clamp(max=len(self.weight) - 1)].masked_fill(~(here | added).unsqueeze(1), 0)

    def forward(self, ids):
        """Look up ids: those that every rank has, or those of all ranks, and return the own ones."""
        if not self.of_chunks:
            return self.group.all_reduce(self._rows(ids))
        most = get_potential_max_tokens()
        padded = torch.nn.functional.pad(ids, (0, most - len(ids)))
        rows = self._rows(self.group.all_gather(padded, 0))
        return self.group.reduce_scatter(rows, 0)[: len(ids)]


def lmhead_all_to_all(logits, group):
    """Exchange rows for columns."""
    blocks = logits.contiguous().view(group.world_size, -1, logits.shape[1])
    received = torch.empty_like(blocks)
    dist.all_to_all_single(received, blocks)
    if not told("not_transposed"):
        received = received.transpose(0, 1)
    return received.reshape(-1, group.world_size * logits.shape[1])
