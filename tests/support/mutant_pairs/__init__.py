"""Per mutant: what it was made from, where its bug shows, where it does not, and how small it shrinks."""

from mutant_pairs import (
    kv_rmsnorm_rope_cache,
    page_allocation,
    paged_cache,
    rms_norm,
    rotary,
    sliding_attention,
    swa_mask,
)
from mutant_pairs.pair import Pair

MODULES = (kv_rmsnorm_rope_cache, page_allocation, paged_cache, rms_norm, rotary, sliding_attention, swa_mask)

PAIRS: dict[str, Pair] = {name: pair for module in MODULES for name, pair in module.PAIRS.items()}
