"""Inputs by hand: for each kernel a list of calls, of which the last is the one that goes wrong."""

import math
from dataclasses import replace

import torch

from npudiff.reference.cache_gather import CacheGatherInputs
from npudiff.reference.cache_layout import CacheLayout
from npudiff.reference.cached_attention import CachedAttentionInputs
from npudiff.reference.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheInputs
from npudiff.reference.mla_preprocess import MlaPreprocessInputs
from npudiff.reference.page_allocation import PageAllocationInputs
from npudiff.reference.paged_cache import PagedCacheInputs
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.rms_norm import RmsNormInputs
from npudiff.reference.rope_cache import RopeCacheInputs
from npudiff.reference.rope_scaling import RopeConfig
from npudiff.reference.rotary import RotaryInputs
from npudiff.reference.sliding_attention import SlidingAttentionInputs
from npudiff.reference.swa_mask import SwaMaskInputs

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, dtype=BF16, seed=0):
    return torch.randn(*shape, generator=gen(seed)).to(dtype)


# ---------------------------------------------------------------- sliding_attention


def attention(requests, window=None, *, heads=4, kv_heads=2, dim=64, value_dim=None, size=16, dtype=BF16, sinks=False,
              scale=None, layout="PA_BSND", padding=0, gap=0, gain=1.0, sliding=False, seed=0):
    """``requests`` are pairs of new and total tokens."""
    value_dim = value_dim or dim
    width = max(1, max(-(-total // size) for _, total in requests))

    def pool(offset):
        pages = 1 + len(requests) * width
        order = torch.randperm(pages - 1, generator=gen(seed + offset)) + 1
        table = order[: len(requests) * width].reshape(len(requests), width).to(torch.int32)
        if gap:
            wide = torch.zeros(len(requests), width + gap, dtype=torch.int32)
            wide[:, :width] = table
            table = wide[:, :width]
        key = randn(pages, size, kv_heads, dim, dtype=dtype, seed=seed + offset + 1) * gain
        value = randn(pages, size, kv_heads, value_dim, dtype=dtype, seed=seed + offset + 2)
        if layout == "PA_NZ":
            key, value = (
                cache.reshape(pages, size, kv_heads, -1, 16).permute(0, 2, 3, 1, 4).contiguous() for cache in (key, value)
            )
        return PagedKV(key, value, table, layout)

    rows = sum(new for new, _ in requests) + padding
    return SlidingAttentionInputs(
        query=randn(rows, heads, dim, dtype=dtype, seed=seed + 3) * gain,
        full=pool(10),
        sliding=pool(20) if sliding else None,
        query_lengths=tuple(new for new, _ in requests),
        kv_lengths=tuple(total for _, total in requests),
        window=window,
        scale=scale or 1 / math.sqrt(dim),
        sinks=randn(heads, seed=seed + 4) + 3 if sinks else None,
    )


def far_below_zero():
    """All scores of a request near -160."""
    inputs = attention([(1, 40)], dtype=F16)
    direction = torch.ones(64) * 4
    key = (-direction + 0.1 * torch.randn(inputs.full.key.shape, generator=gen(5))).to(F16)
    query = (5 * torch.ones(1, 4, 64) + 0.1 * torch.randn(1, 4, 64, generator=gen(6))).to(F16)
    return replace(inputs, query=query, full=replace(inputs.full, key=key))


A = "c_sliding_attention_"
SLIDING = {
    A + "01_partitions_of_the_longest": [attention([(1, 160), (1, 75)], 48)],
    A + "02_sink_in_every_split": [attention([(1, 700)], sinks=True)],
    A + "03_lse_of_powers_of_two": [attention([(5, 30), (1, 9)], padding=2)],
    A + "04_group_by_shift": [attention([(3, 40), (1, 7)], heads=14, kv_heads=2, layout="PA_NZ")],
    A + "05_key_tiles_of_the_first_row": [attention([(40, 150)])],
    A + "06_window_of_whole_pages": [attention([(1, 61), (4, 50)], 24, sliding=True)],
    A + "07_positions_in_half": [attention([(1, 3001), (2, 2100)], 16, kv_heads=1, heads=2)],
    A + "08_empty_request_keeps_buffer": [attention([(1, 9), (1, 20), (1, 4)], seed=3), attention([(1, 9), (1, 0), (1, 4)], sinks=True)],
    A + "09_sums_not_rescaled_by_the_tail": [attention([(1, 250), (2, 233)], gap=3, gain=1.5)],
    A + "10_maximum_from_zero": [far_below_zero()],
    A + "11_scores_in_16_bits": [attention([(3, 200)], gain=2.0)],
    A + "12_drafts_see_each_other": [attention([(3, 40), (3, 17)], 32)],
    "extra 1": [attention([(5, 3), (2, 0), (70, 200)], 40, dim=48, value_dim=32, dtype=F16, padding=1, sinks=True)],
    "extra 2": [attention([(5, 3), (2, 0), (1, 200)], None, dim=64, layout="PA_NZ", dtype=F16)],
}

# ---------------------------------------------------------------- swa_mask

M = "c_swa_mask_"


def mask(lengths, capacity, window, *, column=False, dtype=torch.int32):
    lengths = torch.tensor(lengths, dtype=dtype)
    return SwaMaskInputs(lengths.unsqueeze(1) if column else lengths, capacity, window)


MASK = {
    M + "01_unsigned_difference": [mask([3, 40, 0], 64, 8)],
    M + "02_columns_of_whole_repeats": [mask([300, 400], 448, 8, column=True)],
    M + "03_one_more_token": [mask([30, 40], 64, 8), mask([31, 12], 64, 8)],
    "extra": [mask([48, 1, 0], 48, None, dtype=torch.int64)],
}

# ---------------------------------------------------------------- page_allocation

P = "c_page_allocation_"


def allocation(prefixes, lengths, last, free, size):
    return PageAllocationInputs(*(torch.tensor(part, dtype=torch.int64) for part in (prefixes, lengths, last, free)), size)


ALLOCATION = {
    P + "01_sorts_before_taking": [allocation([0, 5], [9, 6], [-1, 8], [7, 3, 5], 4)],
    P + "02_tail_without_a_new_page": [allocation([5, 0], [7, 6], [16, -1], [7, 3, 5], 4)],
    P + "03_remainder_one": [allocation([5, 3], [6, 4], [8, 4], [7, 3], 1)],
    P + "04_slots_in_float32": [allocation([5, 0], [8, 3], [128 * 140000 + 4, -1], [140001, 140007], 128)],
    "extra": [allocation([8, 16, 1], [40, 17, 2], [15, 63, 88], [9, 2, 4, 6, 1], 8)],
}

# ---------------------------------------------------------------- rotary

R = "c_rotary_"


def rotary(tokens=9, heads=4, kv_heads=2, dim=64, rotary_dim=None, style="half", dtype=BF16, table=100, sections=(),
           positions=None):
    rotary_dim = rotary_dim or dim
    angle = torch.rand(table, rotary_dim // 2, generator=gen(1)) * 6.28
    cache = torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)
    shape = (len(sections), tokens) if sections else (tokens,)
    positions = torch.randint(0, table, shape, generator=gen(2)) if positions is None else positions
    return RotaryInputs(
        randn(tokens, heads, dim, dtype=dtype), randn(tokens, kv_heads, dim, dtype=dtype, seed=3), positions, cache,
        style, sections,
    )


ROTARY = {
    R + "01_pair_in_place": [rotary(style="interleaved")],
    R + "02_heads_of_whole_tiles": [rotary(heads=6)],
    R + "03_table_row_as_wide_as_a_head": [rotary(rotary_dim=32)],
    R + "04_float32_through_half": [rotary(dtype=F32)],
    R + "05_positions_of_two_bytes": [
        rotary(table=70000, rotary_dim=16, tokens=2, positions=torch.tensor([5, 69000]))
    ],
    R + "06_two_boundaries": [rotary(sections=(8, 8, 8, 8))],
    R + "07_first_rows_of_the_table": [rotary(tokens=45, style="interleaved_to_half", dtype=F16)],
    "extra": [rotary(sections=(4, 10, 2), rotary_dim=32, kv_heads=1, heads=1)],
}

# ---------------------------------------------------------------- rope_cache

C = "c_rope_cache_"


def rope(positions, config=None, *, dtype=F32, lengths=None, other=None, offsets=None, first_row=0):
    positions = torch.tensor(positions)
    rows = positions if offsets is None else positions + torch.tensor(offsets)
    config = config or RopeConfig()
    lengths = lengths or ((sum(config.sections),) if config.sections else (int(rows.max()) + 1,))
    offsets = None if offsets is None else torch.tensor(offsets, dtype=torch.int32)
    return RopeCacheInputs(positions, offsets, config, other, lengths, first_row, dtype)


YARN = RopeConfig("yarn", factors=(8.0,), truncate=False, base=150000.0)
ROPE = {
    C + "01_positions_in_the_models_dtype": [rope([3, 301, 1001], dtype=BF16)],
    C + "02_reduced_by_one_constant": [rope([1, 3000, 77777])],
    C + "03_sections_count_on": [rope([3, 70, 150], RopeConfig("linear", max_positions=64, factors=(1.0, 2.0)), dtype=BF16)],
    C + "04_appended_rows_count_from_zero": [rope([3, 70, 150], lengths=(64, 200), dtype=F16, offsets=[0, 1, 2])],
    C + "05_ropes_known_by_base_and_dim": [
        rope([3, 70], RopeConfig(), other=RopeConfig("linear", factors=(4.0,)), dtype=BF16)
    ],
    C + "06_ends_of_the_ramp_rounded": [rope([3, 5000], YARN)],
    C + "07_amplitude_in_the_table_alone": [rope([3, 500], RopeConfig("yarn", factors=(4.0,)), dtype=BF16)],
    C + "08_pairs_side_by_side": [rope([3, 500], dtype=F16)],
    "extra 1": [rope([3, 500], RopeConfig("deepseek_yarn", factors=(40.0,), mscale=1.0, mscale_all_dim=0.7))],
    "extra 2": [rope([3, 500], RopeConfig("llama3", factors=(8.0,)))],
    "extra 3": [rope([3, 500], RopeConfig("dynamic", factors=(3.0,)))],
    "extra 4": [rope([3, 500], RopeConfig("proportional", rotary_dim=32, head_dim=128), dtype=F16)],
    "extra 5": [rope([3, 500], RopeConfig("linear", factors=(3.0,)))],
    "extra 6": [rope([3, 500], RopeConfig("yarn", factors=(4.0,), mscale=0.8, mscale_all_dim=0.5, extrapolation_factor=0.9))],
}

# ---------------------------------------------------------------- rms_norm

N = "c_rms_norm_"


def norm(tokens=5, size=256, *, dtype=BF16, kind="plain", epsilon=1e-6, gain=1.0, residual=False, seed=0):
    hidden = (torch.randn(tokens, size, generator=gen(seed)) * gain).to(dtype)
    return RmsNormInputs(
        hidden, randn(tokens, size, dtype=dtype, seed=seed + 1) if residual else None,
        randn(size, dtype=dtype, seed=seed + 2), epsilon, kind,
    )  # fmt: skip


NORM = {
    N + "01_mean_over_padded_columns": [norm(size=100)],
    N + "02_squares_in_half": [norm(gain=200.0)],
    N + "03_factor_in_the_dtype_of_rows": [norm(seed=20)],
    N + "04_weight_of_the_first_layer": [norm(kind="gemma"), norm(kind="gemma", seed=7, residual=True)],
    N + "05_epsilon_beside_the_root": [norm(gain=1e-3)],
    N + "06_tiles_of_wide_rows": [norm(tokens=2, size=10240, dtype=F16)],
    "extra": [norm(kind="gemma", size=7, dtype=F32)],
    "extra 2": [norm(residual=True, size=512)],
}

# ---------------------------------------------------------------- paged_cache

W = "c_paged_cache_"


def writes(slots, *, layout="PA_BSND", size=16, heads=2, dim=32, value_dim=None, dtype=BF16, slots_dtype=torch.int32,
           pages=6, negative_zero=False):
    def filled(*shape, seed):
        if dtype == torch.int8:
            return torch.randint(-128, 128, shape, generator=gen(seed)).to(torch.int8)
        return randn(*shape, dtype=dtype, seed=seed)

    value_dim = value_dim or dim
    slots = torch.tensor(slots, dtype=slots_dtype)
    key = filled(len(slots), heads, dim, seed=1)
    if negative_zero:
        key[0, 0, :4] = -0.0
    shapes = [CacheLayout(layout, pages, size, heads, width, dtype).shape for width in (dim, value_dim)]
    caches = [filled(*shape, seed=3 + index) for index, shape in enumerate(shapes)]
    return PagedCacheInputs(key, filled(len(slots), heads, value_dim, seed=2), *caches, slots, size, layout)


WRITES = {
    W + "01_low_words_of_slots": [writes([17, 18, 50, 3], slots_dtype=torch.int64)],
    W + "02_ends_at_the_first_skipped": [writes([17, -1, 50, 33], layout="PA_NZ")],
    W + "03_pages_by_shift": [writes([17, 60, 50, 33, -1], size=24, layout="PA_BNSD")],
    W + "04_run_by_its_ends": [writes([20, 22, 21, 23, 24, 26, 25, 27, 40], layout="PA_NZ", dtype=torch.int8)],
    W + "05_blended_by_a_mask": [writes([20, 40, 0, 0], negative_zero=True, dtype=F16, value_dim=48)],
}

# ---------------------------------------------------------------- cache_gather

G = "c_cache_gather_"


def gathers(lengths, starts=None, *, layout="PA_BSND", size=16, heads=2, dim=32, value_dim=48, dtype=BF16, spare=3):
    lengths = torch.tensor(lengths, dtype=torch.int32)
    ends = lengths if starts is None else lengths + torch.tensor(starts)
    width = max(1, -(-int(ends.max()) // size))
    pages = 1 + len(lengths) * width
    table = (torch.randperm(pages - 1, generator=gen(9)) + 1)[: len(lengths) * width].reshape(-1, width).to(torch.int32)
    rows = int(lengths.sum()) + spare

    def filled(*shape, seed):
        if dtype == torch.int8:
            return torch.randint(-128, 128, shape, generator=gen(seed)).to(torch.int8)
        return randn(*shape, dtype=dtype, seed=seed)

    shapes = [CacheLayout(layout, pages, size, heads, one, dtype).shape for one in (dim, value_dim)]
    return CacheGatherInputs(
        *(filled(*shape, seed=index) for index, shape in enumerate(shapes)), table, lengths,
        None if starts is None else torch.tensor(starts, dtype=torch.int32),
        filled(rows, heads, dim, seed=5), filled(rows, heads, value_dim, seed=6), size, layout,
    )  # fmt: skip


GATHERS = {
    G + "01_starts_of_whole_pages": [gathers([5, 20], [3, 16], layout="PA_BNSD")],
    G + "02_sums_of_eight_lengths": [gathers([5, 20, 1, 0, 3, 7, 8, 9, 10, 4], layout="PA_NZ")],
    G + "03_packed_into_zeros": [gathers([5, 20], dtype=torch.int8, layout="PA_NZ", value_dim=32)],
    G + "04_empty_requests_left_out": [gathers([5, 0, 20], [3, 1, 0])],
    "extra": [gathers([0, 0])],
}

# ---------------------------------------------------------------- cached_attention

Q = "c_cached_attention_"


def cached(requests, write, read, *, size=16, heads=4, kv_heads=2, dim=32, window=None, repeat=False, dtype=BF16, seed=0):
    width = max(-(-total // size) for _, total in requests)
    counts = [-(-total // size) for _, total in requests]
    pages = 1 + sum(counts)
    order = (torch.randperm(pages - 1, generator=gen(seed)) + 1).tolist()
    table = torch.zeros(len(requests), width, dtype=torch.int32)
    slots = []
    for row, (count, (_, total)) in enumerate(zip(counts, requests, strict=True)):
        own = [order.pop() for _ in range(count)]
        table[row, :count] = torch.tensor(own, dtype=torch.int32)
        table[row, count:] = own[0] if repeat else 0
        slots += [own[token // size] * size + token % size for token in range(total)]
    tokens, rows = len(slots), sum(new for new, _ in requests)
    pool = (pages, size, kv_heads, dim)
    return CachedAttentionInputs(
        randn(rows, heads, dim, dtype=dtype, seed=seed + 1), randn(tokens, kv_heads, dim, dtype=dtype, seed=seed + 2),
        randn(tokens, kv_heads, dim, dtype=dtype, seed=seed + 3), randn(*pool, dtype=dtype, seed=seed + 4) * 50,
        randn(*pool, dtype=dtype, seed=seed + 5) * 50, torch.tensor(slots, dtype=torch.int32), table,
        tuple(new for new, _ in requests), tuple(total for _, total in requests), window, 1 / math.sqrt(dim), write, read,
    )  # fmt: skip


def same_shape():
    first = cached([(1, 40), (2, 20)], "PA_BSND", "PA_NZ")
    return [first, replace(first, value=randn(*first.value.shape, seed=77), key=randn(*first.key.shape, seed=78))]


CACHED = {
    Q + "01_pages_of_the_table_converted": [cached([(1, 40), (1, 10)], "PA_BSND", "PA_NZ", repeat=True)],
    Q + "02_last_tokens_not_written_yet": [cached([(1, 40), (3, 21)], "PA_BSND", "PA_BSND", window=24)],
    Q + "03_pages_of_new_tokens_converted": [cached([(1, 40), (2, 20)], "PA_NZ", "PA_BSND")],
    Q + "04_converted_once": same_shape(),
    "extra": [cached([(1, 40), (2, 20)], "PA_NZ", "PA_NZ", dtype=F16)],
}

# ---------------------------------------------------------------- kv_rmsnorm_rope_cache

K = "c_kv_rmsnorm_rope_cache_"


def kv(slots, *, latent=512, rope_dim=64, dtype=BF16, layout="PA_BSND", int8=False, size=16, pages=4, dummy=True,
       scale=20.0):
    slots = torch.tensor(slots)
    angle = torch.rand(50, rope_dim // 2, generator=gen(1)) * 6.28
    table = torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)
    cache = torch.int8 if int8 else dtype
    shapes = [CacheLayout(layout, pages, size, 1, dim, cache).shape for dim in (latent, rope_dim)]
    caches = [(torch.randn(shape, generator=gen(4)) * 10).to(cache) for shape in shapes]
    scales = [None, None]
    if int8:
        scales = [torch.rand(dim, generator=gen(6)) * scale + 1 for dim in (latent, rope_dim)]
    return KvRmsnormRopeCacheInputs(
        randn(*slots.shape, latent + rope_dim, dtype=dtype), randn(latent, dtype=dtype, seed=2), 1e-6,
        torch.randint(0, 50, slots.shape, generator=gen(3)), table, *caches, slots, size, layout, *scales, dummy,
    )  # fmt: skip


KV = {
    K + "01_neighbours_in_the_cache": [kv([[17], [40]], int8=True, scale=200.0, layout="PA_NZ")],
    K + "02_slots_run_on": [kv([[15, 40, 41], [20, 21, -1]])],
    K + "03_slot_zero_is_padding": [kv([[0, 1], [2, 40]], dummy=False, dtype=F16)],
    K + "04_mean_over_512": [kv([[17], [40]], latent=256, rope_dim=32, layout="PA_NZ")],
    K + "05_scales_before_the_halves": [kv([[17], [0]], int8=True)],
}

# ---------------------------------------------------------------- mla_preprocess

L = "c_mla_preprocess_"


def mla(slots, *, size=128, rank=96, heads=4, nope=32, rope_dim=16, latent=64, layout="PA_BSND", page=16, pages=6):
    tokens = len(slots)
    angle = torch.rand(80, rope_dim // 2, generator=gen(1)) * 6.28
    table = torch.cat([angle.cos(), angle.sin()], dim=1).to(BF16)
    caches = [randn(*CacheLayout(layout, pages, page, 1, dim, BF16).shape, seed=9) for dim in (latent, rope_dim)]
    small = 1 / math.sqrt(size)
    return MlaPreprocessInputs(
        randn(tokens, size), randn(size, rank, seed=1) * small, randn(rank, seed=2),
        randn(rank, heads * (nope + rope_dim), seed=3) * small, randn(heads, nope, latent, seed=4) * small,
        randn(size, latent + rope_dim, seed=5) * small, randn(latent, seed=6), 1e-6,
        torch.randint(0, 80, (tokens,), generator=gen(7)), table, *caches, torch.tensor(slots), page, layout,
    )  # fmt: skip


MLA = {
    L + "01_positions_of_the_first_tile": [mla(list(range(16, 52)))],
    L + "02_ropes_behind_all_heads": [mla([17, 40, -1], layout="PA_NZ")],
    L + "03_rope_key_of_skipped_tokens": [mla([17, -1, 40, 0])],
}

CASES = {
    "sliding_attention": SLIDING, "swa_mask": MASK, "page_allocation": ALLOCATION, "rotary": ROTARY, "rope_cache": ROPE,
    "rms_norm": NORM, "paged_cache": WRITES, "cache_gather": GATHERS, "cached_attention": CACHED,
    "kv_rmsnorm_rope_cache": KV, "mla_preprocess": MLA,
}  # fmt: skip
