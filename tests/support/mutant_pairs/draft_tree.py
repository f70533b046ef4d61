from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.draft_tree import Draft, DraftTreeCase

STARS = DraftTreeCase((Draft(3, "star", "last"), Draft(5, "star", "last")), topk=3, depth=2, draft_token_num=4, seed=1)
CHAINS = DraftTreeCase((Draft(3, "chain"), Draft(5, "chain")), topk=1, depth=3, draft_token_num=4, seed=1)
CHAIN = replace(CHAINS, requests=(Draft(3, "chain"),))
DEEP = DraftTreeCase((Draft(3, "random", "random"), Draft(0, "bushy")), topk=3, depth=4, draft_token_num=17, seed=1)

CHAIN_OF_TWO = "topk 1 · depth 1 · 2 nodes · mask full · trees behind 1 (scored, first)"
TWO_CHILDREN = "topk 2 · depth 1 · 3 nodes · mask full · trees behind 1 (scored, first)"

PAIRS = {
    "verified_as_a_chain": Pair(STARS, [replace(CHAIN, topk=2, draft_token_num=3)], TWO_CHILDREN),
    "rows_as_long_as_trees": Pair(STARS, [CHAINS], f"{TWO_CHILDREN} 1 (scored, first)"),
    "accepted_nodes_are_the_first": Pair(STARS, [replace(CHAIN, topk=2, draft_token_num=3)], ""),
    "bonus_of_another_row": Pair(DEEP, [replace(CHAINS, topk=2)], ""),
    "all_drafts_are_seen": Pair(STARS, [], CHAIN_OF_TWO, everywhere=True),
    "two_nodes_are_cut_short": Pair(replace(CHAIN, draft_token_num=2), [], CHAIN_OF_TWO, everywhere=True),
    "linked_from_the_first_node_on": Pair(STARS, [CHAINS], TWO_CHILDREN),
    "first_children_alone_are_tried": Pair(
        STARS, [CHAINS], "topk 2 · depth 1 · 3 nodes · mask full · trees behind 1 (scored, last)"
    ),
    "children_of_anybody": Pair(replace(DEEP, tokens="few"), [CHAINS, replace(STARS, depth=1)], ""),
    "target_of_the_root": Pair(CHAINS, [], CHAIN_OF_TWO, everywhere=True),
    "bonus_is_left_out": Pair(CHAINS, [], CHAIN_OF_TWO, everywhere=True),
    "position_by_the_number_of_the_node": Pair(STARS, [CHAINS], TWO_CHILDREN),
    "root_is_hidden": Pair(CHAINS, [], CHAIN_OF_TWO, everywhere=True),
    "nodes_do_not_see_themselves": Pair(CHAINS, [], CHAIN_OF_TWO, everywhere=True),
    "walks_end_a_step_early": Pair(
        CHAINS, [STARS], "topk 1 · depth 2 · 3 nodes · mask full · trees behind 1 (scored, first)"
    ),
    "masks_as_if_all_were_as_long": Pair(
        STARS, [replace(STARS, requests=STARS.requests[:1] * 2)], f"{CHAIN_OF_TWO} 0 (scored, first)"
    ),
    "nodes_counted_by_request": Pair(STARS, [CHAIN], f"{CHAIN_OF_TWO} 1 (scored, first)"),
    "trees_of_the_first_request": Pair(DEEP, [STARS], ""),
    "parents_in_order": Pair(DEEP, [STARS], ""),
}
