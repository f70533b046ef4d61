from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.latent_attention.case import LatentAttentionCase
from npudiff.properties.sliding_attention.case import Request


def case(*lengths, **changes):
    return LatentAttentionCase(tuple(Request(query, kv) for query, kv in lengths), **changes)


def expanded(*lengths, **changes):
    return case(*lengths, form="expanded", merges=1, **changes)


def line(lengths, form="absorbed", page_size=16, heads="1 head", more=""):
    return f"{lengths} · {form} · page {page_size} · {heads} · bfloat16{more}"


def prefix(lengths, heads="1 head"):
    return line(lengths, "expanded", heads=heads, more=" · 1 merge")


def native(*lengths, **changes):
    return case(*lengths, form="expanded", **changes)


NAN = {"poison": "nan"}
NZ = {"layout": "PA_NZ"}

PAIRS = {
    "latent_prefix_ignored": Pair(expanded((2, 20)), [expanded((20, 20))], ""),
    "latent_prefix_in_whole_pages": Pair(expanded((2, 20)), [expanded((20, 20)), expanded((2, 34))], ""),
    "latent_chunk_replaces_the_last": Pair(expanded((2, 99)), [expanded((2, 50)), expanded((9, 9))], ""),
    "latent_merge_with_one_stride": Pair(expanded((3, 99)), [expanded((3, 50)), expanded((9, 9))], "", otherwise=()),
    "latent_lse_of_part_in_base2": Pair(expanded((2, 20)), [expanded((9, 9))], prefix("q1/kv2")),
    "latent_absent_part_merged": Pair(expanded((2, 20), (3, 3)), [expanded((9, 9), (1, 1))], prefix("q1/kv1 q1/kv2")),
    "latent_rope_read_as_dense": Pair(expanded((2, 20), heads=2), [expanded((2, 20))], ""),
    "latent_values_at_the_dim_of_keys": Pair(
        native((2, 20), heads=2, nope_dim=64),
        [native((2, 20), heads=2), native((2, 20), nope_dim=64), case((2, 20), heads=2)],
        "",
    ),
    "latent_tail_multiplied": Pair(case((1, 20), **NAN), [case((1, 16), **NAN)], line("q1/kv1", more=" · NaN poison")),
    "latent_nz_pages_as_nd": Pair(case((1, 20), **NZ), [], line("q1/kv1", more=" · NZ pages"), everywhere=True),
    "latent_pages_of_16": Pair(case((2, 20), page_size=128), [case((2, 20))], ""),
    "latent_scale_of_padded_dim": Pair(case((2, 20)), [], line("q1/kv1"), everywhere=True),
    "latent_rows_of_the_graph": Pair(
        case((2, 20), padded_rows=1), [case((2, 20))], line("q1/kv1", more=" · 1 padded row"), rejected=True
    ),
    "latent_heads_taken_back_in_steps": Pair(
        case((1, 20), heads=3), [case((1, 20), heads=2), case((1, 20), heads=16)], ""
    ),
    "latent_heads_padded_beside_their_buffer": Pair(
        case((1, 20), heads=3), [case((1, 20), heads=4)], "", rejected=True
    ),
    "latent_lengths_of_the_captured_step": Pair(case((1, 20)), [], line("q1/kv1"), everywhere=True),
}
