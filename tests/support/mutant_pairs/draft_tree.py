from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.draft_tree import Draft, DraftTreeCase

STARS = DraftTreeCase((Draft(3, "star", "last"), Draft(5, "star", "last")), topk=3, depth=2, draft_token_num=4, seed=1)
CHAINS = DraftTreeCase((Draft(3, "chain"), Draft(5, "chain")), topk=1, depth=3, draft_token_num=4, seed=1)
CHAIN = replace(CHAINS, requests=(Draft(3, "chain"),))
DEEP = DraftTreeCase((Draft(3, "random", "random"), Draft(0, "bushy")), topk=3, depth=4, draft_token_num=17, seed=1)
FULL = replace(STARS, depth=1)
"""Trees whose rows of accepted nodes are shorter than they are."""

PAIRS = {
    "verified_as_a_chain": Pair(
        STARS,
        [replace(CHAIN, topk=2, draft_token_num=3)],
        "topk 2 · depth 1 · 3 nodes · mask full · trees scored behind 1, matching first",
    ),
    "rows_as_long_as_trees": Pair(
        STARS,
        [CHAINS],
        "topk 2 · depth 1 · 3 nodes · mask full · trees scored behind 1, matching first scored behind 1, matching first",
    ),
    "accepted_nodes_are_the_first": Pair(STARS, [replace(CHAIN, topk=2, draft_token_num=3)], ""),
    "bonus_of_another_row": Pair(DEEP, [replace(CHAINS, topk=2)], ""),
    "all_drafts_are_seen": Pair(
        STARS, [], "topk 1 · depth 1 · 2 nodes · mask full · trees scored behind 1, matching first", everywhere=True
    ),
    "two_nodes_are_cut_short": Pair(
        replace(CHAIN, draft_token_num=2),
        [],
        "topk 1 · depth 1 · 2 nodes · mask full · trees scored behind 1, matching first",
        everywhere=True,
    ),
    "linked_from_the_first_node_on": Pair(
        STARS, [CHAINS], "topk 2 · depth 1 · 3 nodes · mask full · trees scored behind 1, matching first"
    ),
    "first_children_alone_are_tried": Pair(
        STARS, [CHAINS], "topk 2 · depth 1 · 3 nodes · mask full · trees scored behind 1, matching last"
    ),
    "children_of_anybody": Pair(replace(DEEP, tokens="few"), [CHAINS, FULL], ""),
    "target_of_the_root": Pair(
        CHAINS, [], "topk 1 · depth 1 · 2 nodes · mask full · trees scored behind 1, matching first", everywhere=True
    ),
    "bonus_is_left_out": Pair(
        CHAINS, [], "topk 1 · depth 1 · 2 nodes · mask full · trees scored behind 1, matching first", everywhere=True
    ),
    "position_by_the_number_of_the_node": Pair(
        STARS, [CHAINS], "topk 2 · depth 1 · 3 nodes · mask full · trees scored behind 1, matching first"
    ),
    "root_is_hidden": Pair(
        CHAINS, [], "topk 1 · depth 1 · 2 nodes · mask full · trees scored behind 1, matching first", everywhere=True
    ),
    "nodes_do_not_see_themselves": Pair(
        CHAINS, [], "topk 1 · depth 1 · 2 nodes · mask full · trees scored behind 1, matching first", everywhere=True
    ),
    "walks_end_a_step_early": Pair(
        CHAINS, [STARS], "topk 1 · depth 2 · 3 nodes · mask full · trees scored behind 1, matching first"
    ),
    "masks_as_if_all_were_as_long": Pair(
        STARS,
        [replace(STARS, requests=STARS.requests[:1] * 2)],
        "topk 1 · depth 1 · 2 nodes · mask full · trees scored behind 1, matching first scored behind 0, matching first",
    ),
    "nodes_counted_by_request": Pair(
        STARS,
        [CHAIN],
        "topk 1 · depth 1 · 2 nodes · mask full · trees scored behind 1, matching first scored behind 1, matching first",
    ),
    "trees_of_the_first_request": Pair(DEEP, [STARS], ""),
    "parents_in_order": Pair(DEEP, [STARS], ""),
}
