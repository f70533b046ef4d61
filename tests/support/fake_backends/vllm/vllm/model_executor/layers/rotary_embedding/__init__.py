"""Rotary embedding, from a table of cosines and sines."""

import torch
from vllm.model_executor.custom_op import op_registry_oot

_ROPE_DICT = {}


def rotated(states, table, *, is_neox_style, to_halves=False):
    """Rotate the first elements of each head, ``[tokens, heads, dim]``, in float32.

    Pairs are half a rotation apart, or neighbours; neighbours may end half a rotation apart.
    """
    turned = table.shape[-1]
    cosine, sine = table.float().unsqueeze(1).chunk(2, dim=-1)
    part, rest = states[..., :turned].float(), states[..., turned:]
    first, second = part.chunk(2, dim=-1) if is_neox_style else (part[..., ::2], part[..., 1::2])
    pair = first * cosine - second * sine, second * cosine + first * sine
    together = is_neox_style or to_halves
    answer = torch.cat(pair, dim=-1) if together else torch.stack(pair, dim=-1).flatten(-2)
    return torch.cat([answer.to(states.dtype), rest], dim=-1)


class RotaryEmbedding(torch.nn.Module):
    def __init__(self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype, inverse=None):
        super().__init__()
        self.head_size, self.rotary_dim, self.is_neox_style = head_size, rotary_dim, is_neox_style
        if inverse is None:
            inverse = 1.0 / base ** (torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
        angles = torch.outer(torch.arange(max_position_embeddings, dtype=torch.float64), inverse)
        table = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
        self.register_buffer("cos_sin_cache", table, persistent=False)

    @staticmethod
    def forward_static(positions, query, key, head_size, rotary_dim, cos_sin_cache, is_neox_style):
        table = cos_sin_cache[positions]
        return tuple(
            rotated(one.view(len(one), -1, head_size), table, is_neox_style=is_neox_style).view_as(one)
            for one in (query, key)
        )


class MRotaryEmbedding(RotaryEmbedding):
    """Tokens of pictures have a position for each section of frequencies."""

    def __init__(
        self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype, mrope_section=None,
        mrope_interleaved=False,
    ):  # fmt: skip
        super().__init__(head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype)
        self.mrope_section = mrope_section


def get_rope(head_size, max_position, is_neox_style=True, rope_parameters=None, dtype=None):
    """Return the rope of a model: one that is not scaled, or whose positions are divided."""
    said = rope_parameters or {}
    key = (head_size, max_position, is_neox_style, tuple(said.items()), dtype)
    if key not in _ROPE_DICT:
        kind, turned = said.get("rope_type", "default"), said.get("rope_dim", head_size)
        if kind not in ("default", "linear"):
            raise NotImplementedError(f"rope of type {kind}")
        factor = said.get("factor", 1.0)
        inverse = 1.0 / (said["rope_theta"] ** (torch.arange(0, turned, 2, dtype=torch.float64) / turned) * factor)
        rows = int(max_position * factor)
        made = op_registry_oot.get("RotaryEmbedding", RotaryEmbedding)
        _ROPE_DICT[key] = made(head_size, turned, rows, said["rope_theta"], is_neox_style, dtype, inverse)
    return _ROPE_DICT[key]
