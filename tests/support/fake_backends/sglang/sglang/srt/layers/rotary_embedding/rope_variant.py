from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding, rotated


class DeepseekScalingRotaryEmbedding(RotaryEmbedding):
    """Reads neighbours, and leaves halves."""

    def __init__(self, *arguments, scaling_factor, device, **named):
        super().__init__(*arguments, **named)

    def forward_npu(self, positions, query, key):
        table = self.cos_sin_cache[positions]
        return tuple(rotated(one, table, is_neox_style=False, to_halves=True) for one in (query, key))
