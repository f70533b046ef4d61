"""Drawing tables of cosines and sines: away from every default, from one row to a million, within what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hypothesis import strategies as st

from npudiff.draw.cases import Chooser, assume, chosen, within
from npudiff.model.constraints import Box, Constraints, allows
from npudiff.properties._shared.head_dims import split_head_dims
from npudiff.properties.rope_cache.case import (
    AXES,
    BASES,
    BETAS,
    DIMS,
    DTYPES,
    FACTORS,
    MAX_POSITIONS,
    MSCALES,
    OFFSETS,
    OTHERS,
    POSITIONS,
    SMOOTHING,
    RopeCacheCase,
)
from npudiff.reference.rope_scaling import KINDS, RopeConfig

TINY_DIMS = ("8", "8/16", "16")
"""Where tokens are beyond a thousand."""

ROWS = (2, 1, 3, 17, 64, 65, 129, 1000, 4097, 8193, 40_000, 65_537, 131_073, 1_000_000, 2**20)
SECTIONED = (16, 48, 100, 256)
ELEMENTS = 2**16
"""Elements of the built part of a table, up to which it begins at row 0; of a longer one only the end is built."""

WHOLE_ELEMENTS = 2**22
"""Up to here one table in sixteen begins at row 0 all the same."""


def cases(constraints: Constraints) -> st.SearchStrategy[RopeCacheCase]:
    """Return a strategy of cases that lie within the constraints."""
    return chosen(partial(_draw_case, constraints.boxes))


def _draw_case(boxes: Sequence[Box], choose: Chooser) -> RopeCacheCase:
    choose.draw_outlier_axis(AXES, "tokens", "dims", "rows", huge=("tokens",))
    box = choose.pick(boxes)
    config = _draw_config(choose, box)
    lengths, first_row = _draw_rows(choose, box, config)
    return RopeCacheCase(
        config=config,
        tokens=choose.value(box, "tokens", (1, 2, 3, 7, 16, 17, 65, 257)),
        lengths=lengths,
        first_row=first_row,
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        positions=choose.value(box, "positions", POSITIONS),
        offsets=choose.value(box, "offsets", OFFSETS),
        other=choose.value(box, "other", (OTHERS[0], OTHERS[0], *OTHERS)),
        seed=choose.pick(range(1024)),
    )


def _draw_config(choose: Chooser, box: Box) -> RopeConfig:
    """Draw every field, and keep those that the kind of scaling uses."""
    kind = choose.value(box, "kind", (*KINDS, "yarn", "deepseek_yarn", "llama3"))
    dims = map(split_head_dims, choose.options(box, "dims", TINY_DIMS if choose.huge else DIMS))
    rotary_dim, head_dim = choose.pick([(rotary, head) for rotary, head in dims if rotary <= head])
    base = choose.value(box, "base", BASES)
    sections = choose.value(box, "sections", (1, 1, 2, 3))
    sections = sections if kind == "linear" else 1
    beta_fast, beta_slow = _pair(choose.value(box, "betas", BETAS))
    max_positions = choose.pick(_max_positions(box, kind, sections, beta_slow))
    factors = tuple(choose.pick(_factors(box, max_positions, sections)) for _ in range(sections))
    low, high = _pair(choose.value(box, "smoothing", SMOOTHING))
    truncate = choose.value(box, "truncate", (True, False))
    extrapolation = choose.value(box, "extrapolation_factor", (1.0, 1.0, 0.75))
    attention = choose.value(box, "attention_factor", (1.0, 0.8, 1.25))
    mscales = choose.pick(_mscales(box, kind))
    plain = RopeConfig(kind, rotary_dim, head_dim, base, max_positions)
    if kind in ("base", "proportional"):
        return plain
    scaled = RopeConfig(kind, rotary_dim, head_dim, base, max_positions, factors)
    if kind in ("linear", "dynamic"):
        return scaled
    if kind == "llama3":
        return RopeConfig(kind, rotary_dim, head_dim, base, max_positions, factors, low, high)
    mscale, mscale_all_dim = (None, None) if mscales == "none" else _pair(mscales)
    return RopeConfig(
        kind,
        rotary_dim,
        head_dim,
        base,
        max_positions,
        factors,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=truncate or kind != "yarn",
        extrapolation_factor=extrapolation,
        attention_factor=attention,
        mscale=mscale,
        mscale_all_dim=mscale_all_dim,
    )


def _pair(text: str) -> tuple[float, float]:
    first, _, second = text.partition("/")
    return float(first), float(second)


def _max_positions(box: Box, kind: str, sections: int, beta_slow: float) -> Sequence[int]:
    """Trained positions; those of YaRN hold a turn of its slow beta, sections are short enough to be built whole."""
    allowed = within(SECTIONED if sections > 1 else MAX_POSITIONS, box.get("max_positions"))
    fewest = 6.2832 * beta_slow if kind in ("yarn", "deepseek_yarn") else 1
    found = [count for count in allowed[:4096] if count >= fewest] or [c for c in allowed[-4096:] if c >= fewest]
    assume(found)
    return found


def _factors(box: Box, max_positions: int, sections: int) -> Sequence[float]:
    """Scaling factors; those of sections give whole rows."""
    allowed = within(FACTORS, box.get("factor"))
    if sections > 1:
        allowed = [factor for factor in allowed if max_positions * factor % 1 == 0]
    assume(allowed)
    return allowed


def _mscales(box: Box, kind: str) -> Sequence[str]:
    """Coefficients; 0 is for DeepSeek's class only, others disagree on what it means."""
    found = [name for name in within(MSCALES, box.get("mscales")) if kind != "yarn" or "0" not in name.split("/")]
    assume(found or kind not in ("yarn", "deepseek_yarn"))
    return found or MSCALES


def _draw_rows(choose: Chooser, box: Box, config: RopeConfig) -> tuple[tuple[int, ...], int]:
    """Rows after each growth, and the first one that matters; the last growth is always within what matters."""
    sections = sum(config.sections)
    whole = choose.pick((False,) * 15 + (True,))
    rows = choose.value(box, "rows", ROWS)
    growths = choose.value(box, "growths", (0, 0, 1, 2))
    shares = [choose.pick(range(1, 8)) for _ in range(3)]
    if sections:
        assume(allows(box.get("rows", range(2**20 + 1)), sections) and allows(box.get("growths", (0,)), 0))
        return (sections,), 0
    span = max(2, ELEMENTS // config.width)
    first_row = 0 if whole and rows * config.width <= WHOLE_ELEMENTS else max(0, rows - span)
    inside = rows - first_row
    steps = {first_row + max(1, inside * share // 8) for share in shares[:growths]} - {rows}
    if "growths" in box:
        assume(allows(box["growths"], len(steps)))
    return (*sorted(steps), rows), first_row
