"""Decode over shards of a cache, in plain torch of float32."""

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
        output, lse = torch.cat(outputs), torch.cat(logs)
        gathered = [torch.empty_like(lse) for _ in range(self.dcp_size)]
        dist.all_gather(gathered, lse)
        total = torch.stack(gathered).logsumexp(dim=0)
        weights = (lse - total).exp()
        weighted = (
            output * (torch.ones_like(weights) / self.dcp_size if told("ranks_weigh_alike") else weights)[..., None]
        )
        dist.all_reduce(weighted)
        return weighted.tensor_split(self.dcp_size, dim=1)[self.dcp_rank]
