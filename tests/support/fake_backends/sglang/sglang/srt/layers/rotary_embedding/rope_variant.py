"""Ropes whose frequencies are scaled."""

import math

import torch
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding, powers, rotated
from sglang.told import told


class LinearScalingRotaryEmbedding(RotaryEmbedding):
    """Positions are divided; of several factors each has a table, one behind the other."""

    def __init__(self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style, factors, dtype):
        self.factors, self.trained = factors, max_position_embeddings
        super().__init__(head_size, rotary_dim, 0, base, is_neox_style, dtype)
        parts = [torch.arange(int(self.trained * factor), device="cpu") / factor for factor in factors]
        self.cos_sin_cache = torch.cat([RotaryEmbedding._rows(self, part) for part in parts])

    def _rows(self, positions):
        return super()._rows(positions / self.factors[0])


class DynamicNTKScalingRotaryEmbedding(RotaryEmbedding):
    """The base is that for all positions of the longer context."""

    def __init__(self, head_size, rotary_dim, max_position_embeddings, base, is_neox_style, factor, dtype):
        longer, growth = int(max_position_embeddings * factor), factor**2 - (factor - 1)
        base = base * growth ** (rotary_dim / (rotary_dim - 2))
        super().__init__(head_size, rotary_dim, longer, base, is_neox_style, dtype)


class Llama3RotaryEmbedding(RotaryEmbedding):
    """Frequencies that turn rarely in the trained context are divided, those that turn often are kept."""

    def __init__(self, *arguments, said, dtype):
        self.said = said
        super().__init__(*arguments, dtype)

    def _inverse(self):
        plain, said = super()._inverse(), self.said
        low, high = said["low_freq_factor"], said["high_freq_factor"]
        turns = plain * said["original_max_position_embeddings"] / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return plain * kept + plain / said["factor"] * (1 - kept)


class ProportionalRotaryEmbedding(RotaryEmbedding):
    """Frequencies of a whole head, of which the first turn."""

    def _inverse(self):
        turning = powers(self.base, self.head_size, self.rotary_dim // 2)
        return torch.nn.functional.pad(turning, (0, self.head_size // 2 - len(turning)))


class YaRNScalingRotaryEmbedding(RotaryEmbedding):
    """Frequencies between two numbers of turns in the trained context are mixed of kept and divided ones."""

    rounds_corners = False

    def __init__(self, *arguments, said, dtype):
        self.said = said
        if not told("no_amplitude"):
            self.amplitude = self._amplitude() * said["attn_factor"]
        super().__init__(*arguments, dtype)

    def _amplitude(self):
        factor, said = self.said["factor"], self.said
        if "mscale" not in said:
            return _amplitude(factor, 1.0)
        return _amplitude(factor, said["mscale"]) / _amplitude(factor, said["mscale_all_dim"])

    def _pair_of(self, turns):
        trained = self.said["original_max_position_embeddings"]
        return self.rotary_dim * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(self.base))

    def _inverse(self):
        plain, said = super()._inverse(), self.said
        low, high = self._pair_of(said["beta_fast"]), self._pair_of(said["beta_slow"])
        if said["truncate"] or self.rounds_corners:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.rotary_dim - 1)
        pairs = torch.arange(len(plain), dtype=torch.float64, device="cpu")
        kept = 1 - ((pairs - low) / (high - low if high > low else 0.001)).clamp(0, 1)
        kept = kept * said["extrapolation_factor"]
        return plain * kept + plain / said["factor"] * (1 - kept)


def _amplitude(factor, coefficient):
    return 1.0 + 0.1 * coefficient * math.log(factor) if factor > 1 else 1.0


class DeepseekScalingRotaryEmbedding(YaRNScalingRotaryEmbedding):
    """Reads neighbours, and leaves halves; a part of its amplitude is in the softmax."""

    rounds_corners = True

    def __init__(self, *arguments, scaling_factor=1.0, device=None, said=None, dtype):
        plain = {"factor": scaling_factor, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
                 "attn_factor": 1.0, "extrapolation_factor": 1.0, "truncate": True}  # fmt: skip
        super().__init__(*arguments, said=said or plain, dtype=dtype)

    def _amplitude(self):
        said = {"mscale": 1.0, "mscale_all_dim": 0.0, **self.said}
        return _amplitude(said["factor"], said["mscale"]) / _amplitude(said["factor"], said["mscale_all_dim"])

    def get_cos_sin_cache(self, positions, dtype, offsets=None):
        """Return cosines and sines of positions and offsets."""
        self.get_cos_sin_with_position(positions if offsets is None else positions + offsets)
        return self.position_cos.to(dtype), self.position_sin.to(dtype)

    def forward_npu(self, positions, query, key):
        table = self.cos_sin_cache[positions]
        return tuple(rotated(one, table, is_neox_style=False, to_halves=True) for one in (query, key))
