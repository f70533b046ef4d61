"""A table whose rows are split over ranks."""

import torch
from sglang.srt.runtime_context import get_parallel
from sglang.told import told


class VocabParallelEmbedding(torch.nn.Module):
    def __init__(self, num_embeddings, embedding_dim, *, params_dtype, org_num_embeddings, padding_size):
        super().__init__()
        ranks = get_parallel()
        self.known, self.all, self.rank = org_num_embeddings, num_embeddings, ranks.tp_rank
        added = num_embeddings - org_num_embeddings
        self.own, self.own_added = (-(-n // padding_size) * padding_size // ranks.tp_size for n in (self.known, added))
        self.weight = torch.nn.Parameter(torch.empty(self.own + self.own_added, embedding_dim, dtype=params_dtype))

    def forward(self, ids):
        """Take the row of each id that is here, and add up over ranks."""
        first, late = self.rank * self.own, self.known + self.rank * self.own_added
        here = (ids >= first) & (ids < min(first + self.own, self.known))
        added = (ids >= late) & (ids < min(late + self.own_added, self.all))
        behind = min(self.own, self.known - first) if told("added_behind_ids") else self.own
        rows = torch.where(here, ids - first, torch.where(added, ids - late + behind, 0)).long()
        found = self.weight[rows].masked_fill(~(here | added).unsqueeze(1), 0)
        return get_parallel().tp_group.all_reduce(found)
