from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.cached_attention import CachedAttentionCase, Request


def case(write, read, **changes):
    return CachedAttentionCase((Request(2, 20), Request(1, 5)), write_layout=write, read_layout=read, **changes)


PAIRS = {
    "layouts_by_two_flags": Pair(
        case("PA_BSND", "PA_NZ"),
        [case("PA_NZ", "PA_NZ"), case("PA_BSND", "PA_BSND")],
        "q1/kv1 · written PA_BSND, read PA_NZ · window 1 · page 16 · heads 1:1 · dim 64 · bfloat16",
    ),
}
