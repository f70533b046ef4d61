from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.gated_delta import GatedDeltaCase, Run

STEP = GatedDeltaCase((Run(1), Run(1)), seed=3)
PROMPT = replace(STEP, requests=(Run(5), Run(3)))
LONG = replace(STEP, requests=(Run(130),))
DRAFT = replace(STEP, requests=(Run(3), Run(2)), kept="each")
CHUNKED = replace(PROMPT, chunked=True)
RAW = replace(STEP, raw=True, key_dim=128)
CHANNELS = replace(PROMPT, gates="channel")
KIMI = replace(CHUNKED, gates="channel")
KIMI_LONG = replace(KIMI, requests=(Run(40),))
KIMI_WHOLE = replace(KIMI, requests=(Run(64), Run(128)))
ONE = "tokens 1 · heads 1:1 · dim 32/32 · bfloat16 states"

PAIRS = {
    "no_slot_is_a_slot": Pair(replace(PROMPT, spare_slots=3), [STEP], ""),
    "states_lie_the_other_way": Pair(STEP, [], ONE, everywhere=True),
    "slot_is_not_cleared": Pair(
        replace(CHUNKED, requests=(Run(3, fresh=True),)),
        [],
        "tokens 1 fresh · heads 1:1 · dim 32/32 · bfloat16 states · in chunks",
        everywhere=True,
    ),
    "accepted_tokens_not_counted": Pair(replace(DRAFT, accepted="last"), [DRAFT], ""),
    "rest_of_the_draft_is_left_out": Pair(
        DRAFT, [], "tokens 2 · each kept · heads 1:1 · dim 32/32 · bfloat16 states", everywhere=True
    ),
    "last_of_odd_heads_is_left_out": Pair(RAW, [replace(RAW, group=2)], ""),
    "decay_comes_last": Pair(STEP, [replace(STEP, gates="none")], ONE),
    "output_of_the_old_state": Pair(STEP, [], ONE, everywhere=True),
    "quotient_of_exponentials": Pair(replace(LONG, decays="strong"), [replace(PROMPT, decays="strong")], ""),
    "sigmoid_twice": Pair(RAW, [], "", everywhere=True),
    "epsilon_beside_the_root": Pair(replace(RAW, keys="tiny", requests=(Run(8),)), [], "", everywhere=True),
    "no_scale": Pair(CHUNKED, [], "tokens 1 · heads 1:1 · dim 32/32 · bfloat16 states · in chunks", everywhere=True),
    "key_heads_in_turn": Pair(replace(PROMPT, key_heads=2, group=2), [replace(PROMPT, key_heads=2)], ""),
    "first_length_is_skipped": Pair(STEP, [], "", everywhere=True),
    "last_channels_are_not_read": Pair(replace(STEP, key_dim=80), [], "", everywhere=True),
    "gate_of_the_first_channel": Pair(
        CHANNELS,
        [],
        "tokens 1 · heads 1:1 · dim 32/32 · bfloat16 states · decays of channel",
        everywhere=True,
    ),
    "rows_decay": Pair(
        CHANNELS, [], "tokens 1 · heads 1:1 · dim 32/32 · bfloat16 states · decays of channel", everywhere=True
    ),
    "state_of_the_chunk_before": Pair(replace(LONG, chunked=True), [CHUNKED], ""),
    "states_of_other_requests": Pair(replace(CHUNKED, requests=(Run(0), Run(3), Run(2))), [CHUNKED], ""),
    "states_within_a_draft_are_lost": Pair(
        DRAFT, [], "tokens 2 · each kept · heads 1:1 · dim 32/32 · bfloat16 states", everywhere=True
    ),
    "own_decay_of_a_chunk_is_left_out": Pair(
        KIMI, [], "tokens 1 · heads 1:1 · dim 32/32 · bfloat16 states · decays of channel · in chunks", everywhere=True
    ),
    "keys_decay_to_their_own_part": Pair(KIMI_LONG, [replace(KIMI, requests=(Run(32),))], ""),
    "last_chunk_decays_by_another_request": Pair(KIMI, [KIMI_WHOLE, replace(KIMI, requests=(Run(5),))], ""),
    "padded_rows_of_a_chunk_decay": Pair(KIMI, [KIMI_WHOLE], ""),
    "keys_of_a_state_decay_from_its_start": Pair(KIMI, [], "", everywhere=True),
    "decays_of_a_whole_chunk_are_divided_by": Pair(replace(KIMI_LONG, decays="strong"), [], "", everywhere=True),
}
