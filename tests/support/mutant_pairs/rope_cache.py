from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.rope_cache import RopeCacheCase as Case
from npudiff.reference.rope_scaling import RopeConfig
from npudiff.text import counted

BASE = RopeConfig()
WIDE = RopeConfig(rotary_dim=96, head_dim=96)
PARTIAL = RopeConfig(rotary_dim=64, head_dim=192)
UNSCALED = RopeConfig("yarn", factors=(1.0,))
YARN = RopeConfig("yarn", factors=(4.0,))
DEEPSEEK = RopeConfig("deepseek_yarn", 64, 192, factors=(40.0,), mscale=1.0, mscale_all_dim=1.0)
SECTIONS = RopeConfig("linear", max_positions=16, factors=(40.0, 1.0))


def line(config="base · dim 64 · base 10000", more="", rows="2", tokens=1):
    return f"{config} · {counted(tokens, 'token')} last · rows {rows}{more} · bfloat16"


SMALLEST_YARN = line("yarn · factor 2 · dim 64 · base 10000 · max positions 4096 · betas 32/1")
SMALLEST_DEEPSEEK = line(
    "deepseek_yarn · factor 2 · dim 64 · base 10000 · max positions 4096 · betas 32/1 · mscales 1/1"
)
SMALLEST_SECTIONS = line("linear · factor 2, 2 · dim 64 · base 10000 · max positions 16", rows="64")

PAIRS = {
    "sine_beyond_padding": Pair(Case(WIDE, 3, (9,)), [Case(BASE, 3, (9,))], line("base · dim 96 · base 10000")),
    "last_table_wins": Pair(
        Case(replace(BASE, base=5e6), 3, (9,), other="plain"),
        [Case(BASE, lengths=(1,), other="plain")],
        line(more=" · beside plain"),
    ),
    "table_of_the_head_dim": Pair(
        Case(PARTIAL, 3, (9,)), [Case(PARTIAL, lengths=(1,))], line("base · dim 64/192 · base 10000")
    ),
    "mscale_on_the_base_class": Pair(Case(BASE, 3, (9,)), [], line(), rejected=True, everywhere=True),
    "mscale_missing": Pair(Case(YARN, 3, (9,)), [Case(DEEPSEEK), Case(UNSCALED)], SMALLEST_YARN),
    "mscale_twice": Pair(Case(YARN, 3, (9,)), [Case(DEEPSEEK), Case(UNSCALED)], SMALLEST_YARN),
    "softmax_scale_uncorrected": Pair(
        Case(DEEPSEEK, 3, (9,)), [Case(replace(DEEPSEEK, mscale_all_dim=0.0))], SMALLEST_DEEPSEEK
    ),
    "softmax_scale_of_padding": Pair(Case(WIDE, 3, (9,)), [Case(BASE, 3, (9,))], line("base · dim 96 · base 10000")),
    "yarn_for_every_layer": Pair(Case(BASE, 3, (9,), other="yarn"), [], line(more=" · beside yarn"), everywhere=True),
    "offsets_ignored": Pair(
        Case(BASE, 3, (9,), offsets="int32"),
        [Case(BASE, lengths=(1,), offsets="int32")],
        line(more=" · int64 offsets"),
    ),
    "offsets_added_twice": Pair(
        Case(BASE, 3, (9,), offsets="int32"),
        [Case(BASE, lengths=(1,), offsets="int32")],
        line(more=" · int64 offsets"),
    ),
    "growth_counts_from_zero": Pair(
        Case(BASE, 3, (9, 20)), [Case(BASE, lengths=(98, 99), positions="consecutive")], line(rows="1 -> 2")
    ),
    "sections_count_through": Pair(
        Case(SECTIONS, 3, (656,)), [Case(SECTIONS, lengths=(656,), positions="consecutive")], SMALLEST_SECTIONS
    ),
    "coarse_range_reduction": Pair(Case(BASE, 3, (65_537,), 64_513), [Case(BASE, 6, (6,))], ""),
    "overwritten_sector": Pair(Case(BASE, 16, (9,)), [], line(tokens=16), everywhere=True),
}
