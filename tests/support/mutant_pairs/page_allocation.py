from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.page_allocation import Growth, PageAllocationCase


def case(prefix, new, page_size=4):
    return PageAllocationCase((Growth(prefix, new), Growth(prefix, new)), page_size)


PAIRS = {
    "extend_skips_partial_page": Pair(case(5, 3), [case(4, 3), case(0, 9)], "1+1 · page 2"),
    "extend_crosses_page": Pair(case(5, 8), [case(5, 2), case(5, 3), case(4, 9)], "1+2 · page 2"),
    "decode_new_page_late": Pair(case(4, 1), [case(5, 1)], "0+1 · page 2"),
    "decode_last_slot_shared": Pair(case(5, 1), [case(4, 1)], "1+1 · page 2"),
    "padded_requests_take_pages": Pair(case(4, 1), [PageAllocationCase((Growth(4, 1),) * 8, 4)], "0+1 · page 2"),
}
