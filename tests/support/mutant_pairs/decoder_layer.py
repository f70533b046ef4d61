from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.decoder_layer import DecoderLayerCase as Case
from npudiff.properties.decoder_layer import LayerRequest

ONE = (LayerRequest(0, 1),)
PREFILL = Case((LayerRequest(0, 5), LayerRequest(0, 7)), top_k=2, seed=3)
DECODE = replace(PREFILL, decode_steps=2)
SLIDING = replace(DECODE, window=3)
LIMITED = replace(PREFILL, limit=0.5, form="w8a8")
LATENT = replace(DECODE, kind="deepseek", experts=8)


def line(tokens="1", window="none", more="", kind="step-3.5", flags="use_fia", experts="1 of 4", decode=""):
    heads = "heads 1:1 · dim 64" if kind == "step-3.5" else "1 head"
    window = f"window {window} · " if kind == "step-3.5" else ""
    return (
        f"{kind} · tokens {tokens} · {decode}{window}hidden 64 · {heads} · experts {experts}{more} · page 16 · {flags}"
    )


def latent(tokens="1", **more):
    return line(tokens, kind="deepseek", **more)


PAIRS = {
    "residual_before_the_sum": Pair(PREFILL, [], line(), everywhere=True),
    "one_added_twice": Pair(PREFILL, [], line(), everywhere=True),
    "positions_of_the_step": Pair(DECODE, [PREFILL], ""),
    "written_after_attention": Pair(DECODE, [PREFILL], line(decode="1 decode step · ")),
    "window_in_prefill_only": Pair(
        SLIDING,
        [replace(SLIDING, decode_steps=0), replace(SLIDING, window=9)],
        line(window="1", decode="1 decode step · "),
    ),
    "slots_of_the_full_pool": Pair(SLIDING, [], "", everywhere=True),
    "lengths_of_the_first_decode": Pair(
        DECODE,
        [replace(DECODE, decode_steps=1), replace(SLIDING, decode_steps=0)],
        line(decode="2 decode steps · "),
    ),
    "router_on_the_residual": Pair(PREFILL, [], "", everywhere=True),
    "scaled_by_both": Pair(PREFILL, [], line(), everywhere=True),
    "limit_dropped_when_quantised": Pair(LIMITED, [replace(LIMITED, form="float")], line(more=" · w8a8 · limit 7")),
    "shared_limit_of_routed_experts": Pair(
        LIMITED, [replace(LIMITED, limit=None), replace(LIMITED, shared_limit=0.5)], ""
    ),
    "nz_by_the_writer_only": Pair(replace(LATENT, fia_nz=True), [], latent(flags="use_fia fia_nz"), everywhere=True),
    "query_turned_unlike_its_keys": Pair(LATENT, [replace(LATENT, decode_steps=0)], latent(decode="1 decode step · ")),
    "scale_without_mscale": Pair(LATENT, [replace(LATENT, decode_steps=0, requests=ONE)], ""),
    "prefix_not_gathered": Pair(replace(LATENT, requests=(LayerRequest(3, 4),)), [LATENT], latent("1+2")),
    "one_group_of_experts": Pair(replace(LATENT, groups=2), [LATENT], ""),
    "scaled_by_nobody": Pair(LATENT, [], latent(), everywhere=True),
    "decode_path_in_mixed_batches": Pair(
        replace(LATENT, requests=(LayerRequest(0, 1), LayerRequest(0, 5))),
        [LATENT, replace(LATENT, requests=(LayerRequest(0, 1), LayerRequest(3, 1)))],
        latent("1 2"),
    ),
}
