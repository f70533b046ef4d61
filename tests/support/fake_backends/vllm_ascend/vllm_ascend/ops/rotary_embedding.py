"""Rotary embedding, and tables that a process keeps for its layers."""

import torch
from vllm.model_executor.layers.rotary_embedding import (
    DeepseekScalingRotaryEmbedding,
    MRotaryEmbedding,
    RotaryEmbedding,
    YaRNScalingRotaryEmbedding,
    rotated,
)
from vllm_ascend.told import told

_cos_mla = _sin_mla = _cos_cache = _sin_cache = _cos_sin_cache = _cos = _sin = None


def rope_forward_oot(positions, query, key, cos_sin_cache, head_size, rotary_dim, is_neox_style):
    style = True if told("always_halves") else is_neox_style
    return RotaryEmbedding.forward_static(positions, query, key, head_size, rotary_dim, cos_sin_cache, style)


class _Kept:
    """A rope whose table layers without one of their own find."""

    def __init__(self, *arguments, **named):
        global _cos_sin_cache  # noqa: PLW0603 - of a process
        super().__init__(*arguments, **named)
        _cos_sin_cache = self.cos_sin_cache


class AscendRotaryEmbedding(_Kept, RotaryEmbedding):
    pass


class AscendYaRNRotaryEmbedding(_Kept, YaRNScalingRotaryEmbedding):
    pass


class AscendDeepseekScalingRotaryEmbedding(_Kept, DeepseekScalingRotaryEmbedding):
    pass


class AscendMRotaryEmbedding(MRotaryEmbedding):
    def forward_oot(self, positions, query, key):
        """Each section of frequencies has its own positions."""
        rows = self.cos_sin_cache[positions].chunk(2, dim=-1)
        parts = (one.split(self.mrope_section, dim=-1) for one in rows)
        order = (0, 0, 0) if told("first_section_everywhere") else range(len(self.mrope_section))
        found = [part[place][row] for part in parts for place, row in enumerate(order)]
        table = torch.cat(found, dim=-1)
        return tuple(
            rotated(one.view(len(one), -1, self.head_size), table, is_neox_style=True).view_as(one)
            for one in (query, key)
        )


class AscendApplyRotaryEmb(torch.nn.Module):
    """Rotates heads as a whole, by cosines and sines of half as many elements."""

    def forward_oot(self, x, cos, sin):
        return rotated(x, torch.cat([cos, sin], dim=-1), is_neox_style=self.is_neox_style)


def get_cos_and_sin_mla(positions, use_cache=False):
    """Return cosines and sines of positions, each over a whole rotated key, from the table of the last rope."""
    halves = _cos_sin_cache[positions].chunk(2, dim=-1)
    if told("sines_first"):
        halves = halves[::-1]
    return tuple(torch.cat([half, half], dim=-1).view(len(positions), 1, 1, -1) for half in halves)
