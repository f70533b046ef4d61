from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.draft_step import DraftStepCase, Step


def case(*requests, steps=3, **changes):
    return DraftStepCase(requests, steps, **changes)


SOME = Step("draft", 14, 4, 2)
ALL = Step("draft", 14, 4, 4)
TOKEN = Step("token", 9, 1)
PIECE = Step("piece", 0, 5)
PROMPT = Step("prompt", 0, 5)

PAIRS = {
    "rejected_drafts_are_attended_to": Pair(
        case(SOME), [case(ALL, TOKEN, PIECE)], "0 of 1 accepted behind 0 · 2 steps · page 16"
    ),
    "lengths_of_the_first_pass": Pair(case(ALL), [], "0 of 1 accepted behind 0 · 3 steps · page 16", everywhere=True),
    "passes_behind_all_drafts": Pair(
        case(SOME), [case(ALL, TOKEN, PROMPT)], "0 of 1 accepted behind 0 · 2 steps · page 16"
    ),
    "rejected_without_drafts": Pair(
        case(SOME, PIECE), [case(SOME, TOKEN, ALL)], "piece of 1 behind 0 · 1 step · page 16"
    ),
    "drafts_of_the_next_request": Pair(case(SOME, TOKEN), [case(TOKEN, PIECE)], ""),
    "sampled_at_the_end": Pair(case(SOME), [case(ALL, PROMPT)], "0 of 1 accepted behind 0 · 1 step · page 16"),
    "first_pass_is_not_shifted": Pair(case(ALL), [case(TOKEN)], ""),
    "beyond_the_limit": Pair(case(ALL, room_left=0), [case(SOME, TOKEN, room_left=9)], ""),
    "written_at_position_zero": Pair(case(ALL, room_left=0), [case(SOME, TOKEN, room_left=9)], ""),
    "page_of_the_first_pass": Pair(case(Step("draft", 13, 4, 2)), [case(Step("draft", 2, 4, 2))], ""),
    "next_token_of_nothing": Pair(case(SOME, PIECE), [case(SOME, TOKEN)], ""),
    "verified_from_the_last_token": Pair(
        case(TOKEN), [], "0 of 1 accepted behind 0 · 1 step · page 16", everywhere=True
    ),
    "pages_of_another_request": Pair(case(SOME, TOKEN), [], "", everywhere=True),
}
