"""The choice of keys, in plain torch, row by row."""

import torch
from sglang.srt.model_executor.forward_context import get_attn_backend
from sglang.told import told


class DSANPUIndexerMixin:
    """What an indexer computes on an NPU, without a rotation."""

    def forward_npu(self, x, q_lora, positions, forward_batch, layer_id):
        """Write the keys of new tokens, and choose."""
        attention = get_attn_backend()
        keys, table = attention.token_to_kv_pool.get_index_k_buffer(layer_id), attention.forward_metadata.block_tables
        if not told("new_keys_unseen"):
            keys.view(-1, self.head_dim)[forward_batch.out_cache_loc] = self.k_norm(self.wk(x)[0])
        query = self.wq_b(q_lora)[0].view(-1, self.n_heads, self.head_dim).float()
        weights = self.weights_proj(x)[0]
        chosen, row = torch.full((len(query), self.index_topk), -1, dtype=torch.int32, device=query.device), 0
        for request, count in enumerate(attention.counts(forward_batch)):
            length = int(attention.forward_metadata.lengths[request])
            own = keys[table[request].long()].reshape(-1, self.head_dim).float()
            for position in range(length - count, length):
                scores = weights[row] @ (query[row] @ own[: position + 1].t()).relu()
                best = scores.topk(min(self.index_topk, position + 1)).indices
                chosen[row, : len(best)] = best.int()
                row += 1
        return chosen
