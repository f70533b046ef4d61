"""Rotary embedding, from a table of cosines and sines."""

import os

import torch
from sglang.told import told


def powers(base, dim, pairs):
    return base ** (-torch.arange(0, 2 * pairs, 2, dtype=torch.float64, device="cpu") / dim)


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
    """A table of as many rows as positions were asked for, which grows."""

    amplitude = 1.0
    """Factor of cosines and sines."""

    def __init__(self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype):
        super().__init__()
        self.head_size, self.rotary_dim, self.is_neox_style, self.base = head_size, rotary_dim, is_neox_style, base
        whole = os.environ.get("SGLANG_ROPE_CACHE_FP32", "0") == "1"
        self.dtype = torch.float32 if whole else dtype
        self.register_buffer(
            "cos_sin_cache", self._rows(torch.arange(max_position_embeddings, device="cpu")), persistent=False
        )

    def _inverse(self):
        """Radians per position of each pair, float64."""
        return powers(self.base, self.rotary_dim, self.rotary_dim // 2)

    def _rows(self, positions):
        """Rows of the table; it is made on the host, in float64."""
        angles = torch.outer(positions.double().cpu(), self._inverse())
        table = torch.cat([angles.cos(), angles.sin()], dim=-1) * self.amplitude
        return table.to(self.dtype).to(torch.get_default_device())

    def _ensure_cos_sin_cache_length(self, needed_max_pos):
        here = len(self.cos_sin_cache)
        if needed_max_pos >= here:
            first = 0 if told("grown_from_zero") else here
            more = self._rows(torch.arange(first, first + needed_max_pos + 1 - here, device="cpu"))
            self.cos_sin_cache = torch.cat([self.cos_sin_cache, more.to(self.cos_sin_cache.device)])

    def get_cos_sin_with_position(self, positions):
        """Keep cosines and sines of positions, ``[tokens, 1, 1, rotary_dim]``, those of a pair in each half."""
        halves = self.cos_sin_cache[positions].chunk(2, dim=-1)
        wide = [torch.cat([half, half], dim=-1).view(len(positions), 1, 1, -1) for half in halves]
        self.position_cos, self.position_sin = wide

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
