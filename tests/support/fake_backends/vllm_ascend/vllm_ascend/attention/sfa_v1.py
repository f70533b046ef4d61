"""Sparse attention and its indexer, in plain torch, row by row."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm_ascend.told import told


def get_cos_and_sin_mla(positions, use_cache=False):
    """Tables of a rotation, which whoever builds metadata sets."""
    raise NotImplementedError


@dataclass
class AscendSFAMetadata:
    """What a layer is told of a batch."""

    block_table: Any
    cum_query_lens: Any
    seq_lens: Any
    cos: Any
    sin: Any


class AscendSFAMetadataBuilder:
    """Makes that of what all layers are told."""

    def build(self, common_prefix_len, common):
        """Copy it."""
        cos, sin = get_cos_and_sin_mla(common.positions)
        return self.metadata_cls(common.block_table_tensor, common.query_start_loc[1:], common.seq_lens, cos, sin)


def _rows(table, ends, lengths, cache):
    """Row, position and all keys of its request, for each row."""
    row, starts = 0, [0, *ends.tolist()]
    for request, length in enumerate(lengths.tolist()):
        own = cache[table[request].long()].flatten(0, 1).squeeze(1).float()
        for position in range(length - (starts[request + 1] - starts[request]), length):
            yield row, position, own
            row += 1


class AscendSFAImpl:
    """One layer."""

    def indexer_select_post_process(self, x, q_c, kv_cache, said, cos, sin, ends, lengths):
        """Choose keys."""
        weights = self.wk_weights_proj(x)[0][:, self.head_dim :].float()
        query, most = self.wq_b(q_c)[0].view(-1, self.n_head, self.head_dim).float(), 2048
        chosen = torch.full((len(query), 1, most), -1, dtype=torch.int32, device=query.device)
        for row, position, keys in _rows(said.block_table, ends, lengths, kv_cache[2]):
            seen = position + (0 if told("own_key_unseen") else 1)
            best = (weights[row] @ (query[row] @ keys[:seen].t()).relu()).topk(min(most, seen)).indices
            chosen[row, 0, : len(best)] = best.int()
        return chosen

    def _execute_sparse_flash_attention_process(self, query, query_rope, caches, indices, said, ends, lengths):
        """Attend to them."""
        answer = torch.zeros_like(query)
        ropes = _rows(said.block_table, ends, lengths, caches[1])
        latents = _rows(said.block_table, ends, lengths, caches[0])
        for (row, position, latent), (_, _, rope) in zip(latents, ropes, strict=True):
            there = indices[row, 0][(indices[row, 0] >= 0) & (indices[row, 0] <= position)].long()
            scores = query[row].float() @ latent[there].t()
            if not told("rotation_ignored"):
                scores = scores + query_rope[row].float() @ rope[there].t()
            if len(there):
                answer[row] = ((scores * self.scale).softmax(dim=-1) @ latent[there]).to(query.dtype)
        return answer
