"""Which counts cases have: no axis of integers stays on a short list unless it says why.

Kernels divide rows, heads and requests among cores, tiles and blocks, and what is wrong with a remainder shows at no
power of two, and nowhere below the size of a tile.
"""

from __future__ import annotations

import pytest

from draws import drawn
from npudiff.model.constraints import Constraints
from npudiff.run.discovery import load_components

COMPONENTS = {component.name: component for component in load_components(())}

LARGE = 33
"""Every axis goes as far as this, or as its end."""

PAGES = "operators ask for pages of multiples of 16; others are drawn where a writer takes any"
FILLS = "comes in whole strips, groups or words, which the operators ask for"
EXTRA = "how many there are beyond those that are used; nothing is computed from it"
PADDING = "padded rows are alike, and few show where they go"
MODEL = "the sizes of a model, which the components inside of the layer draw"
TRACE = "pools stay so small that they run full and give pages back"
CALLS = "a trace is many calls, and those of one call that are large are drawn by the components of its operators"
GROUPED = "groups divide experts, and must leave more than two in each"

SHORT = {
    ("cache_gather", "page_size"): PAGES,
    ("cached_attention", "head_dim"): FILLS,
    ("cache_gather", "shared_pages"): EXTRA,
    ("cache_gather", "spare_columns"): EXTRA,
    ("cache_gather", "spare_rows"): EXTRA,
    ("chunked_attention", "padded_rows"): PADDING,
    ("chunked_attention", "page_size"): PAGES,
    ("context_parallel", "head_dim"): FILLS,
    ("context_parallel", "interleave"): "divides a page",
    ("context_parallel", "kv_heads"): "divides the query heads, which are few",
    ("context_parallel", "padded"): PADDING,
    ("context_parallel", "page_size"): PAGES,
    ("context_parallel", "ranks"): "each is a process",
    ("decoder_layer", "top_k"): MODEL,
    ("decoder_layer", "decode_steps"): "each is a run of the whole layer",
    ("decoder_layer", "group"): MODEL,
    ("decoder_layer", "hidden_size"): MODEL,
    ("decoder_layer", "kv_heads"): MODEL,
    ("decoder_layer", "page_size"): PAGES,
    ("decoder_layer", "prefill"): "far rows come from far prefixes and many requests",
    ("decoder_layer", "query_rank"): MODEL,
    ("decoder_layer", "width"): MODEL,
    ("decoder_layer", "window"): MODEL,
    ("format_cast", "leading"): "leading axes only repeat a matrix",
    ("grouped_matmul", "beyond"): EXTRA,
    ("grouped_matmul", "groups"): FILLS,
    ("hybrid_pools", "full_pages"): TRACE,
    ("hybrid_pools", "group"): TRACE,
    ("hybrid_pools", "kv_heads"): TRACE,
    ("hybrid_pools", "page_size"): TRACE,
    ("hybrid_pools", "requests"): TRACE,
    ("hybrid_pools", "sliding_pages"): TRACE,
    ("int4_pack", "columns"): FILLS,
    ("kv_rmsnorm_rope_cache", "padded_tokens"): PADDING,
    ("latent_attention", "merges"): "is drawn for those who ask for it",
    ("latent_attention", "padded_rows"): PADDING,
    ("latent_attention", "page_size"): PAGES,
    ("mla_preprocess", "hidden_size"): FILLS,
    ("mla_preprocess", "padded_tokens"): PADDING,
    ("mla_preprocess", "page_size"): PAGES,
    ("moe_experts", "groups"): FILLS,
    ("moe_experts", "hidden"): FILLS,
    ("moe_experts", "shared_width"): "as wide as an expert, or twice as wide",
    ("moe_gating", "groups"): GROUPED,
    ("moe_gating", "kept_groups"): GROUPED,
    ("moe_finalize", "spare_rows"): EXTRA,
    ("padded_tokens", "width"): "rows are only moved, and moe_routing draws their widths",
    ("paged_cache", "padded_tokens"): PADDING,
    ("paged_cache", "page_size"): PAGES,
    ("rope_cache", "growths"): "each is a call",
    ("rope_cache", "max_positions"): "lengths of models",
    ("rope_cache", "sections"): "has three values",
    ("sliding_attention", "merges"): "is drawn for those who ask for it",
    ("sliding_attention", "padded_rows"): PADDING,
    ("sliding_attention", "page_size"): PAGES,
    ("state_pools", "drafts"): CALLS,
    ("state_pools", "group"): CALLS,
    ("state_pools", "key_dim"): CALLS,
    ("state_pools", "key_heads"): CALLS,
    ("state_pools", "requests"): TRACE,
    ("state_pools", "value_dim"): CALLS,
    ("state_pools", "width"): CALLS,
    ("swiglu_quant", "spare_rows"): EXTRA,
    ("weight_quant_matmul", "group_size"): FILLS,
    ("causal_conv", "channels"): FILLS,
    ("causal_conv", "padded_rows"): PADDING,
    ("causal_conv", "spare_lines"): EXTRA,
    ("causal_conv", "spare_rows"): EXTRA,
    ("causal_conv", "width"): "models have widths up to 4, and the operator takes no others",
    ("draft_acceptance", "length"): "drafts have up to 8 tokens, now and then 17 or 32",
    ("draft_acceptance", "spare"): EXTRA,
    ("draft_step", "page_size"): PAGES,
    ("draft_step", "room_left"): "the border is where there is none, and up to as many as there are steps",
    ("draft_step", "steps"): "backends draft up to 16 steps",
    ("draft_tree", "depth"): "backends draft up to 8 steps",
    ("draft_tree", "topk"): "backends draft up to 10 tokens behind each",
    ("encoder_attention", "padded_rows"): PADDING,
    ("gated_delta", "group"): "divides the heads that operators take",
    ("gated_delta", "padded_rows"): PADDING,
    ("gated_delta", "spare_slots"): EXTRA,
    ("quantised_kv_attention", "head_dim"): FILLS,
    ("quantised_kv_attention", "padded_rows"): PADDING,
    ("quantised_kv_attention", "page_size"): PAGES,
    ("sparse_attention", "padded_rows"): PADDING,
    ("sparse_attention", "page_size"): PAGES,
    ("sparse_indexer", "padded_rows"): PADDING,
    ("sparse_indexer", "page_size"): PAGES,
}
"""Axes whose cases are small or even by default, and why."""


def leaves_remainders(count):
    """Whether a count is neither a power of two nor a multiple of four."""
    return count % 4 != 0 and count & (count - 1) != 0


def reached(component):
    """By axis of integers, what cases have by default."""
    counts = {name: set() for name, axis in component.axes.items() if isinstance(axis.legal, range)}
    for case in drawn(component, Constraints(), 500 if component.history is None else 60, 4):
        used = component.values(case)
        for name, seen in counts.items():
            seen.update(count for count in used[name] if type(count) is int)
    return counts


@pytest.mark.few(2)
@pytest.mark.parametrize("name", COMPONENTS)
def test_counts_go_beyond_short_lists_or_say_why_not(name):
    component = COMPONENTS[name]
    short = {
        axis
        for axis, counts in reached(component).items()
        if not (max(counts) >= min(LARGE, component.axes[axis].legal[-1]) and any(map(leaves_remainders, counts)))
    }
    assert short <= {axis for owner, axis in SHORT if owner == name}


def test_the_reasons_name_axes_that_there_are():
    for name, axis in SHORT:
        assert isinstance(COMPONENTS[name].axes[axis].legal, range)
