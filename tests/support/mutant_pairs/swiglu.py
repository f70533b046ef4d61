from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.swiglu import SwigluCase

STEP = SwigluCase(3, 33, activation="swiglustep", limit=7.0, shared_limit=10.0, recipe="at limit")
OAI = replace(STEP, activation="swiglu_oai", alpha=0.5)
SHARED = replace(STEP, experts="shared")
FREE = replace(STEP, limit=None)
QUIET = replace(STEP, recipe="gaussian")


def line(activation="silu", limit="7", shared="none", more=" · beyond"):
    return f"1 token x 1 · {activation} · limit {limit} · shared limit {shared}{more}"


BEYOND = " · bfloat16 · beyond"

PAIRS = {
    "step_without_limit": Pair(STEP, [QUIET], line(more=BEYOND)),
    "limit_before_the_gate": Pair(replace(STEP, dtype="float16"), [QUIET], ""),
    "gate_limited_on_both_sides": Pair(OAI, [replace(OAI, recipe="gaussian")], ""),
    "limited_parts_not_joined": Pair(STEP, [QUIET], ""),
    "shared_experts_without_limit": Pair(
        SHARED, [STEP], line(limit="none", shared="7", more=" · shared experts" + BEYOND)
    ),
    "one_limit_for_all": Pair(SHARED, [STEP, replace(SHARED, shared_limit=7.0)], ""),
    "limit_of_another_name": Pair(
        OAI,
        [replace(OAI, recipe="gaussian"), replace(OAI, limit=None)],
        line("swiglu_oai", more=" · alpha 1.702" + BEYOND),
    ),
    "limit_of_seven": Pair(FREE, [STEP, QUIET], line(limit="none", more=BEYOND)),
    "oai_as_silu": Pair(OAI, [], line("swiglu_oai", "none", more=" · alpha 1.702 · bfloat16"), everywhere=True),
    "alpha_hard_coded": Pair(
        OAI, [replace(OAI, alpha=1.702)], line("swiglu_oai", "none", more=" · alpha 1 · bfloat16")
    ),
    "name_compared_with_a_string": Pair(
        STEP, [QUIET, replace(STEP, activation="silu")], line("swiglustep", more=BEYOND)
    ),
    "halves_for_interleaved": Pair(
        replace(OAI, layout="interleaved"),
        [],
        line("swiglu_oai", "none", more=" · alpha 1.702 · interleaved · bfloat16").replace("x 1 ", "x 2 "),
        everywhere=True,
    ),
}
