from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.draft_acceptance import DraftAcceptanceCase

PLAIN = DraftAcceptanceCase((3, 2, 4), seed=2)
ALL_TAKEN = replace(PLAIN, likeness="same", uniforms="small")
FAR = replace(PLAIN, likeness="far", uniforms="large")
GREEDY = replace(PLAIN, greedy="all")

PAIRS = {
    "bonus_in_the_last_column": Pair(replace(ALL_TAKEN, spare=1), [replace(FAR, lengths=(4,), spare=1)], ""),
    "nothing_without_a_draft": Pair(replace(PLAIN, lengths=(3, 0)), [PLAIN], ""),
    "uniform_is_zero": Pair(replace(PLAIN, likeness="far", uniforms="large"), [], "", everywhere=True),
    "recovered_from_the_target": Pair(FAR, [], "", everywhere=True),
    "rejected_token_is_recovered": Pair(
        replace(PLAIN, drafts="tokens", uniforms="large", vocabulary=2, lengths=(2,) * 9), [], "", everywhere=True
    ),
    "goes_on_behind_a_rejection": Pair(FAR, [ALL_TAKEN], ""),
    "all_are_greedy": Pair(
        replace(PLAIN, greedy="some", likeness="far", lengths=(3, 2, 4, 3)), [], "", everywhere=True
    ),
    "missing_token_is_the_last_one": Pair(replace(PLAIN, missing="last"), [], "", everywhere=True),
    "token_that_differs_is_left_out": Pair(replace(GREEDY, likeness="far"), [], "", everywhere=True),
    "place_among_candidates": Pair(GREEDY, [], "", everywhere=True),
    "randomness_of_another_request": Pair(FAR, [], "", everywhere=True),
    "drafts_of_one_length": Pair(replace(ALL_TAKEN, lengths=(3, 1, 2)), [replace(PLAIN, lengths=(3, 3))], ""),
}
