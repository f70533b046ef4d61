from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.quant_matmul import QuantMatmulCase

PLAIN = QuantMatmulCase(3, 64, 7)
TOKENS = replace(PLAIN, token_scale=True)
BIASED = replace(PLAIN, bias="int32")
HALF = replace(PLAIN, output="float16", columns=33)
INT8 = replace(PLAIN, output="int8")
LARGE = QuantMatmulCase(2, 4096, 16, output="int32", recipe="extremes")


def line(output="bfloat16", more="", size="1 x 1"):
    return f"1 token x {size} · int8 to {output} · float32 scale{more}"


PAIRS = {
    "sums_in_float32": Pair(
        LARGE,
        [replace(LARGE, inner=1000)],
        "1 token x 1536 x 1 · int8 to int32 · float32 scale · extremes",
    ),
    "integer_bias_after_scaling": Pair(BIASED, [], line(more=" · int32 bias"), everywhere=True),
    "bias_of_product_left_out": Pair(BIASED, [], line(more=" · int32 bias"), everywhere=True),
    "token_scale_left_out": Pair(TOKENS, [], line(more=" · token scales"), everywhere=True),
    "scale_of_the_row": Pair(PLAIN, [], line(size="1 x 2"), everywhere=True),
    "scale_rounded_to_bfloat16": Pair(
        PLAIN, [replace(PLAIN, tokens=1, recipe="zero rows")], line("float16"), otherwise=(line(size="1 x 2"),)
    ),
    "scale_in_float16": Pair(
        HALF, [], line("float16"), rejected=True, everywhere=True, otherwise=(line("float16", " · token scales"),)
    ),
    "scale_of_19_bits_for_all": Pair(
        replace(HALF, token_scale=True),
        [replace(HALF, tokens=1, token_scale=True, recipe="zero rows")],
        line("float16", " · token scales"),
    ),
    "scale_of_32_bits_for_all": Pair(HALF, [replace(HALF, tokens=1, recipe="zero rows")], line("float16")),
    "int8_output_wraps": Pair(INT8, [replace(INT8, tokens=1, recipe="zero rows")], line("int8")),
    "int8_output_ends_at_minus_127": Pair(INT8, [replace(INT8, tokens=1, recipe="zero rows")], line("int8")),
}
