"""What drafts see of a shard."""

import torch
from vllm_ascend.attention.context_parallel.common_cp import get_dcp_local_seq_lens
from vllm_ascend.told import told


class DCPManager:
    """Masks of one rank."""

    def generate_mtp_attention_mask_for_decode(self, computed, new):
        """Keys that a draft does not see, ``[batch, drafts, keys]``."""
        mask = self.dcp_mtp_attn_mask.cpu
        batch, drafts, keys = mask.shape
        ends = torch.tensor(computed).unsqueeze(1) + torch.arange(1, drafts + 1)
        if told("last_draft_everywhere"):
            ends = ends[:, -1:].expand(batch, drafts)
        stretch = self.vllm_config.parallel_config.cp_kv_cache_interleave_size
        seen = get_dcp_local_seq_lens(ends, self.dcp_world_size, stretch)[..., self.dcp_world_rank]
        return torch.arange(keys) >= seen.unsqueeze(-1)
