"""Inputs by hand of both kinds of attention: a list of calls for each kernel."""

import torch

from npudiff.reference.chunked_attention import ChunkedAttentionInputs
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.quantised_kv_attention import Antiquant, QuantisedKvAttentionInputs

BF16, F16 = torch.bfloat16, torch.float16


def _table(random, totals, size):
    """A block table without order, and the pages that it needs; page 0 is of nobody."""
    counts = [-(-total // size) for total in totals]
    names = torch.randperm(sum(counts), generator=random).to(torch.int32) + 1
    table, start = torch.zeros(len(totals), max(counts) + 1, dtype=torch.int32), 0
    for row, count in enumerate(counts):
        table[row, :count] = names[start : start + count]
        start += count
    return table, 1 + sum(counts)


def _numbers(random, granularity, pages, size, heads, dim, dtype, offsets):
    shape = {"channel": (heads, dim), "tensor": (1,), "head": (heads,), "token": (pages, size),
             "token and head": (pages, heads, size)}[granularity]  # fmt: skip
    dtype = torch.float32 if granularity.startswith("token") else dtype
    scale = ((torch.rand(shape, generator=random) * 4).exp() * 0.002).to(dtype)
    offset = torch.randint(-40, 41, shape, generator=random).to(dtype) if offsets else None
    return Antiquant(granularity, scale, offset if offsets != "fractional" else offset / 4)


def quantised(new, totals, *, keys="channel", values=None, offsets=None, kv_heads=2, group=2, dim=64, size=32,
              dtype=BF16, nz=False, padded=0, seed=1):  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    table, pages = _table(random, totals, size)
    cache = [torch.randint(-128, 128, (pages, size, kv_heads, dim), generator=random).to(torch.int8) for _ in range(2)]
    if nz:
        cache = [one.view(pages, size, kv_heads, dim // 32, 32).permute(0, 2, 3, 1, 4).contiguous() for one in cache]
    of = [_numbers(random, one, pages, size, kv_heads, dim, dtype, offsets) for one in (keys, values or keys)]
    query = torch.randn(sum(new) + padded, kv_heads * group, dim, generator=random).to(dtype)
    pool = PagedKV(*cache, table, "PA_NZ" if nz else "PA_BSND")
    return QuantisedKvAttentionInputs(query, pool, *of, tuple(new), tuple(totals), dim**-0.5 / 4)


def chunked(new, totals, chunk, *, kv_heads=2, group=2, dim=64, size=16, dtype=BF16, padded=0, scale=1.0, seed=1):
    random = torch.Generator().manual_seed(seed)
    table, pages = _table(random, totals, size)
    key, value = (torch.randn(pages, size, kv_heads, dim, generator=random).to(dtype) for _ in range(2))
    query = torch.randn(sum(new) + padded, kv_heads * group, dim, generator=random).to(dtype)
    pool = PagedKV(key, value, table)
    return ChunkedAttentionInputs(query, pool, tuple(new), tuple(totals), chunk, dim**-0.5 * scale)


CASES = {
    "quantised_kv_attention": {
        "g_quantised_01_one_tensor_for_both": [quantised([1], [40], keys="tensor")],
        "g_quantised_02_offset_behind_scale": [quantised([1], [40], offsets="fractional")],
        "g_quantised_03_lse_without_offset": [quantised([2], [70], keys="head", offsets="whole")],
        "g_quantised_04_numbers_of_modulo": [quantised([1], [40], keys="head", kv_heads=3)],
        "g_quantised_05_heads_behind_tokens": [quantised([1], [40], keys="token and head", size=48)],
        "g_quantised_06_strips_of_16": [quantised([1, 1], [40, 3], nz=True, dim=128)],
        "g_quantised_07_whole_blocks_of_numbers": [quantised([1], [77], keys="token", dtype=F16)],
        "g_quantised_08_positions_of_longest": [quantised([4, 2], [40, 33], padded=1)],
        "g_quantised_09_offset_in_int8": [quantised([1], [40], offsets="whole")],
        "g_quantised_10_rows_in_tiles_of_16": [quantised([20], [30])],
        "g_quantised_11_eight_parts": [quantised([1], [4100], group=1, kv_heads=1)],
        "g_quantised_12_kept_scales": [quantised([1], [40]), quantised([1], [40], seed=2)],
        "g_quantised_13_sum_clamped": [quantised([1, 1], [0, 12])],
        "g_quantised_14_sum_of_scaled_weights": [quantised([1], [40], keys="channel", values="token")],
    },
    "chunked_attention": {
        "g_chunked_01_window_in_decode": [chunked([1], [40], 32)],
        "g_chunked_02_begin_of_length": [chunked([1], [64], 32)],
        "g_chunked_03_begins_with_a_page": [chunked([3], [40], 24)],
        "g_chunked_04_tables_of_whole_pages": [chunked([1], [80], 40)],
        "g_chunked_05_borders_from_new_tokens": [chunked([30], [40], 16)],
        "g_chunked_06_bits_of_chunk": [chunked([1], [50], 24)],
        "g_chunked_07_shift_of_pages": [chunked([1], [50], 48, size=24)],
        "g_chunked_08_table_rows_of_busy_requests": [chunked([0, 2], [20, 20], 16)],
        "g_chunked_09_tiles_without_mask": [chunked([8], [260], 256)],
        "g_chunked_10_one_border": [chunked([40], [50], 16)],
        "g_chunked_11_scale_of_head_dim": [chunked([1], [40], 64, scale=0.5)],
        "g_chunked_12_tiles_of_16_heads": [chunked([1], [20], 16, kv_heads=1, group=20)],
        "g_chunked_13_kept_tables": [chunked([1], [50], 32), chunked([1], [50], 32, seed=2)],
        "g_chunked_14_reciprocal": [chunked([1], [42], 41)],
        "g_chunked_15_blocks_of_64": [chunked([2], [50], 32, dim=96, dtype=F16)],
    },
}
