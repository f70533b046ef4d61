"""What tests of each component are usually like: what ``npudiff score`` compares with.

Round shapes are those of backends' own tests: batches of 1 to 4, lengths of 128 and 1,024, pages of 128, head dims of
128, widths that are powers of two. Random loops draw sizes evenly from what is usual. Data are Gaussian; nothing is at
a limit, nothing unused holds anything but zeros, and pages are in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

import torch

from npudiff.model.baselines import BaselineSpec
from npudiff.reference.cache_gather import CacheGatherInputs
from npudiff.reference.cached_attention import CachedAttentionInputs
from npudiff.reference.chunked_attention import ChunkedAttentionInputs
from npudiff.reference.context_parallel import ContextParallelInputs
from npudiff.reference.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheInputs
from npudiff.reference.latent_attention import LatentAttentionInputs
from npudiff.reference.mla_preprocess import MlaPreprocessInputs
from npudiff.reference.paged_cache import PagedCacheInputs
from npudiff.reference.sliding_attention import SlidingAttentionInputs

_Cached = TypeVar("_Cached", KvRmsnormRopeCacheInputs, MlaPreprocessInputs)

_CONTIGUOUS = {"rows": ("contiguous",)}
_USUAL = {**_CONTIGUOUS, "magnitude": ("usual",)}
_GAUSSIAN = {"recipe": ("gaussian",)}
_ROUND_DIMS = {"head_dims": ("128",), "dtype": ("bfloat16", "float16")}
_ANY = range(1, 300)

POISON = 4096.0
"""What values hold in pools of ranks where there is no token."""


def in_order(
    table: torch.Tensor, lengths: tuple[int, ...], page_size: int, *caches: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Lay the pages of each request one after the other, with zeros where there is no token.

    Parameters
    ----------
    table : torch.Tensor
        Integers [batch, columns].
    lengths : tuple of int
        Tokens of each request.
    page_size : int
        Tokens per page.
    caches : torch.Tensor
        [pages, page size, ...]; one that is too small for pages that several requests share grows.

    Returns
    -------
    tuple of torch.Tensor
        The new table, then the new caches.
    """
    counts = [-(-length // page_size) for length in lengths]
    made = [cache.new_zeros(max(len(cache), 1 + sum(counts)), *cache.shape[1:]) for cache in caches]
    ordered, page = torch.zeros_like(table), 1
    for request, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        for number in range(count):
            ordered[request, number] = page
            rows = min(page_size, length - number * page_size)
            for new, old in zip(made, caches, strict=True):
                new[page, :rows] = old[int(table[request, number]), :rows]
            page += 1
    return ordered, *made


def _attention(inputs: SlidingAttentionInputs) -> SlidingAttentionInputs:
    pool = inputs.full
    table, key, value = in_order(pool.block_table, inputs.kv_lengths, pool.page_size, pool.key, pool.value)
    return replace(inputs, full=replace(pool, key=key, value=value, block_table=table))


def _latent(inputs: LatentAttentionInputs) -> LatentAttentionInputs:
    pool = inputs.pool
    table, latent, rope = in_order(pool.block_table, inputs.kv_lengths, pool.page_size, pool.key, pool.value)
    return replace(inputs, pool=replace(pool, key=latent, value=rope, block_table=table))


def _gather(inputs: CacheGatherInputs) -> CacheGatherInputs:
    lengths = tuple(inputs.lengths.tolist())
    table, key, value = in_order(inputs.block_table, lengths, inputs.page_size, inputs.key_cache, inputs.value_cache)
    return replace(
        inputs,
        block_table=table,
        key_cache=key,
        value_cache=value,
        key=torch.zeros_like(inputs.key),
        value=torch.zeros_like(inputs.value),
    )


def _written(inputs: PagedCacheInputs) -> PagedCacheInputs:
    slots = torch.arange(len(inputs.slots), dtype=inputs.slots.dtype)
    return replace(
        inputs,
        key_cache=torch.zeros_like(inputs.key_cache),
        value_cache=torch.zeros_like(inputs.value_cache),
        slots=slots,
    )


def _empty_caches(inputs: _Cached) -> _Cached:
    latent, rope = torch.zeros_like(inputs.latent_cache), torch.zeros_like(inputs.rope_cache)
    return replace(inputs, latent_cache=latent, rope_cache=rope)


def _cached_attention(inputs: CachedAttentionInputs) -> CachedAttentionInputs:
    """Zeros where no request has a token; slots and table stay, since they belong together."""
    used = torch.zeros(len(inputs.key_cache), dtype=torch.bool)
    used[inputs.block_table.flatten().long()] = True
    key, value = inputs.key_cache.clone(), inputs.value_cache.clone()
    key[~used], value[~used] = 0, 0
    return replace(inputs, key_cache=key, value_cache=value)


def _context_parallel(inputs: ContextParallelInputs) -> ContextParallelInputs:
    """Zeros where no request has a token."""
    pools = [pool.masked_fill(inputs.value_cache == POISON, 0.0) for pool in (inputs.key_cache, inputs.value_cache)]
    return replace(inputs, key_cache=pools[0], value_cache=pools[1])


def _chunked_attention(inputs: ChunkedAttentionInputs) -> ChunkedAttentionInputs:
    """Zeros where no request has a token that is seen; pages stay, since their table names them."""
    pool = inputs.kv
    return replace(inputs, kv=replace(pool, value=pool.value.masked_fill(pool.key == 0, 0.0)))


BASELINES: Mapping[str, BaselineSpec] = MappingProxyType({
    "sliding_attention": BaselineSpec(
        fixed={
            "batch": (1, 4), "query_length": (1, 128), "kv_length": (128, 1024), "window": (None, 512),
            "page_size": (128,), "kv_heads": (1,), "group": (4,), **_ROUND_DIMS,
        },
        sizes={
            "batch": range(1, 5), "query_length": (1, *range(1, 64)), "kv_length": range(64, 700),
            "window": (None, *range(1, 700)), "page_size": (16, 32, 64, 128), "kv_heads": (1, 2), "group": (1, 2, 4),
            "head_dims": ("64", "128"), "dtype": ("bfloat16", "float16"),
        },
        plain={
            **_GAUSSIAN, **_CONTIGUOUS, "layout": ("PA_BSND",), "hybrid": (False,), "padded_rows": (0,),
            "fully_masked_rows": ("none",), "scale": (1.0,), "poison": ("large",),
        },
        inputs=_attention,
    ),
    "cached_attention": BaselineSpec(
        fixed={
            "batch": (1, 4), "query_length": (1, 128), "kv_length": (128, 1024), "window": (None, 512),
            "page_size": (128,), "kv_heads": (1,), "group": (4,), "head_dim": (128,), "dtype": ("bfloat16",),
        },
        sizes={
            "batch": range(1, 5), "query_length": (1, *range(1, 64)), "kv_length": range(64, 500),
            "window": (None, *range(1, 500)), "page_size": (16, 32, 64, 128), "kv_heads": (1, 2), "group": (1, 2),
        },
        plain=_CONTIGUOUS,
        inputs=_cached_attention,
    ),
    "context_parallel": BaselineSpec(
        fixed={
            "batch": (1, 4), "query_length": (1, 128), "kv_length": (128, 1024), "ranks": (2, 4), "page_size": (128,),
            "interleave": (1, 128), "own_heads": (4,), "kv_heads": (1,), "head_dim": (128,), "dtype": ("bfloat16",),
        },
        sizes={
            "batch": range(1, 5), "query_length": (1, *range(1, 64)), "kv_length": range(64, 500),
            "ranks": (1, 2, 4), "page_size": (16, 32, 64, 128), "interleave": (1, 16), "own_heads": (1, 2),
            "kv_heads": (1, 2),
        },
        plain={**_CONTIGUOUS, "padded": (0,), "recipe": ("gaussian",)},
        inputs=_context_parallel,
    ),
    "chunked_attention": BaselineSpec(
        fixed={
            "batch": (1, 4), "query_length": (1, 128), "kv_length": (128, 1024), "chunk": (128, 256),
            "page_size": (128,), "kv_heads": (1,), "group": (4,), "head_dim": (128,), "dtype": ("bfloat16",),
        },
        sizes={
            "batch": range(1, 5), "query_length": (1, *range(1, 64)), "kv_length": range(64, 500),
            "chunk": (64, 128, 256), "page_size": (16, 32, 64), "kv_heads": (1, 2), "group": (1, 2),
        },
        plain={**_CONTIGUOUS, "padded_rows": (0,), "recipe": ("gaussian",)},
        inputs=_chunked_attention,
    ),
    "cache_gather": BaselineSpec(
        fixed={
            "batch": (1, 4), "length": (128, 1024), "page_size": (128,), "kv_heads": (1, 4), **_ROUND_DIMS,
        },
        sizes={
            "batch": range(1, 5), "length": range(1, 600), "page_size": (16, 32, 64, 128), "kv_heads": (1, 2, 4),
            "head_dims": ("64", "128"),
        },
        plain={
            "starts": ("none",), "spare_rows": (0,), "layout": ("PA_BSND",), "shared_pages": (0,),
            "unused": ("page 0",), "spare_columns": (0,),
        },
        inputs=_gather,
    ),
    "paged_cache": BaselineSpec(
        fixed={
            "tokens": (1, 128), "pages": (8, 16), "page_size": (128,), "kv_heads": (1, 4), **_ROUND_DIMS,
        },
        sizes={
            "tokens": range(1, 200), "pages": range(17, 33), "page_size": (16, 32, 64, 128), "kv_heads": (1, 2, 4),
            "head_dims": ("64", "128"),
        },
        plain={"padding": ("slot 0",), "padded_tokens": (0,), **_CONTIGUOUS},
        inputs=_written,
    ),
    "page_allocation": BaselineSpec(
        fixed={"batch": (1, 4), "prefix": (0, 128), "new_tokens": (1, 128), "page_size": (128,)},
        sizes={
            "batch": range(1, 5), "prefix": range(300), "new_tokens": (1, *_ANY), "page_size": (16, 32, 64, 128),
        },
    ),
    "swa_mask": BaselineSpec(
        fixed={"batch": (1, 4), "kv_length": (128, 1024), "window": (None, 512), "capacity": (1024, 2048)},
        sizes={
            "batch": range(1, 5), "kv_length": range(1, 1000), "window": (None, *range(1, 1000)),
            "capacity": range(1000, 2000),
        },
    ),
    "format_cast": BaselineSpec(
        fixed={"rank": (2, 3), "leading": (1, 4), "rows": (128, 256), "columns": (128, 512)},
        sizes={"rank": (2, 3), "leading": range(1, 5), "rows": _ANY, "columns": _ANY},
        plain={"view": ("whole",)},
    ),
    "rope_cache": BaselineSpec(
        fixed={"dims": ("64", "128"), "max_positions": (2048, 4096), "tokens": (128,), "dtype": ("bfloat16",
        "float32")}, sizes={"dims": ("64", "128", "80", "96"), "max_positions": range(500, 4000), "tokens": _ANY},
        plain={"positions": ("consecutive",), "offsets": ("none",), "growths": (0,), "other": ("none",)},
    ),
    "rotary": BaselineSpec(
        fixed={
            "tokens": (1, 128), "heads": (8,), "kv_heads": (1, 8), "dims": ("64", "128"), "table": (4096,),
            "dtype": ("bfloat16", "float16"),
        },
        sizes={
            "tokens": _ANY, "heads": range(1, 9), "kv_heads": (1, 2), "dims": ("64", "128"), "table": range(512, 4097),
        },
        plain={**_USUAL, "positions": ("consecutive",), "data": ("numbers",)},
    ),
    "rms_norm": BaselineSpec(
        fixed={"tokens": (1, 128), "hidden_size": (128, 1024, 4096), "dtype": ("bfloat16", "float16")},
        sizes={"tokens": _ANY, "hidden_size": range(16, 2049, 16)},
        plain={**_GAUSSIAN, **_CONTIGUOUS, "weights": ("near 1",)},
    ),
    "kv_rmsnorm_rope_cache": BaselineSpec(
        fixed={"batch": (1, 4), "length": (1, 128), "page_size": (128,), "dims": ("512/64",)},
        sizes={"batch": range(1, 5), "length": range(1, 100), "page_size": (16, 32, 64, 128)},
        plain={
            **_GAUSSIAN, **_CONTIGUOUS, "padding": ("slot 0",), "padded_tokens": (0,),
            "placement": ("pages", "scattered"),
        },
        inputs=_empty_caches,
    ),
    "latent_attention": BaselineSpec(
        fixed={
            "batch": (1, 4), "query_length": (1, 128), "kv_length": (128, 1024), "page_size": (128,),
            "heads": (16,), "rank": (512,), "rope_dim": (64,), "dtype": ("bfloat16",), "form": ("absorbed", "expanded"),
        },
        sizes={
            "batch": range(1, 5), "query_length": (1, *range(1, 64)), "kv_length": range(64, 700),
            "page_size": (16, 32, 64, 128), "heads": (1, 2, 4, 8), "rank": (512,), "rope_dim": (64,),
            "form": ("absorbed", "expanded"),
        },
        plain={
            **_GAUSSIAN, **_CONTIGUOUS, "layout": ("PA_BSND",), "padded_rows": (0,), "fully_masked_rows": ("none",),
            "scale": (1.0,), "poison": ("large",),
        },
        inputs=_latent,
    ),
    "mla_preprocess": BaselineSpec(
        fixed={"tokens": (1, 32), "page_size": (128,), "heads": (16, 32)},
        sizes={"tokens": range(1, 40), "page_size": (16, 32, 64, 128)},
        plain={**_GAUSSIAN, **_CONTIGUOUS, "padding": ("slot 0",), "padded_tokens": (0,)},
        inputs=_empty_caches,
    ),
    "swiglu": BaselineSpec(
        fixed={"tokens": (1, 128), "width": (128, 1024), "dtype": ("bfloat16", "float16")},
        sizes={"tokens": _ANY, "width": range(16, 2049, 16)},
        plain={**_GAUSSIAN, **_CONTIGUOUS},
    ),
    "swiglu_quant": BaselineSpec(
        fixed={"tokens": (4, 128), "width": (128, 1024), "groups": (None, 4, 8)},
        sizes={"tokens": _ANY, "width": range(16, 1025, 16), "groups": (None, 2, 4, 8)},
        plain={**_GAUSSIAN, **_CONTIGUOUS, "spare_rows": (0,), "load": ("any",)},
    ),
    "dynamic_quant": BaselineSpec(
        fixed={"tokens": (1, 128), "width": (128, 1024), "dtype": ("bfloat16", "float16")},
        sizes={"tokens": _ANY, "width": range(16, 2049, 16)},
        plain={**_GAUSSIAN, **_CONTIGUOUS, "empty_experts": ("none",)},
    ),
    "int4_pack": BaselineSpec(
        fixed={"matrices": (1,), "rows": (128, 256), "columns": (128, 256)},
        sizes={"matrices": (1, 2, 4), "rows": _ANY, "columns": range(8, 513, 8)},
        plain={"recipe": ("all values",)},
    ),
    "scale_pack": BaselineSpec(
        fixed={"columns": (128, 1024), "groups": (1,)},
        sizes={"columns": _ANY, "groups": (1, 2, 4)},
        plain={"recipe": ("usual",), "layout": ("contiguous",)},
    ),
    "quant_matmul": BaselineSpec(
        fixed={"tokens": (1, 128), "inner": (128, 512), "columns": (128, 256)},
        sizes={"tokens": range(1, 65), "inner": range(32, 513, 32), "columns": range(32, 257, 32)},
        plain={**_GAUSSIAN, **_CONTIGUOUS},
    ),
    "weight_quant_matmul": BaselineSpec(
        fixed={"tokens": (1, 32), "inner": (128, 512), "columns": (128, 256)},
        sizes={"tokens": range(1, 65), "inner": range(64, 513, 64), "columns": range(64, 257, 64)},
        plain={**_GAUSSIAN, **_CONTIGUOUS},
    ),
    "moe_gating": BaselineSpec(
        fixed={"tokens": (1, 128), "experts": (64, 256), "top_k": (2, 8)},
        sizes={"tokens": _ANY, "experts": (8, 16, 32, 64, 128, 256), "top_k": (1, 2, 4, 8)},
        plain={**_GAUSSIAN, **_CONTIGUOUS},
    ),
    "causal_conv": BaselineSpec(
        fixed={"batch": (1, 4), "length": (1, 64), "channels": (128, 1024), "width": (4,)},
        sizes={"batch": range(1, 5), "length": range(1, 130), "channels": range(16, 1025, 16), "width": (2, 3, 4)},
        plain={**_CONTIGUOUS, **_GAUSSIAN, "padded": (False,), "padded_rows": (0,), "spare_rows": (0,)},
    ),
    "encoder_attention": BaselineSpec(
        fixed={
            "batch": (1, 4), "query_length": (64, 256), "kv_heads": (4,), "group": (1,), "head_dim": (64, 128),
            "dtype": ("bfloat16", "float16"),
        },
        sizes={
            "batch": range(1, 5), "query_length": range(1, 300), "kv_heads": (1, 2, 4), "group": (1, 2),
            "head_dim": (64, 80, 128), "dtype": ("bfloat16", "float16"),
        },
        plain={
            **_CONTIGUOUS, **_GAUSSIAN, "poison": ("large",), "padded_rows": (0,), "scale": (1.0,), "cross": (False,),
        },
    ),
    "quantised_kv_attention": BaselineSpec(
        fixed={
            "batch": (1, 4), "query_length": (1,), "kv_length": (128, 1024), "page_size": (128,), "kv_heads": (1,),
            "group": (4,), "head_dim": (128,), "form": ("channel",), "dtype": ("bfloat16", "float16"),
        },
        sizes={
            "batch": range(1, 5), "query_length": (1, *range(1, 17)), "kv_length": range(64, 700),
            "page_size": (32, 64, 128), "kv_heads": (1, 2), "group": (1, 2, 4), "head_dim": (64, 128),
            "form": ("channel", "tensor"), "dtype": ("bfloat16", "float16"),
        },
        plain={
            **_CONTIGUOUS, **_GAUSSIAN, "layout": ("PA_BSND",), "padded_rows": (0,), "fully_masked_rows": ("none",),
            "scale": (1.0,), "spread": ("alike",), "offsets": ("none",), "poison": ("large",),
        },
    ),
    "sparse_attention": BaselineSpec(
        fixed={"batch": (1, 4), "query_length": (1,), "kv_length": (128, 1024), "chosen": (512,), "page_size": (128,)},
        sizes={
            "batch": range(1, 5), "query_length": (1,), "kv_length": range(1, 1025), "chosen": (128, 512),
            "page_size": (128,),
        },
        plain={
            **_CONTIGUOUS, **_GAUSSIAN, "poison": ("large",), "padded_rows": (0,), "scale": (1.0,),
            "choice": ("anywhere",), "order": ("scattered",),
        },
    ),
    "sparse_indexer": BaselineSpec(
        fixed={"batch": (1, 4), "query_length": (1,), "kv_length": (128, 1024), "count": (512,), "page_size": (128,)},
        sizes={
            "batch": range(1, 5), "query_length": (1,), "kv_length": range(1, 1025), "count": (128, 512),
            "page_size": (128,),
        },
        plain={**_CONTIGUOUS, **_GAUSSIAN, "poison": ("large",), "padded_rows": (0,)},
    ),
    "draft_acceptance": BaselineSpec(
        fixed={"requests": (1, 4), "length": (3,), "vocabulary": (1000, 32000)},
        sizes={"requests": range(1, 9), "length": range(1, 6), "vocabulary": range(64, 4097, 64)},
        plain={**_CONTIGUOUS, "likeness": ("near",), "uniforms": ("even",), "missing": ("none",), "spare": (0,)},
    ),
    "draft_tree": BaselineSpec(
        fixed={
            "batch": (1, 4), "verified": (128, 1023), "topk": (4,), "depth": (4,), "draft_token_num": (8,),
            "mask_mode": ("full",),
        },
        sizes={
            "batch": range(1, 5), "verified": range(1, 1025), "topk": (1, 2, 4, 8), "depth": range(1, 6),
            "draft_token_num": (2, 4, 8, 16),
        },
        plain={"shape": ("scored",), "matches": ("first", "random"), "tokens": ("different",)},
    ),
    "draft_step": BaselineSpec(
        fixed={"batch": (1, 4), "steps": (1, 3), "page_size": (128,)},
        sizes={"batch": range(1, 9), "steps": range(1, 6), "page_size": (16, 64, 128)},
        plain={"kind": ("draft",), "room_left": (None,)},
    ),
    "fused_qk_norm_rope": BaselineSpec(
        fixed={"tokens": (1, 16, 256), "kv_heads": (1, 8), "group": (4,), "head_dim": (128,)},
        sizes={"tokens": range(1, 257), "kv_heads": (1, 2, 4, 8), "group": (1, 4, 8), "head_dim": (64, 128)},
        plain={**_CONTIGUOUS, **_GAUSSIAN, "positions": ("scattered",)},
    ),
    "gated_delta": BaselineSpec(
        fixed={"batch": (1, 4), "length": (1, 64, 128), "key_dim": (128,), "value_dim": (128,), "key_heads": (2,)},
        sizes={"batch": range(1, 5), "length": range(1, 130), "key_dim": (64, 128), "value_dim": (64, 128)},
        plain={
            **_CONTIGUOUS, "keys": ("gaussian",), "decays": ("usual",), "betas": ("usual",), "accepted": ("first",),
            "fresh": (False,), "padded_rows": (0,),
        },
    ),
    "sampling": BaselineSpec(
        fixed={"requests": (1, 16), "vocabulary": (1000, 32000), "top_k": (0, 50), "top_p": (1.0, 0.9)},
        sizes={
            "requests": range(1, 33),
            "vocabulary": range(64, 4097, 64),
            "top_k": (0, 1, 10, 50),
            "top_p": (1.0, 0.9, 0.5),
        },
        plain={**_GAUSSIAN, **_CONTIGUOUS, "mixed": (False,), "grammar": ("none",)},
    ),
    "moe_routing": BaselineSpec(
        fixed={"tokens": (4, 128), "experts": (8, 64), "top_k": (2, 8), "width": (128,)},
        sizes={"tokens": _ANY, "experts": (4, 8, 16, 64), "top_k": (1, 2, 4), "width": range(32, 257, 32)},
        plain={**_CONTIGUOUS, "load": ("even",), "padded_ids": ("none",)},
    ),
    "moe_finalize": BaselineSpec(
        fixed={"tokens": (4, 128), "top_k": (2, 8), "width": (128, 1024)},
        sizes={"tokens": _ANY, "top_k": (1, 2, 4, 8), "width": range(16, 513, 16)},
        plain={**_USUAL, "dropped": ("none",), "spare_rows": (0,), "weights": ("renormalised",), "poison": ("large",)},
    ),
    "padded_tokens": BaselineSpec(
        fixed={"ranks": (1, 2), "chunk": (16, 64), "experts": (8,), "top_k": (2,), "width": (128,)},
        sizes={
            "ranks": range(1, 5), "chunk": range(2, 65), "experts": (4, 8, 16), "top_k": (1, 2, 4),
            "width": range(32, 257, 32),
        },
        plain={**_CONTIGUOUS, "poison": ("stale",), "earlier": ("all",)},
    ),
    "vocabulary_parallel": BaselineSpec(
        fixed={"tokens": (1, 16), "vocabulary": (128, 1024), "hidden": (64,), "ranks": (1, 2, 4)},
        sizes={
            "tokens": range(1, 17), "vocabulary": range(64, 1025, 64), "hidden": (16, 32, 64), "ranks": (1, 2, 4, 8),
        },
        plain={
            "added": (0,), "padding": (64,), "recipe": ("gaussian",), "filler": ("zeros",), "outside": (False,),
            "division": ("even",),
        },
    ),
    "data_parallel_gather": BaselineSpec(
        fixed={"groups": (2,), "attention_ranks": (1, 2), "width": (64,), "mode": ("sum", "maximum")},
        sizes={"groups": (1, 2, 4), "attention_ranks": (1, 2), "width": range(16, 65, 16)},
        plain={"spare": (0,), "poison": ("stale",), "dtype": ("bfloat16",)},
    ),
    "grouped_matmul": BaselineSpec(
        fixed={"rows_of_all": (16, 128), "inner": (128,), "columns": (128,), "experts": (4, 8)},
        sizes={
            "rows_of_all": range(1, 129), "inner": range(32, 257, 32), "columns": range(32, 257, 32),
            "experts": (1, 2, 4, 8),
        },
        plain={**_GAUSSIAN, **_CONTIGUOUS, "load": ("even",), "beyond": (0,)},
    ),
    "moe_experts": BaselineSpec(
        fixed={"tokens": (4, 32), "hidden": (128,), "width": (128,), "experts": (8,), "top_k": (2,)},
        sizes={
            "tokens": range(1, 33), "hidden": range(64, 257, 64), "width": range(64, 257, 64), "experts": (4, 8),
            "top_k": (1, 2, 4),
        },
        plain={**_GAUSSIAN, **_CONTIGUOUS, "load": ("random",)},
    ),
    "tensor_parallel": BaselineSpec(
        fixed={"tokens": (4, 16), "hidden": (128,), "width": (64,), "ranks": (2, 4)},
        sizes={"tokens": range(1, 65), "hidden": range(32, 257, 32), "width": range(32, 129, 32), "ranks": (1, 2, 4)},
        plain={
            **_GAUSSIAN, "tail": (0,), "padding": ("zeros",), "offset": (0, 7),
            "projections": ("one", "gate_up", "qkv"),
        },
    ),
    "expert_parallel": BaselineSpec(
        fixed={
            "tokens": (4, 32), "ranks": (2, 4), "hidden": (64, 1024), "width": (64,), "experts": (8,), "top_k": (2,),
        },
        sizes={
            "tokens": range(1, 33), "ranks": (2, 4), "hidden": (64, 128, 1024), "width": (32, 64), "experts": (4, 8),
            "top_k": (1, 2, 4),
        },
        plain={**_GAUSSIAN, "load": ("random",), "spread": ("equal",), "padding": ("none", "mask")},
    ),
    "decoder_layer": BaselineSpec(
        fixed={"batch": (1, 2), "prefix": (0,), "prefill": (16, 64), "decode_steps": (0, 2), "page_size": (128,)},
        sizes={
            "batch": (1, 2, 3), "prefix": (0, *range(64)), "prefill": range(1, 65), "decode_steps": (0, 1, 2),
            "page_size": (16, 32, 64, 128),
        },
    ),
})  # fmt: skip
"""Of every component but those with history, whose tests have no usual form."""
