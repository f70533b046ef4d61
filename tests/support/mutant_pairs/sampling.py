from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.sampling import SamplingCase

PLAIN = SamplingCase(3, 64, seed=5)
SEEN = replace(PLAIN, history=9, penalties="repetition")
PRESENT = replace(SEEN, penalties="presence")
GRAMMAR = replace(PLAIN, grammar="half")
TOP_K = replace(PLAIN, top_k=5)
TOP_P = replace(PLAIN, top_p=0.9)
OF_ALL = replace(TOP_P, mass="all")
HISTORY = "1 request of 33 tokens · float32 · penalties repetition · history 1"

PAIRS = {
    "newest_token_unseen": Pair(SEEN, [], HISTORY, everywhere=True),
    "requests_beyond_the_grid": Pair(SamplingCase(2**16 + 5, 3, temperature=0.7), [SamplingCase(2**16 + 5, 3)], ""),
    "grammar_left_out": Pair(GRAMMAR, [], "1 request of 33 tokens · float32 · grammar: half", everywhere=True),
    "masks_of_other_rows": Pair(GRAMMAR, [], "2 requests of 33 tokens · float32 · grammar: half", everywhere=True),
    "highest_bit_is_a_sign": Pair(GRAMMAR, [replace(GRAMMAR, vocabulary=31)], ""),
    "pivot_is_coarse": Pair(replace(TOP_P, vocabulary=1000), [TOP_P], ""),
    "ties_all_go": Pair(replace(TOP_K, recipe="ties"), [TOP_K], ""),
    "most_is_1024": Pair(
        SamplingCase(2, 4097, top_k=1025), [], "1 request of 2048 tokens · top-k 1025 · float32", everywhere=True
    ),
    "share_is_not_reached": Pair(
        OF_ALL, [], "1 request of 33 tokens · top-p 0.9 · mass of all · float32", everywhere=True
    ),
    "nobody_is_left": Pair(
        replace(PLAIN, top_p=0.0), [], "1 request of 33 tokens · top-p 0 · float32", everywhere=True
    ),
    "share_of_all": Pair(replace(TOP_K, top_p=0.5), [replace(TOP_K, top_k=64, top_p=0.5)], ""),
    "presence_by_count": Pair(PRESENT, [], "", everywhere=True),
    "negative_logits_divided": Pair(SEEN, [], HISTORY, everywhere=True),
    "prompt_unseen": Pair(SEEN, [], HISTORY, everywhere=True),
    "filling_is_the_last_token": Pair(
        SEEN, [], "2 requests of 33 tokens · float32 · penalties repetition · history 1", everywhere=True
    ),
    "greedy_is_cold": Pair(
        replace(PLAIN, temperature=0.0), [], "1 request of 33 tokens · temperature 0 · float32", everywhere=True
    ),
    "min_p_is_absolute": Pair(
        replace(PLAIN, min_p=0.02), [], "1 request of 33 tokens · min-p 0.02 · float32", everywhere=True
    ),
    "temperature_comes_last": Pair(
        replace(TOP_P, temperature=0.7),
        [],
        "1 request of 33 tokens · temperature 0.7 · top-p 0.9 · float32",
        everywhere=True,
    ),
    "k_of_the_first_request": Pair(replace(TOP_K, requests=7, mixed=True), [replace(TOP_K, mixed=True)], ""),
    "grammar_of_the_capture": Pair(GRAMMAR, [], "", everywhere=True),
    "noise_of_another_request": Pair(replace(PLAIN, draws=True), [], "", everywhere=True),
    "greedy_requests_draw": Pair(replace(PLAIN, draws=True, temperature=0.0), [], "", everywhere=True),
    "multiplied_by_noise": Pair(replace(PLAIN, draws=True), [], "", everywhere=True),
    "ends_of_bad_words": Pair(replace(PLAIN, bad_words="begun", history=9), [], "", everywhere=True),
    "bad_words_of_one_token": Pair(replace(PLAIN, bad_words="begun", history=9), [], "", everywhere=True),
    "bad_words_of_the_first_request": Pair(replace(PLAIN, bad_words="single"), [], "", everywhere=True),
}
