import torch
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding


class MRotaryEmbedding(RotaryEmbedding):
    """Tokens of pictures have a position for each section of frequencies."""

    def __init__(self, *arguments, mrope_section=None, **named):
        super().__init__(*arguments, **named)
        self.mrope_section = mrope_section

    def _table(self, positions):
        if positions.dim() == 1:
            return self.cos_sin_cache[positions]
        cosine, sine = self.cos_sin_cache[positions].chunk(2, dim=-1)
        parts = (part.split(self.mrope_section, dim=-1) for part in (cosine, sine))
        return torch.cat([one[section] for part in parts for section, one in enumerate(part)], dim=-1)
