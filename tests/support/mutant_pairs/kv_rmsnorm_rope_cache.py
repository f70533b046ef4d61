from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheCase as Case


def line(layout="PA_BSND", batch="1 request", dims="512/64"):
    return f"{batch} of 1 token · {layout} · page 16 · dim {dims} · bfloat16"


ROTATED_ALIKE = {"latent_dim": 64, "rope_dim": 2}

PAIRS = {
    "nz_cache_written_as_nd": Pair(
        Case(2, 3, layout="PA_NZ"), [Case(1, 16, layout="PA_NZ", page_size=1)], line("PA_NZ")
    ),
    "cache_mode_is_a_tuple": Pair(Case(2, 3, layout="PA_NZ"), [], line("PA_NZ"), rejected=True, everywhere=True),
    "outputs_that_were_not_asked_for": Pair(Case(2, 3), [], line(), everywhere=True),
    "rope_key_read_as_halves": Pair(Case(2, 3), [Case(2, 3, **ROTATED_ALIKE)], line()),
    "latent_with_the_stride_of_its_output": Pair(Case(2, 3), [Case(1)], line(batch="2 requests")),
}
