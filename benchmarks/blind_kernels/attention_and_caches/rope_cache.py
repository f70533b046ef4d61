"""Wrong kernels of rope_cache; TWIN=1 runs the same code without the mistakes."""

import math
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def powers(base, dim, pairs):
    return torch.exp(-(2 * torch.arange(pairs, dtype=torch.float64) / dim) * math.log(base))


def get_mscale(factor, coefficient):
    return 1.0 if factor <= 1 else 0.1 * coefficient * math.log(factor) + 1.0


class Rope:
    """All kinds in float64; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.config = inputs, inputs.config

    def growth(self):
        return self.config.factor**2 - (self.config.factor - 1)

    def proportional_dim(self):
        return self.config.head_dim

    def llama3_share(self, plain):
        c = self.config
        turns = c.max_positions * plain / (2 * math.pi)
        return ((turns - c.low_freq_factor) / (c.high_freq_factor - c.low_freq_factor)).clamp(0, 1)

    def corners(self):
        c = self.config

        def dim(turns):
            return c.rotary_dim * math.log(c.max_positions / (turns * 2 * math.pi)) / (2 * math.log(c.base))

        low, high = dim(c.beta_fast), dim(c.beta_slow)
        if self.truncated():
            low, high = float(math.floor(low)), float(math.ceil(high))
        low, high = max(low, 0.0), min(high, c.rotary_dim - 1.0)
        return low, high + 0.001 if low == high else high

    def truncated(self):
        return self.config.truncate or self.config.kind == "deepseek_yarn"

    def frequencies(self):
        c = self.config
        if c.kind == "dynamic":
            base = c.base * self.growth() ** (c.rotary_dim / (c.rotary_dim - 2))
            return powers(base, c.rotary_dim, c.rotary_dim // 2)
        if c.kind == "proportional":
            turning = powers(c.base, self.proportional_dim(), c.rotary_dim // 2)
            return torch.cat([turning, torch.zeros((c.head_dim - c.rotary_dim) // 2, dtype=torch.float64)])
        plain = powers(c.base, c.rotary_dim, c.rotary_dim // 2)
        if c.kind == "llama3":
            share = self.llama3_share(plain)
        elif c.kind in ("yarn", "deepseek_yarn"):
            low, high = self.corners()
            ramp = ((torch.arange(c.rotary_dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
            share = (1 - ramp) * c.extrapolation_factor
        else:
            return plain
        return plain / c.factor * (1 - share) + plain * share

    def rows(self):
        return self.inputs.rows

    def positions(self):
        """Positions within their sections, and what they are divided by."""
        c, rows = self.config, self.rows()
        if c.kind != "linear":
            return rows.double(), torch.ones(len(rows), dtype=torch.float64)
        factors = torch.tensor(c.factors, dtype=torch.float64)
        if not c.sections:
            return rows.double(), factors.expand(len(rows))
        ends = torch.tensor(c.sections).cumsum(0)
        section = torch.searchsorted(ends, rows, right=True)
        return self.in_section(rows, ends - torch.tensor(c.sections), section).double(), factors[section]

    def in_section(self, rows, starts, section):
        return rows - starts[section]

    def amplitude(self):
        c = self.config
        if c.kind == "yarn" and c.mscale is None:
            return get_mscale(c.factor, 1.0) * c.attention_factor
        if c.kind in ("yarn", "deepseek_yarn"):
            over = get_mscale(c.factor, 1.0 if c.mscale is None else c.mscale)
            return over / get_mscale(c.factor, c.mscale_all_dim or 0.0) * c.attention_factor
        return 1.0

    def softmax_scale(self):
        c = self.config
        correction = get_mscale(c.factor, c.mscale_all_dim or 0.0) if c.kind == "deepseek_yarn" else 1.0
        return correction**2 / math.sqrt(c.head_dim)

    def angles(self):
        position, factor = self.positions()
        return (position / factor).unsqueeze(1) * self.frequencies()

    def functions(self, angles):
        return angles.cos(), angles.sin()

    def run(self):
        cosine, sine = (part * self.amplitude() for part in self.functions(self.angles()))
        dtype = self.inputs.dtype
        wide = {name: torch.cat([part, part], dim=1)[:, None, None, :].to(dtype) for name, part in (("cos", cosine), ("sin", sine))}
        scale = torch.tensor([self.softmax_scale()], dtype=torch.float64).float()
        return {**wide, "table": torch.cat([cosine, sine], dim=1).to(dtype), "softmax_scale": scale}


def kernel(name):
    def register(cls):
        def run(inputs, target):
            return cls(inputs).run()

        run.__doc__ = cls.__doc__
        return npudiff.implementation("rope_cache", name=name, on_device=True)(run)

    return register


@kernel("b_rope_cache_01_llama3_mixed_the_wrong_way")
class Llama3(Rope):
    """Between the wavelengths, the divided frequency has the share of the kept one."""

    def llama3_share(self, plain):
        share = super().llama3_share(plain)
        return torch.where((share > 0) & (share < 1), 1 - share, share) if WRONG else share


@kernel("b_rope_cache_02_attention_factor_unread")
class AttentionFactor(Rope):
    """The amplitude is computed, and the factor of the configuration not read."""

    def amplitude(self):
        result = super().amplitude()
        return result / self.config.attention_factor if WRONG and "yarn" in self.config.kind else result


@kernel("b_rope_cache_03_mscale_once")
class Once(Rope):
    """The softmax scale is corrected by mscale, and not by its square."""

    def softmax_scale(self):
        scale, c = super().softmax_scale(), self.config
        if WRONG and c.kind == "deepseek_yarn":
            scale /= get_mscale(c.factor, c.mscale_all_dim or 0.0)
        return scale


@kernel("b_rope_cache_04_sections_count_on")
class CountOn(Rope):
    """Sections of several factors go on counting."""

    def in_section(self, rows, starts, section):
        return rows if WRONG else super().in_section(rows, starts, section)


@kernel("b_rope_cache_05_growth_counts_anew")
class Growth(Rope):
    """Rows that are appended begin at position 0 of their piece."""

    def rows(self):
        rows = self.inputs.rows
        if WRONG and len(self.inputs.lengths) > 1:
            first = self.inputs.lengths[0]
            rows = torch.where(rows >= first, rows - first, rows)
        return rows


@npudiff.implementation("rope_cache", name="b_rope_cache_06_remembered_by_base_and_dim", on_device=True)
def remembered(inputs, target):
    """Ropes of a model are remembered by dim, base and kind; a later layer's replaces what was built before."""
    from dataclasses import replace

    built = {}
    for config in (inputs.config, inputs.other):
        if config is not None:
            key = (config.rotary_dim, config.base, config.kind) if WRONG else config
            built[key] = config
    own = inputs.config
    found = built[(own.rotary_dim, own.base, own.kind) if WRONG else own]
    if found.width != own.width or found.sections != own.sections:
        found = own
    return Rope(replace(inputs, config=found)).run()


@kernel("b_rope_cache_07_dynamic_by_length")
class DynamicByLength(Rope):
    """The base grows with the rows that the table has, not with the factor's."""

    def growth(self):
        c = self.config
        if not WRONG:
            return super().growth()
        return max(1.0, c.factor * self.inputs.lengths[-1] / c.max_positions - (c.factor - 1))


@kernel("b_rope_cache_08_proportional_of_rotary_dim")
class Proportional(Rope):
    """Frequencies of a proportional rope are spread over what turns, and not over the head."""

    def proportional_dim(self):
        return self.config.rotary_dim if WRONG else super().proportional_dim()


@kernel("b_rope_cache_09_one_offset_for_all")
class OneOffset(Rope):
    """The offset of the first token is added to all positions."""

    def rows(self):
        inputs = self.inputs
        if not WRONG or inputs.offsets is None or not len(inputs.offsets):
            return inputs.rows
        rows = inputs.positions + inputs.offsets[:1].long()
        return rows.clamp(inputs.first_row, inputs.lengths[-1] - 1)


@kernel("b_rope_cache_10_half_positions")
class HalfPositions(Rope):
    """Positions pass through float16, as the model's other buffers do."""

    def positions(self):
        position, factor = super().positions()
        return (position.half().double().clamp(max=65504.0), factor) if WRONG else (position, factor)


@kernel("b_rope_cache_11_two_pi_of_float32")
class TwoPi(Rope):
    """Angles are reduced by the float32 nearest to two pi."""

    def functions(self, angles):
        if WRONG:
            period = float(torch.tensor(2 * math.pi, dtype=torch.float32))
            angles = angles - torch.floor(angles / period) * period
        return super().functions(angles)


@kernel("b_rope_cache_12_corners_always_truncated")
class Truncated(Rope):
    """Corners of the YaRN ramp are rounded outwards, whatever truncate says."""

    def truncated(self):
        return True if WRONG else super().truncated()


@kernel("b_rope_cache_13_mscale_of_zero_is_none")
class ZeroIsNone(Rope):
    """mscale and mscale_all_dim of 0 are taken for values that are not given, which are 1."""

    def amplitude(self):
        c = self.config
        if not WRONG or c.kind != "deepseek_yarn":
            return super().amplitude()
        return get_mscale(c.factor, c.mscale or 1.0) / get_mscale(c.factor, c.mscale_all_dim or 1.0) * c.attention_factor
