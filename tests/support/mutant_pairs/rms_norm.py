from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.rms_norm import RmsNormCase


def case(tokens=3, hidden_size=64, **changes):
    return RmsNormCase(tokens, hidden_size, rounding="once", **changes)


WIDE = {"kind": "gemma", "weights": "wide"}

PAIRS = {
    "residual_dropped": Pair(case(residual=True), [case()], "1 x 2 · bfloat16 · residual · one rounding"),
    "variance_halved": Pair(case(3, 192), [case(), case(3, 4096)], "1 x 3 · bfloat16 · one rounding"),
    "gemma_weight_rounded": Pair(
        case(**WIDE),
        [case(kind="gemma", dtype="float32")],
        "1 x 2 · bfloat16 · gemma · one rounding",
        otherwise=("1 x 2 · float16 · gemma · one rounding",),
    ),
    "rows_of_the_result": Pair(case(rows="sliced"), [case()], "2 x 2 · bfloat16 · one rounding · sliced rows"),
    "rows_beyond_the_buffer": Pair(case(3, 4096), [case(3, 1536)], "1 x 4096 · bfloat16 · one rounding"),
    "rounded_before_the_weight": Pair(
        case(weights="wide"),
        [case(recipe="zero rows", tokens=1)],
        "1 x 2 · float16 · one rounding",
    ),
    "replay_before_its_rows": Pair(case(), [], "2 x 2 · bfloat16 · one rounding", everywhere=True),
    "copy_of_the_capture": Pair(case(), [], "", everywhere=True),
}
