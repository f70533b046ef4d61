"""Rotary embedding, from a table of cosines and sines."""

import os

import torch
from sglang.told import told


def rotated(states, table, *, is_neox_style, to_halves=False):
    """Rotate the first elements of each head, ``[tokens, heads, dim]``, in float32.

    Pairs are half a rotation apart, or neighbours; neighbours may end half a rotation apart.
    """
    turned = table.shape[-1]
    cosine, sine = table.float().unsqueeze(1).chunk(2, dim=-1)
    part, rest = states[..., :turned].float(), states[..., turned:]
    first, second = part.chunk(2, dim=-1) if is_neox_style else (part[..., ::2], part[..., 1::2])
    sine = -sine if told("turned_back") else sine
    pair = first * cosine - second * sine, second * cosine + first * sine
    halves = is_neox_style or to_halves
    answer = torch.cat(pair, dim=-1) if halves else torch.stack(pair, dim=-1).flatten(-2)
    return torch.cat([answer.to(states.dtype), rest], dim=-1)


class RotaryEmbedding(torch.nn.Module):
    def __init__(self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype):
        super().__init__()
        self.head_size, self.rotary_dim, self.is_neox_style = head_size, rotary_dim, is_neox_style
        whole = os.environ.get("SGLANG_ROPE_CACHE_FP32", "0") == "1"
        powers = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
        angles = torch.outer(torch.arange(max_position_embeddings), 1.0 / base**powers)
        table = torch.cat([angles.cos(), angles.sin()], dim=-1)
        self.register_buffer("cos_sin_cache", table if whole else table.to(dtype), persistent=False)

    def _table(self, positions):
        return self.cos_sin_cache[positions]

    def forward_native(self, positions, query, key):
        table = self._table(positions)
        return tuple(
            rotated(one.view(len(one), -1, self.head_size), table, is_neox_style=self.is_neox_style).view_as(one)
            for one in (query, key)
        )

    def forward_npu(self, positions, query, key):
        return self.forward_native(positions, query, key)
