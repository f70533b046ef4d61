from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.quantised_kv_attention import QuantisedKvAttentionCase
from npudiff.properties.sliding_attention.case import Request

PLAIN = QuantisedKvAttentionCase((Request(1, 40), Request(1, 21)), seed=3)
ONE_KEY = replace(PLAIN, requests=(Request(1, 1), Request(1, 1)))
HEADS = replace(PLAIN, kv_heads=2)
OFFSET = replace(PLAIN, offsets="whole")
TOKENS = replace(PLAIN, form="token")
NZ = replace(PLAIN, layout="PA_NZ")
DRAFT = replace(NZ, requests=(Request(3, 40), Request(3, 21)))
UNEQUAL = replace(NZ, requests=(Request(3, 40), Request(1, 21)))
FULL = replace(PLAIN, requests=(Request(1, 64), Request(1, 32)))

SIZES = "page 32 · heads 1:1 · dim 128 · bfloat16"
SMALLEST = f"q1/kv1 · per channel · {SIZES}"
OF_OFFSETS = f"q1/kv1 · per channel · whole offsets · {SIZES}"

PAIRS = {
    "key_scale_dropped": Pair(PLAIN, [], SMALLEST, everywhere=True),
    "value_scale_applied_twice": Pair(PLAIN, [], SMALLEST, everywhere=True),
    "values_have_the_scale_of_keys": Pair(PLAIN, [], SMALLEST, everywhere=True),
    "combined_scales_values_first": Pair(PLAIN, [], SMALLEST, everywhere=True),
    "offset_is_subtracted": Pair(OFFSET, [], OF_OFFSETS, everywhere=True),
    "offset_is_left_out": Pair(OFFSET, [], OF_OFFSETS, everywhere=True),
    "offset_behind_the_scale": Pair(OFFSET, [], OF_OFFSETS, everywhere=True),
    "scale_of_eight_tokens_before": Pair(
        TOKENS, [replace(TOKENS, requests=(Request(1, 8), Request(1, 5)))], f"q1/kv9 · per token · {SIZES}"
    ),
    "scales_read_as_contiguous": Pair(TOKENS, [], f"q1/kv1 · per token · {SIZES}", everywhere=True),
    "scales_of_a_request_are_reset": Pair(
        TOKENS, [replace(TOKENS, requests=(Request(1, 0),))], f"q1/kv1 · per token · {SIZES}"
    ),
    "scales_of_another_head": Pair(
        replace(HEADS, layout="PA_NZ"),
        [NZ],
        "q1/kv1 · per channel · page 32 · heads 2:2 · dim 128 · bfloat16 · NZ pages",
    ),
    "channels_before_heads": Pair(HEADS, [PLAIN], "q1/kv1 · per channel · page 32 · heads 2:2 · dim 128 · bfloat16"),
    "strips_of_16_bits": Pair(NZ, [], f"{SMALLEST} · NZ pages", everywhere=True),
    "integers_without_a_sign": Pair(PLAIN, [], SMALLEST, everywhere=True),
    "lowest_integer_is_one_more": Pair(replace(PLAIN, recipe="saturated"), [PLAIN], ""),
    "sum_with_the_offset_wraps": Pair(replace(OFFSET, recipe="saturated"), [OFFSET], ""),
    "int8_draft_sees_what_follows": Pair(DRAFT, [NZ], f"q2/kv2 · per channel · {SIZES} · NZ pages"),
    "int8_drafts_of_one_length": Pair(UNEQUAL, [DRAFT], f"q1/kv1 q2/kv2 · per channel · {SIZES} · NZ pages"),
    "int8_last_page_is_full": Pair(PLAIN, [FULL], SMALLEST),
}
