from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.mla_preprocess import MlaPreprocessCase as Case


def line(layout="PA_BSND", page_size=16):
    return f"1 token · hidden 256 · rank 64 · 1 head · dim 128/64/512 · {layout} · page {page_size}"


NZ = {"layout": "PA_NZ"}

PAIRS = {
    "rope_rows_not_reordered": Pair(Case(3), [Case(3, rope_dim=2, nope_dim=16)], line()),
    "nd_mode_on_nz_caches": Pair(Case(3, **NZ), [], line("PA_NZ"), everywhere=True),
    "pages_of_16_whatever_they_are": Pair(Case(3, page_size=128, **NZ), [Case(3, **NZ)], line("PA_NZ", 32)),
}
