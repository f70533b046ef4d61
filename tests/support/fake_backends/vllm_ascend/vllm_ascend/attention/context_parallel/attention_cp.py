"""Decode over shards of a cache, in plain torch of float32."""

from types import SimpleNamespace

import torch
import torch.distributed as dist
from vllm_ascend.attention.plain import attend
from vllm_ascend.told import told

_EXTRA_CTX = None


def get_graph_params():
    """Graphs, of which there are none."""


class AscendAttentionDCPImpl:
    """Attention of one rank."""

    def _forward_decode_dcp(self, query, batch):
        """Attention of the own heads over all ranks' keys."""
        everyone = self.dcp_group.all_gather(query, 1)
        meta, rows = batch.decode_meta, len(query) // batch.num_decodes
        outputs, logs = [], []
        for request in range(batch.num_decodes):
            own = everyone[request * rows : (request + 1) * rows]
            keys, values = (cache[meta.block_tables[request].long()].flatten(0, 1)
                            for cache in (self.key_cache, self.value_cache))  # fmt: skip
            length = int(meta.num_computed_tokens_of_dcp[request, self.dcp_rank])
            mask = meta.dcp_mtp_attn_mask
            for row in range(rows):
                seen = length if mask is None else int((~mask[request, row, :length]).sum())
                output, lse = attend(own[row : row + 1], keys, values, seen, self.scale, causal=False)
                outputs.append(output)
                logs.append(lse)
        return self._merged(torch.cat(outputs), torch.cat(logs))[0]

    def _merged(self, output, lse):
        """The own heads of what all ranks found, and their logarithms."""
        gathered = [torch.empty_like(lse) for _ in range(self.dcp_size)]
        dist.all_gather(gathered, lse.contiguous())
        total = torch.stack(gathered).logsumexp(dim=0)
        weights = (lse - total.masked_fill(total.isneginf(), 0.0)).exp()
        if told("ranks_weigh_alike"):
            weights = torch.full_like(weights, 1 / self.dcp_size)
        weighted = output * weights.unsqueeze(-1)
        dist.all_reduce(weighted)
        own = [whole.tensor_split(self.dcp_size, dim=1)[self.dcp_rank] for whole in (weighted, total)]
        return own[0], own[1]

    def forward_impl(self, query, key, value, kv_cache, batch, output):
        """Prompts: what new tokens see of each other, and of histories on all ranks."""
        everyone, meta = self.dcp_group.all_gather(query, 1), batch.prefill
        start, found, fresh = 0, [], []
        for request, rows in enumerate(meta.new):
            own = slice(start, start + rows)
            start += rows
            keys, values = (cache[meta.block_tables[request].long()].flatten(0, 1) for cache in kv_cache)
            found.append(attend(everyone[own], keys, values, meta.lengths[request], self.scale, causal=False))
            fresh.append(attend(query[own], key[own], value[own], rows, self.scale, causal=not told("drafts_unmasked")))
        history, before = self._merged(torch.cat([one for one, _ in found]), torch.cat([lse for _, lse in found]))
        now, after = torch.cat([one for one, _ in fresh]), torch.cat([lse for _, lse in fresh])
        total = torch.logaddexp(before, after)
        parts = [(log - total).exp().unsqueeze(-1) * one for one, log in ((history, before), (now, after))]
        output.copy_(parts[0] + parts[1])


class AscendAttentionDCPMetadata:
    """What attention is told of a batch."""


class AscendAttentionDCPMetadataBuilder:
    """Makes it."""

    def _build_backend_metadata(self, common, *, block_table, query_lens, seq_lens, num_decodes, num_prefills):
        lengths = common.context_parallel_metadata.num_computed_tokens_of_dcp[:, self.dcp_rank].tolist()
        prefill = SimpleNamespace(lengths=lengths, block_tables=block_table, new=query_lens.tolist())
        return {"prefill": prefill, "decode_meta": None}
