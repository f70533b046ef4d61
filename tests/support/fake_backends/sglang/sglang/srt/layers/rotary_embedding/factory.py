"""The rope of a configuration; layers with the same one share it."""

from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.rope_variant import (
    DeepseekScalingRotaryEmbedding,
    DynamicNTKScalingRotaryEmbedding,
    LinearScalingRotaryEmbedding,
    Llama3RotaryEmbedding,
    ProportionalRotaryEmbedding,
    YaRNScalingRotaryEmbedding,
)

_ROPE_DICT = {}


def get_rope(head_size, rotary_dim, max_position, base, is_neox_style=True, rope_scaling=None, dtype=None):
    said = rope_scaling or {}
    key = (head_size, rotary_dim, max_position, base, is_neox_style, repr(sorted(said.items())), dtype)
    if key not in _ROPE_DICT:
        _ROPE_DICT[key] = _made(head_size, rotary_dim, max_position, base, is_neox_style, said, dtype)
    return _ROPE_DICT[key]


def _made(head_size, rotary_dim, max_position, base, is_neox_style, said, dtype):
    kind, factor = said.get("rope_type", "default"), said.get("factor", 1.0)
    sizes = head_size, rotary_dim, max_position, base, is_neox_style
    if kind == "linear":
        return LinearScalingRotaryEmbedding(*sizes, factor if isinstance(factor, list) else [factor], dtype)
    if kind == "dynamic":
        return DynamicNTKScalingRotaryEmbedding(*sizes, factor, dtype)
    if kind == "llama3":
        return Llama3RotaryEmbedding(*sizes, said=said, dtype=dtype)
    if kind in ("yarn", "deepseek_yarn"):
        rows = int(said["original_max_position_embeddings"] * factor)
        made = YaRNScalingRotaryEmbedding if kind == "yarn" else DeepseekScalingRotaryEmbedding
        return made(head_size, rotary_dim, rows, base, is_neox_style, said=said, dtype=dtype)
    kind = ProportionalRotaryEmbedding if kind == "proportional" else RotaryEmbedding
    return kind(*sizes, dtype)
