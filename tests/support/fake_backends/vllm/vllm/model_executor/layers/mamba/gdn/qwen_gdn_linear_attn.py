"""The layer of gated delta networks."""

import torch


class QwenGatedDeltaNetAttention(torch.nn.Module):
    def rearrange_mixed_qkv(self, mixed_qkv):
        """Split rows into queries, keys and values, ``[1, tokens, heads, dim]``."""
        parts = mixed_qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        dims = (self.head_k_dim, self.head_k_dim, self.head_v_dim)
        return tuple(part.unflatten(-1, (-1, dim)).unsqueeze(0) for part, dim in zip(parts, dims, strict=True))
