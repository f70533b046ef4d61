"""Metadata of the layer."""

from types import SimpleNamespace

from vllm_ascend.told import told


def get_pcp_group():
    raise AssertionError("there are no ranks")


class AscendGDNAttentionMetadataBuilder:
    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        self.graph = vllm_config.compilation_config.cudagraph_mode.has_full_cudagraphs()

    def build(self, common_prefix_len, common_attn_metadata, num_accepted_tokens=None, drafts=None):
        """Say what is where."""
        batch = common_attn_metadata
        lengths = batch.query_start_loc.diff()
        if self.graph and told("first_slot_everywhere"):
            batch.block_table_tensor[:] = batch.block_table_tensor[:1].clone()
        return SimpleNamespace(
            starts=batch.query_start_loc,
            blocks=batch.block_table_tensor,
            accepted=num_accepted_tokens,
            known=batch.seq_lens > lengths,
            num_actual_tokens=batch.num_actual_tokens,
            prompt=bool(batch.is_prefilling.any()),
        )
