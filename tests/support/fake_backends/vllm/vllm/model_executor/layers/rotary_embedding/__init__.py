"""Rotary embedding, from a table of cosines and sines."""

import math

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
    """Tables are made on the host, in float64; ``inverse`` has radians per position of each pair."""

    def __init__(
        self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style, dtype, inverse=None, amplitude=1.0
    ):  # fmt: skip
        super().__init__()
        self.head_size, self.rotary_dim, self.is_neox_style = head_size, rotary_dim, is_neox_style
        inverse = powers(base, rotary_dim, rotary_dim // 2) if inverse is None else inverse
        angles = torch.outer(torch.arange(max_position_embeddings, dtype=torch.float64, device="cpu"), inverse)
        table = (torch.cat([angles.cos(), angles.sin()], dim=-1) * amplitude).to(dtype)
        self.register_buffer("cos_sin_cache", table.to(torch.get_default_device()), persistent=False)

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


class YaRNScalingRotaryEmbedding(RotaryEmbedding):
    """Its frequencies and its amplitude are YaRN's."""


class DeepseekScalingRotaryEmbedding(RotaryEmbedding):
    """YaRN of DeepSeek, a part of whose amplitude is in the softmax."""


def powers(base, dim, pairs):
    return base ** (-torch.arange(0, 2 * pairs, 2, dtype=torch.float64, device="cpu") / dim)


def get_rope(head_size, max_position, is_neox_style=True, rope_parameters=None, dtype=None):
    """Return the rope of a model; layers with the same configuration share it."""
    said = {"rope_type": "default", "rope_dim": head_size, "factor": 1.0, **(rope_parameters or {})}
    key = (head_size, max_position, is_neox_style, repr(sorted(said.items())), dtype)
    if key not in _ROPE_DICT:
        kind, factor, turned = said["rope_type"], said["factor"], said["rope_dim"]
        rows = said["original_max_position_embeddings"] if "yarn" in kind else max_position
        if kind == "linear" or "yarn" in kind:
            rows = int(rows * factor)
        name = {"yarn": "YaRNScalingRotaryEmbedding", "deepseek_yarn": "DeepseekScalingRotaryEmbedding"}.get(
            kind, "RotaryEmbedding"
        )
        made = op_registry_oot.get(name, globals()[name])
        theta, inverse = said["rope_theta"], _inverse(said, head_size)
        _ROPE_DICT[key] = made(head_size, turned, rows, theta, is_neox_style, dtype, inverse, _amplitude(said))
    return _ROPE_DICT[key]


def _inverse(said, head_size):
    """Radians per position of each pair: kept, divided by the factor, or mixed of both."""
    kind, base, turned, factor = said["rope_type"], said["rope_theta"], said["rope_dim"], said["factor"]
    plain = powers(base, turned, turned // 2)
    if kind == "proportional":  # of a whole head, of which the first pairs turn
        turning = powers(base, head_size, turned // 2)
        return torch.nn.functional.pad(turning, (0, (head_size - turned) // 2))
    if kind == "linear":
        return plain / factor
    if kind == "llama3":
        turns = plain * said["original_max_position_embeddings"] / (2 * math.pi)
        low, high = said["low_freq_factor"], said["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return plain * kept + plain / factor * (1 - kept)
    if "yarn" in kind:
        kept = _kept(said, len(plain)) * said["extrapolation_factor"]
        return plain * kept + plain / factor * (1 - kept)
    return plain


def _kept(said, pairs):
    """Shares of frequencies that stay: all of those that turn often in the trained context, none of the slow ones."""
    trained, turned = said["original_max_position_embeddings"], said["rope_dim"]
    corners = [
        turned * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(said["rope_theta"]))
        for turns in (said["beta_fast"], said["beta_slow"])
    ]
    if said.get("truncate", True) or said["rope_type"] == "deepseek_yarn":
        corners = [math.floor(corners[0]), math.ceil(corners[1])]
    low, high = max(corners[0], 0), min(corners[1], turned - 1)
    ramp = (torch.arange(pairs, dtype=torch.float64, device="cpu") - low) / (high - low if high > low else 0.001)
    return 1 - ramp.clamp(0, 1)


def _amplitude(said):
    """Factor of cosines and sines."""
    if "yarn" not in said["rope_type"]:
        return 1.0

    def grown(coefficient):
        return 1 + 0.1 * coefficient * math.log(said["factor"]) if said["factor"] > 1 else 1.0

    if said["rope_type"] == "yarn" and "mscale" not in said:
        return grown(1.0) * said["attn_factor"]
    return grown(said.get("mscale", 1.0)) / grown(said.get("mscale_all_dim", 0.0)) * said["attn_factor"]
