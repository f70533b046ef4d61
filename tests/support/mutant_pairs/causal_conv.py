from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.causal_conv import CausalConvCase, Run

STEP = CausalConvCase((Run(1), Run(3)), seed=3)
PROMPT = replace(STEP, requests=(Run(5), Run(4)), mode="prompt")
DRAFT = replace(STEP, mode="draft", requests=(Run(3), Run(2)))
OPERATOR = {"rounding": "stages"}
ONE = "step · tokens 1 · 16 channels · bfloat16"

PAIRS = {
    "taps_in_reverse": Pair(STEP, [], ONE, everywhere=True),
    "history_always_there": Pair(
        replace(PROMPT, history="some", **OPERATOR), [replace(PROMPT, requests=(Run(2),), history="some", **OPERATOR)],
        "",
    ),
    "short_request_loses_its_history": Pair(STEP, [PROMPT], ONE),
    "padding_has_a_line": Pair(replace(STEP, requests=(Run(1, padded=True),), spare_lines=2), [], "", everywhere=True),
    "history_behind_the_first_token": Pair(
        replace(DRAFT, accepted="all", **OPERATOR), [], "", everywhere=True
    ),
    "history_at_the_end": Pair(replace(DRAFT, accepted="one", **OPERATOR), [], "", everywhere=True),
    "draft_keeps_its_last_rows": Pair(DRAFT, [], "", everywhere=True),
    "through_float16": Pair(replace(STEP, recipe="tiny"), [], "step · tokens 1 · 16 channels · bfloat16 · tiny",
                            everywhere=True),
    "last_channels_are_left_out": Pair(
        replace(STEP, channels=48, **OPERATOR), [], "", everywhere=True
    ),
    "lines_are_a_copy": Pair(STEP, [], ONE, everywhere=True),
    "lines_in_the_order_of_requests": Pair(STEP, [], "", everywhere=True),
    "history_of_the_request_before": Pair(PROMPT, [replace(PROMPT, requests=(Run(5), Run(0)))], ""),
    "bias_behind_the_activation": Pair(replace(STEP, biased=True), [], "", everywhere=True),
}  # fmt: skip
