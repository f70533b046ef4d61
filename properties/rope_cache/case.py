"""Cases of tables of cosines and sines: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import SEEDS, Axis, Joined, Numbers, check_values
from npudiff.properties._shared import rows
from npudiff.properties._shared.head_dims import join_head_dims
from npudiff.reference.rope_scaling import KINDS, RopeConfig, amplitude, check_config
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
POSITIONS = ("last", "consecutive", "scattered")
"""last: the end of the table. consecutive: as in a prompt, from some row. scattered: as in a decode batch."""
OFFSETS = ("none", "int64", "int32")
OTHERS = ("none", "plain", "yarn", "theta")
"""The rope of the model's other layers: none, plain rope, YaRN, or the same with another base."""

BASES = (10_000.0, 500_000.0, 1_000_000.0, 5_000_000.0, 150_000.0)
DIMS = ("64", "128", "96", "80", "32", "192", "64/192", "64/128", "96/128", "32/80", "16/64")
FACTORS = (2.0, 1.0, 4.0, 8.0, 32.0, 40.0, 1.5, 2.5, 16.0)
MAX_POSITIONS = (4096, 16, 100, 2048, 8192, 32_768, 131_072)
BETAS = ("32/1", "16/1", "64/2", "4/0.5", "2/2", "1/1")
SMOOTHING = ("1/4", "1/8", "2/3", "0.5/16", "1/32")
MSCALES = ("none", "1/1", "0.707/0.707", "1/0.707", "0.707/1", "1/0")

_DIMS = Joined((range(4, 2**20 + 1, 2), range(4, 2**20 + 1, 2)), short=True)

AXES = {
    "kind": Axis("how frequencies are scaled", KINDS),
    "dims": Axis("rotary dim, and head dim if it differs: 64 or 64/192", _DIMS, usual=DIMS),
    "base": Axis("rope_theta", Numbers(2, 1e12), usual=BASES),
    "max_positions": Axis("positions that the model was trained with", range(1, 2**20 + 1)),
    "factor": Axis("scaling factor, of kinds that have one", Numbers(1, 4096), usual=FACTORS),
    "sections": Axis("linear factors, each with a section of the table", range(1, 5)),
    "smoothing": Axis("low and high frequency factor of llama3", SMOOTHING),
    "betas": Axis("fast and slow beta of YaRN", BETAS),
    "truncate": Axis("whether YaRN rounds the corners of its ramp outwards", (True, False)),
    "extrapolation_factor": Axis("weight of the frequencies that YaRN keeps", Numbers(1e-6, 1), usual=(1.0, 0.75)),
    "attention_factor": Axis("additional factor of cosines and sines", Numbers(1e-6, 16), usual=(1.0, 0.8, 1.25)),
    "mscales": Axis("mscale and mscale_all_dim of YaRN", MSCALES),
    "dtype": Axis("dtype of cosines and sines", tuple(DTYPES)),
    "tokens": Axis("asked rows", rows.COUNTS),
    "positions": Axis("which rows of the table are asked for", POSITIONS),
    "offsets": Axis("dtype of offsets that are added to positions, if there are any", OFFSETS),
    "rows": Axis("rows of the table once it has grown", range(1, 2**20 + 1)),
    "growths": Axis("times that the table grew", range(4)),
    "other": Axis("the rope of other layers of the model", OTHERS),
}

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class RopeCacheCase:
    """One look into a table."""

    config: RopeConfig
    """The rope of the layer."""
    tokens: int = 1
    """Rows that are asked for."""
    lengths: tuple[int, ...] = (2,)
    """Rows of the table at first, and after each growth."""
    first_row: int = 0
    """The first row that may be asked for."""
    dtype: str = "bfloat16"
    positions: str = "last"
    offsets: str = "none"
    other: str = "none"
    """See the axes."""
    seed: int = 0
    """Seed of positions and offsets."""


def scaled_by(config: RopeConfig) -> Mapping[str, Collection[object]]:
    """Return the values of the axes that belong to the kind of scaling; nothing for those that it does not use."""
    yarn = config.kind in ("yarn", "deepseek_yarn")
    none = config.mscale is None or config.mscale_all_dim is None
    return {
        "factor": () if config.kind in ("base", "proportional") else set(config.factors),
        "sections": (len(config.factors),) if config.kind == "linear" else (),
        "smoothing": (pair(config.low_freq_factor, config.high_freq_factor),) if config.kind == "llama3" else (),
        "betas": (pair(config.beta_fast, config.beta_slow),) if yarn else (),
        "truncate": (config.truncate,) if config.kind == "yarn" else (),
        "extrapolation_factor": (config.extrapolation_factor,) if yarn else (),
        "attention_factor": (config.attention_factor,) if yarn else (),
        "mscales": ("none" if none else pair(config.mscale, config.mscale_all_dim),) if yarn else (),
    }


def pair(first: float | None, second: float | None) -> str:
    """Return two numbers as the axes name them: ``32/1``."""
    return f"{first:g}/{second:g}"


def values(case: RopeCacheCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    config = case.config
    return {
        "kind": (config.kind,),
        "dims": (join_head_dims(config.rotary_dim, config.head_dim),),
        "base": (config.base,),
        "max_positions": (config.max_positions,),
        **scaled_by(config),
        "dtype": (case.dtype,),
        "tokens": (case.tokens,),
        "positions": (case.positions,),
        "offsets": (case.offsets,),
        "rows": (case.lengths[-1],),
        "growths": (len(case.lengths) - 1,),
        "other": (case.other,),
    }


def features(case: RopeCacheCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    config, scaled = case.config, case.config.kind not in ("base", "proportional")
    checks = {
        "scaled": scaled,
        "amplitude": amplitude(config) != 1,
        "several factors": len(config.factors) > 1,
        "partial rotary": config.rotary_dim != config.head_dim,
        "dim is no power of two": config.width & (config.width - 1) != 0,
        "beyond max positions": scaled and case.lengths[-1] > config.max_positions,
        "large positions": case.lengths[-1] > 65_536,
        "grown table": len(case.lengths) > 1,
        "offsets": case.offsets != "none",
        "two ropes": case.other != "none",
        "one token": case.tokens == 1,
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: RopeCacheCase) -> str:
    """Return the case as one short line; what is at its plainest value is left out."""
    config, named = case.config, scaled_by(case.config)
    (truncate,), (mscales,) = named["truncate"] or (True,), named["mscales"] or ("none",)
    parts = [
        config.kind,
        f"factor {', '.join(f'{factor:g}' for factor in config.factors)}" if named["factor"] else "",
        f"dim {join_head_dims(config.rotary_dim, config.head_dim)}",
        f"base {config.base:g}",
        f"max positions {config.max_positions}" if named["factor"] else "",
        *(f"{name} {value}" for name in ("smoothing", "betas") for value in named[name]),
        "" if truncate else "not truncated",
        *(f"{name.replace('_', ' ')} {value:g}"
          for name in ("extrapolation_factor", "attention_factor") for value in named[name] if value != 1),
        f"mscales {mscales}" if mscales != "none" else "",
        f"{counted(case.tokens, 'token')} {case.positions}",
        f"rows {' -> '.join(map(str, case.lengths))}",
        f"from {case.first_row}" if case.first_row else "",
        f"{case.offsets} offsets" if case.offsets != "none" else "",
        f"beside {case.other}" if case.other != "none" else "",
        case.dtype,
        f"seed {case.seed}" if case.seed else "",
    ]  # fmt: skip
    return " · ".join(part for part in parts if part)


def check_case(case: RopeCacheCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    check_config(case.config)
    if not case.lengths or not 1 <= case.lengths[0] <= case.lengths[-1] <= 2**20:
        raise ValueError(f"lengths must lie in 1..{2**20}, got {case.lengths}")
    if sorted(set(case.lengths)) != list(case.lengths) or not 0 <= case.first_row < case.lengths[-1]:
        raise ValueError(f"lengths {case.lengths} must rise, and first_row {case.first_row} lie within")
    sections = case.config.sections
    if sections and (case.lengths != (sum(sections),) or case.first_row):
        raise ValueError(f"a table of sections {sections} has {sum(sections)} rows from 0, got {case.lengths}")
    check_values(values(case), AXES)
    if not 0 <= case.seed < SEEDS:
        raise ValueError(f"seed must lie in 0..{SEEDS - 1}, got {case.seed}")
    rows = max(case.tokens, case.lengths[-1] - case.first_row)
    if rows * case.config.width > _MAX_ELEMENTS:
        raise ValueError(f"the table would have more than {_MAX_ELEMENTS} elements")
