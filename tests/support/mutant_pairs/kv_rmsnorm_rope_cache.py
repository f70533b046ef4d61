from __future__ import annotations

from device import ascend
from mutant_pairs.pair import Pair
from properties.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheCase as Case


def line(layout="PA_BSND", batch="1 request", dims="512/64"):
    return f"{batch} of 1 token · {layout} · page 16 · dim {dims} · bfloat16"


NARROW = {"latent_dim": 16, "rope_dim": 16}
ROTATED_ALIKE = {"latent_dim": 64, "rope_dim": 2}

PAIRS = {
    "nz_cache_written_as_nd": Pair(
        ascend.decode_pa_nz, Case(2, 3, layout="PA_NZ"), [Case(1, 16, layout="PA_NZ", page_size=1)], line("PA_NZ")
    ),
    "cache_mode_is_a_tuple": Pair(
        ascend.decode_pa_nz, Case(2, 3, layout="PA_NZ"), [], line("PA_NZ"), rejected=True, everywhere=True
    ),
    "outputs_that_were_not_asked_for": Pair(ascend.prefill_pa, Case(2, 3), [], line(), everywhere=True),
    "rope_key_read_as_halves": Pair(ascend.native_mla_write, Case(2, 3), [Case(2, 3, **ROTATED_ALIKE)], line()),
    "latent_with_the_stride_of_its_output": Pair(
        ascend.native_mla_write, Case(2, 3), [Case(1)], line(batch="2 requests")
    ),
}
