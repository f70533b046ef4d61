"""Hand-built inputs for each wrong kernel: proves that it is wrong there, and that its twin (no mistake) is not.

    python demo.py [WORD ...]

prints a line for each kernel whose name has one of the words; exit code 1 if any is not proved. WRONG is looked up when
a kernel runs, so that both are run in one process.
"""

import importlib.util
import math
import os
import sys
from pathlib import Path

os.environ.pop("TWIN", None)

import torch

import npudiff
from npudiff.device.targets import sim
from npudiff.reference import cache_gather as r_gather
from npudiff.reference import cached_attention as r_cached
from npudiff.reference import decoder_layer as r_layer
from npudiff.reference import hybrid_pools as r_pools
from npudiff.reference import kv_rmsnorm_rope_cache as r_kv
from npudiff.reference import mla_preprocess as r_mla
from npudiff.reference import page_allocation as r_pages
from npudiff.reference import paged_cache as r_paged
from npudiff.reference import rms_norm as r_norm
from npudiff.reference import rope_cache as r_rope
from npudiff.reference import rotary as r_rotary
from npudiff.reference import sliding_attention as r_attention
from npudiff.reference import swa_mask as r_mask
from npudiff.reference.cache_layout import CacheLayout
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.moe_experts import Experts
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.rope_scaling import RopeConfig
from npudiff.reference.views import sliced

HERE = Path(__file__).parent
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
TARGET = sim("8.5")
DEMOS = {}


def demo(name):
    def register(function):
        DEMOS[name] = function
        return function
    return register


def fresh(seed=0):
    torch.manual_seed(seed)


def normal(*shape, dtype=BF16, size=1.0):
    return (torch.randn(*shape) * size).to(dtype)


def moved_values(*shape, dtype=BF16):
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, dtype=dtype)
    return normal(*shape, dtype=dtype)


# ---------------------------------------------------------------- sliding_attention
def pool(kv_lengths, page=4, kv_heads=1, dim=16, spare=1, dtype=BF16):
    needs = [max(1, -(-length // page)) for length in kv_lengths]
    count, width = sum(needs) + spare + 1, max(needs)
    order = (torch.randperm(count - 1) + 1).tolist()
    table, taken = torch.zeros(len(kv_lengths), width, dtype=torch.int32), 0
    for row, need in zip(table, needs):
        row[:need] = torch.tensor(order[taken : taken + need], dtype=torch.int32)
        taken += need
    return PagedKV(normal(count, page, kv_heads, dim, dtype=dtype), normal(count, page, kv_heads, dim, dtype=dtype), table)


def attention(new, total, heads=1, kv_heads=1, dim=16, page=4, window=None, sinks=None, hybrid=False, scale=0.25, padding=0):
    fresh()
    full = pool(total, page, kv_heads, dim)
    sliding = pool(total, page, kv_heads, dim) if hybrid else None
    query = normal(sum(new) + padding, heads, dim)
    return r_attention.SlidingAttentionInputs(query, full, sliding, tuple(new), tuple(total), window, scale, sinks)


def changed(inputs, **values):
    from dataclasses import replace

    return replace(inputs, **values)


A = "b_sliding_attention_"
demo(A + "01_top_left")(lambda: attention([3], [6]))
demo(A + "02_gqa_modulo")(lambda: attention([1], [5], 4, 2))
demo(A + "03_gqa_shift")(lambda: attention([1], [5], 6, 2))
demo(A + "04_last_page_full")(lambda: attention([1], [8]))
demo(A + "05_window_first_tile")(lambda: attention([64], [300], page=16, window=30))
demo(A + "06_uniform_by_ends")(lambda: attention([1, 1, 1], [5, 9, 5]))
demo(A + "07_decodes_first")(lambda: attention([3, 1], [3, 5]))
demo(A + "08_lse_base_2")(lambda: attention([1], [3]))
demo(A + "10_sink_of_kv_head")(lambda: attention([1], [3], 4, 2, sinks=torch.tensor([0.0, 2.0, 4.0, 6.0], dtype=BF16)))
demo(A + "11_hybrid_pool_always")(lambda: attention([1], [3], hybrid=True))
demo(A + "12_mask_of_2048")(lambda: attention([2100], [2100], dim=8, page=128))
demo(A + "15_padding_from_last_row")(lambda: attention([2], [3], padding=2))
demo(A + "16_empty_requests_compacted")(lambda: attention([0, 2], [4, 6]))
demo(A + "17_stale_table")(lambda: [attention([1], [8]), changed(attention([1], [8]), full=PagedKV(pool_key(), pool_key(), torch.tensor([[2, 1]], dtype=torch.int32)))])
demo(A + "18_page_by_shift")(lambda: attention([1], [10], page=6))
demo(A + "20_row_without_keys")(lambda: attention([3], [2]))
demo(A + "21_scale_of_head_dim")(lambda: attention([1], [5], scale=0.5))
demo(A + "22_row_tiles_floor")(lambda: attention([70], [70], page=16))
demo(A + "23_window_from_total_in_chunks")(lambda: attention([4], [8], window=3))
demo(A + "24_page_pointer_in_16_bits")(lambda: attention([1], [65600], dim=8, page=128, window=16))


def pool_key():
    return normal(4, 4, 1, 16)


@demo(A + "09_merge_base_2")
def _():
    inputs = attention([1], [600], dim=8, page=8)
    inputs.full.value[inputs.full.block_table[0, 64:].long()] += 3
    return inputs


@demo(A + "13_values_in_16_bits")
def _():
    inputs = attention([1], [20000], dim=8, page=128)
    inputs.query.zero_()
    inputs.full.value.copy_(1 + 0.1 * inputs.full.value.float())
    return inputs


@demo(A + "14_maximum_from_0")
def _():
    inputs = attention([1], [4], scale=1.0)
    inputs.query.fill_(4)
    inputs.full.key.copy_(-4 + 0.1 * inputs.full.key.float())
    return inputs


@demo(A + "19_query_stride")
def _():
    inputs = attention([3], [3])
    return changed(inputs, query=sliced(inputs.query, 32))


# ---------------------------------------------------------------- swa_mask
def mask(lengths, capacity, window=None, dtype=torch.int32):
    return r_mask.SwaMaskInputs(torch.tensor(lengths, dtype=dtype), capacity, window)


M = "b_swa_mask_"
demo(M + "01_half_positions")(lambda: mask([3001], 3008, 5))
demo(M + "02_columns_tail")(lambda: mask([190], 200))
demo(M + "03_replay_opens_only")(lambda: [mask([6], 8), mask([3], 8)])
demo(M + "04_unsigned_start")(lambda: mask([3], 8, 8))
demo(M + "05_dummy_sees_a_key")(lambda: mask([0], 4))
demo(M + "06_window_covers_all")(lambda: mask([3, 5], 10, 8))
demo(M + "07_cores_take_equal_rows")(lambda: mask([3] * 9, 4))
demo(M + "08_int64_read_as_int32")(lambda: mask([3, 5], 8, None, torch.int64))


# ---------------------------------------------------------------- paged_cache
def paged(slots, layout="PA_BSND", heads=1, dim=16, value_dim=None, page=4, pages=4, dtype=BF16, slots_dtype=torch.int32):
    fresh()
    value_dim = value_dim or dim
    caches = [moved_values(*CacheLayout(layout, pages, page, heads, d, dtype).shape, dtype=dtype) for d in (dim, value_dim)]
    rows = [moved_values(len(slots), heads, d, dtype=dtype) for d in (dim, value_dim)]
    return r_paged.PagedCacheInputs(*rows, *caches, torch.tensor(slots, dtype=slots_dtype), page, layout)


P = "b_paged_cache_"
demo(P + "01_strips_of_16")(lambda: paged([5, 6], "PA_NZ", 1, 64, dtype=torch.int8))
demo(P + "02_contiguous_by_ends")(lambda: paged([4, 6, 5, 7]))
demo(P + "03_negative_slot_wraps")(lambda: paged([4, -1]))
demo(P + "04_whole_chunks_of_a_head")(lambda: paged([4], dim=96))
demo(P + "05_heads_outside")(lambda: paged([5], "PA_BNSD", 2))
demo(P + "06_rows_one_after_the_other")(lambda: changed(paged([5, 7]), key=sliced(paged([5, 7]).key, 16)))
demo(P + "07_slot_0_is_padding")(lambda: paged([0, 5]))
demo(P + "08_cores_take_equal_tokens")(lambda: paged(list(range(1, 42)), pages=16))


@demo(P + "09_division_by_magic_number")
def _():
    slot = next(slot for slot in range(10**6) if slot * -(-65536 // 48) >> 16 != slot // 48)
    return paged([slot], page=48, pages=slot // 48 + 2)


demo(P + "10_opened_page_cleared")(lambda: paged([8]))


# ---------------------------------------------------------------- cache_gather
def gathered(lengths, table, starts=None, layout="PA_BSND", heads=1, dim=16, page=4, pages=6, spare=0, dtype=BF16):
    fresh()
    caches = [moved_values(*CacheLayout(layout, pages, page, heads, dim, dtype).shape, dtype=dtype) for _ in range(2)]
    rows = [moved_values(sum(lengths) + spare, heads, dim, dtype=dtype) for _ in range(2)]
    starts = None if starts is None else torch.tensor(starts, dtype=torch.int32)
    table = torch.tensor(table, dtype=torch.int32)
    return r_gather.CacheGatherInputs(*caches, table, torch.tensor(lengths, dtype=torch.int32), starts, *rows, page, layout)


G = "b_cache_gather_"
demo(G + "01_start_of_its_page")(lambda: gathered([3], [[2, 3]], [2]))
demo(G + "02_empty_requests_compacted")(lambda: gathered([0, 3], [[1], [2]]))
demo(G + "03_full_last_page")(lambda: gathered([8], [[2, 3]]))
demo(G + "04_lengths_are_ends")(lambda: gathered([3], [[2, 3]], [4]))
demo(G + "05_strips_of_16")(lambda: gathered([3], [[2]], layout="PA_NZ", dim=64, dtype=torch.int8))
demo(G + "06_consecutive_by_ends")(lambda: gathered([16], [[1, 3, 2, 4]]))
demo(G + "07_rest_cleared")(lambda: gathered([3], [[2]], spare=2))
demo(G + "08_table_as_wide_as_needed")(lambda: gathered([3, 3], [[1, 5], [2, 4]]))


# ---------------------------------------------------------------- rope_cache
def rope(positions, lengths, dtype=F32, first_row=0, offsets=None, other=None, **config):
    offsets = None if offsets is None else torch.tensor(offsets)
    config = {"rotary_dim": 64, "head_dim": 64, **config}
    return r_rope.RopeCacheInputs(torch.tensor(positions), offsets, RopeConfig(**config), other, lengths, first_row, dtype)


R = "b_rope_cache_"
YARN = {"kind": "yarn", "factors": (4.0,), "max_positions": 4096}
DEEPSEEK = {"kind": "deepseek_yarn", "factors": (40.0,), "max_positions": 4096}
demo(R + "01_llama3_mixed_the_wrong_way")(lambda: rope([100], (128,), kind="llama3", factors=(8.0,), max_positions=8192, base=500000.0))
demo(R + "02_attention_factor_unread")(lambda: rope([3], (8,), **YARN, attention_factor=1.5))
demo(R + "03_mscale_once")(lambda: rope([3], (8,), **DEEPSEEK, mscale=0.707, mscale_all_dim=0.707))
demo(R + "04_sections_count_on")(lambda: rope([20], (80,), kind="linear", factors=(1.0, 4.0), max_positions=16))
demo(R + "05_growth_counts_anew")(lambda: rope([20], (16, 32)))
demo(R + "06_remembered_by_base_and_dim")(lambda: rope([100], (128,), **YARN, other=RopeConfig("yarn", 64, 64, factors=(8.0,), max_positions=4096)))
demo(R + "07_dynamic_by_length")(lambda: rope([50], (64,), kind="dynamic", factors=(2.0,), max_positions=64))
demo(R + "08_proportional_of_rotary_dim")(lambda: rope([50], (64,), kind="proportional", rotary_dim=16))
demo(R + "09_one_offset_for_all")(lambda: rope([3, 3], (8,), offsets=[1, 2]))
demo(R + "10_half_positions")(lambda: rope([3001], (4096,)))
demo(R + "11_two_pi_of_float32")(lambda: rope([1000000], (1000008,), first_row=999990))
demo(R + "12_corners_always_truncated")(lambda: rope([1000], (1024,), **YARN, truncate=False, base=150000.0))
demo(R + "13_mscale_of_zero_is_none")(lambda: rope([3], (8,), **DEEPSEEK, mscale=1.0, mscale_all_dim=0.0))


# ---------------------------------------------------------------- rotary
def rotary(positions, style="half", dim=8, head=8, heads=1, kv_heads=1, dtype=BF16, sections=(), rows=None):
    fresh()
    positions = torch.tensor(positions)
    tokens = positions.shape[-1]
    rows = rows or int(positions.max()) + 1
    angle = torch.arange(rows).double()[:, None] * 10000.0 ** (-torch.arange(dim // 2).double() * 2 / dim)
    table = torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)
    states = [normal(tokens, count, head, dtype=dtype) for count in (heads, kv_heads)]
    return r_rotary.RotaryInputs(*states, positions, table, style, sections)


O = "b_rotary_"
demo(O + "01_pairs_half_a_head_apart")(lambda: rotary([3], dim=4))
demo(O + "02_width_of_a_power_of_two")(lambda: rotary([3], "interleaved", dim=6, head=12))
demo(O + "03_first_position_of_each_token")(lambda: rotary([[3], [5], [7]], sections=(2, 1, 1)))
demo(O + "04_tail_of_a_token_block")(lambda: rotary(list(range(17))))
demo(O + "05_keys_one_after_the_other")(lambda: changed(rotary([1, 2, 3]), key=sliced(rotary([1, 2, 3]).key, 16)))
demo(O + "06_keys_stay_interleaved")(lambda: rotary([3], "interleaved_to_half"))
demo(O + "07_consecutive_by_ends")(lambda: rotary([5, 9, 7]))
demo(O + "08_positions_in_16_bits")(lambda: rotary([65539], dim=4))
demo(O + "09_float32_in_16_bits")(lambda: rotary([3], dtype=F32))
demo(O + "10_second_from_written_first")(lambda: rotary([3], dtype=F32))
demo(O + "11_rest_of_keys_not_copied")(lambda: rotary([3], dim=4))
demo(O + "12_sines_at_half_a_head")(lambda: rotary([[3], [5], [7]], sections=(1, 2, 1)))
demo(O + "13_more_than_64_heads")(lambda: rotary([3], heads=65))


# ---------------------------------------------------------------- rms_norm
def norm(rows=2, columns=64, dtype=BF16, kind="plain", rounding="stages", residual=False, size=1.0, epsilon=1e-6):
    fresh()
    hidden = normal(rows, columns, dtype=dtype, size=size)
    added = normal(rows, columns, dtype=dtype, size=size) if residual else None
    weight = normal(columns, dtype=dtype)
    return r_norm.RmsNormInputs(hidden, added, weight, epsilon, kind, rounding)


N = "b_rms_norm_"
demo(N + "01_epsilon_beside_the_root")(lambda: norm(size=0.01, epsilon=1e-5))
demo(N + "02_mean_over_the_tile")(lambda: norm(columns=2560))
demo(N + "03_gemma_weight_rounded")(lambda: norm(kind="gemma", rounding="once", columns=256))
demo(N + "04_squares_in_half")(lambda: norm(dtype=F16, size=300.0))
demo(N + "05_one_stride_for_both")(lambda: changed(norm(residual=True), hidden=sliced(norm(residual=True).hidden, 32)))
demo(N + "06_tail_of_columns")(lambda: norm(columns=1536))
demo(N + "07_factor_rounded")(lambda: norm(rows=16, rounding="once", columns=256))
demo(N + "08_rows_of_65535_programs")(lambda: norm(rows=65536, columns=8))
demo(N + "09_gemma_fused_without_1")(lambda: norm(kind="gemma", residual=True))
demo(N + "10_sum_cut_off")(lambda: norm(residual=True))
demo(N + "11_epsilon_in_half")(lambda: norm(dtype=F16, size=1e-4, epsilon=1e-6))
demo(N + "12_float32_through_bfloat16")(lambda: norm(dtype=F32))
demo(N + "13_residual_not_updated_in_small_batches")(lambda: norm(residual=True))


# ---------------------------------------------------------------- kv_rmsnorm_rope_cache
def kv(slots, layout="PA_BSND", latent=64, rope_dim=32, quantised=False, page=4, pages=8, scale=None, positions=None):
    fresh()
    slots = torch.tensor(slots)
    batch, length = slots.shape
    dtype = torch.int8 if quantised else BF16
    caches = [moved_values(*CacheLayout(layout, pages, page, 1, dim, dtype).shape, dtype=dtype) for dim in (latent, rope_dim)]
    positions = torch.arange(batch * length).view(batch, length) if positions is None else torch.tensor(positions)
    table = rotary([int(positions.max())], dim=rope_dim, head=rope_dim).cos_sin_cache
    fresh(1)
    scales = (None, None)
    if quantised:
        scales = (torch.rand(latent) * 30 + 10, torch.rand(rope_dim) * 30 + 10) if scale is None else (torch.full((latent,), scale), torch.full((rope_dim,), scale))
    return r_kv.KvRmsnormRopeCacheInputs(normal(batch, length, latent + rope_dim), normal(latent), 1e-6, positions, table, *caches, slots, page, layout, *scales)


K = "b_kv_rmsnorm_rope_cache_"
demo(K + "01_int8_cut_off")(lambda: kv([[5]], quantised=True))
demo(K + "02_int8_wraps")(lambda: kv([[5]], quantised=True, scale=100.0))
demo(K + "03_scale_of_first_channel")(lambda: kv([[5]], quantised=True))
demo(K + "04_pages_from_their_first_slot")(lambda: kv([[5, 9]]))
demo(K + "05_strips_of_16")(lambda: kv([[5]], "PA_NZ", quantised=True))
demo(K + "06_positions_token_by_token")(lambda: kv([[5, 6], [9, 10]]))
demo(K + "07_negative_slot_is_0")(lambda: kv([[5, -1]]))
demo(K + "08_returned_as_stored")(lambda: kv([[5]], quantised=True))
demo(K + "09_one_scale_for_both")(lambda: kv([[5]], quantised=True))
demo(K + "10_rope_cache_stays_nd")(lambda: kv([[5]], "PA_NZ"))
demo(K + "11_mean_of_512")(lambda: kv([[5]]))


# ---------------------------------------------------------------- mla_preprocess
def mla(slots, layout="PA_BSND", heads=2, hidden=32, rank=16, nope=8, rope_dim=16, latent=32, page=4, pages=16, size=1.0, positions=None):
    fresh()
    tokens = len(slots)
    positions = torch.arange(tokens) if positions is None else torch.tensor(positions)
    table = rotary([int(positions.max())], dim=rope_dim, head=rope_dim).cos_sin_cache
    fresh(1)
    caches = [normal(*CacheLayout(layout, pages, page, 1, dim, BF16).shape) for dim in (latent, rope_dim)]
    return r_mla.MlaPreprocessInputs(
        normal(tokens, hidden, size=size), normal(hidden, rank, size=0.2), normal(rank),
        normal(rank, heads * (nope + rope_dim), size=0.3), normal(heads, nope, latent, size=0.3),
        normal(hidden, latent + rope_dim, size=0.2), normal(latent), 1e-6, positions, table, *caches,
        torch.tensor(slots), page, layout,
    )  # fmt: skip


L = "b_mla_preprocess_"
demo(L + "01_rope_part_first")(lambda: mla([5]))
demo(L + "02_default_epsilon")(lambda: mla([5], size=0.002))
demo(L + "03_heads_in_groups_of_4")(lambda: mla([5], heads=6))
demo(L + "04_kept_tokens_first")(lambda: mla([-1, 5]))
demo(L + "05_rope_cache_stays_nd")(lambda: mla([5], "PA_NZ", rope_dim=32))
demo(L + "06_keys_at_consecutive_positions")(lambda: mla([5, 9], positions=[3, 7]))
demo(L + "07_last_tile_of_tokens")(lambda: mla(list(range(4, 21))))
demo(L + "08_latent_norm_over_both")(lambda: mla([5]))


# ---------------------------------------------------------------- cached_attention
def cached(new, total, write, read, heads=1, kv_heads=1, dim=16, page=4, window=None):
    fresh()
    filled = pool(total, page, kv_heads, dim)
    slots = []
    for row, length in zip(filled.block_table.long(), total):
        token = torch.arange(length)
        slots.append(row[token // page] * page + token % page)
    states = [normal(sum(total), kv_heads, dim) for _ in range(2)]
    return r_cached.CachedAttentionInputs(
        normal(sum(new), heads, dim), *states, filled.key, filled.value, torch.cat(slots).to(torch.int32),
        filled.block_table, tuple(new), tuple(total), window, 0.25, write, read,
    )  # fmt: skip


ND, NZ = "PA_BSND", "PA_NZ"
C = "b_cached_attention_"
demo(C + "01_first_request_converted")(lambda: cached([1, 1], [5, 5], ND, NZ, dim=32))
demo(C + "02_heads_inside_strips")(lambda: cached([1], [5], NZ, NZ, 2, 2, 32))
demo(C + "03_partial_pages_not_converted")(lambda: cached([1], [6], ND, NZ, dim=32))
demo(C + "04_top_left")(lambda: cached([2], [6], ND, ND))
demo(C + "05_written_as_read_if_one_head")(lambda: cached([1], [6], NZ, ND, dim=32))


# ---------------------------------------------------------------- page_allocation
def pages(prefix, lengths, last, free, page=4):
    return r_pages.PageAllocationInputs(*(torch.tensor(part) for part in (prefix, lengths, last, free)), page)


S = "b_page_allocation_"
demo(S + "01_full_page_has_room")(lambda: pages([4], [6], [7], [3, 2]))
demo(S + "02_pages_of_new_tokens")(lambda: pages([2], [4], [5], [3]))
demo(S + "03_sum_of_128_requests")(lambda: pages([0] * 129, [1] * 129, [-1] * 129, list(range(1, 131))))
demo(S + "04_pages_in_a_row")(lambda: pages([0], [8], [-1], [3, 7]))
demo(S + "05_decode_of_page_size_1")(lambda: pages([2], [3], [5], [9], 1))
demo(S + "06_lowest_pages_first")(lambda: pages([0], [4], [-1], [3, 2]))
demo(S + "07_long_requests_first")(lambda: pages([0, 0], [3, 8], [-1, -1], [1, 2, 3]))


# ---------------------------------------------------------------- decoder_layer
def layer(steps, latent=False, window=None, rotary_dim=16, heads=4, kv_heads=2, page=4, hidden=32, router=1.0, bias=0.1):
    fresh()
    steps = tuple(r_layer.LayerStep(*step) for step in steps)
    requests = max(max(step.requests) for step in steps) + 1
    longest = max(max(step.kv_lengths) for step in steps)
    width = -(-longest // page)
    tables = [(torch.randperm(requests * width) + 1).view(requests, width).to(torch.int32) for _ in range(2)]
    own = tables[0] if window is None else tables[1]
    positions, slots = [], [[], []]
    for step in steps:
        for request, new, total in zip(step.requests, step.query_lengths, step.kv_lengths):
            token = torch.arange(total - new, total)
            positions.append(token)
            for where, table in zip(slots, tables):
                where.append(table[request].long()[token // page] * page + token % page)
    positions, slots, sliding = torch.cat(positions), torch.cat(slots[0]), torch.cat(slots[1])
    tokens, experts, wide = len(positions), 4, 16
    if latent:
        own_heads, nope, rope_dim, dim, rank, value = 2, 16, 16, 32, 16, 16
        weights = r_layer.LatentWeights(
            normal(hidden, rank, size=0.2), normal(rank), normal(rank, own_heads * (nope + rope_dim), size=0.4),
            normal(hidden, dim + rope_dim, size=0.3), normal(dim), normal(own_heads, nope, dim, size=0.3),
            normal(own_heads, dim, value, size=0.3), normal(own_heads * value, hidden, size=0.3),
        )  # fmt: skip
        caches = (1, dim), (1, rope_dim)
        table_dim = rope_dim
    else:
        dim = 16
        weights = r_layer.GroupedQueryWeights(
            normal(hidden, (heads + 2 * kv_heads) * dim, size=0.3), normal(dim), normal(dim),
            normal(hidden, heads, size=0.5), normal(heads * dim, hidden, size=0.3),
        )  # fmt: skip
        caches = (kv_heads, dim), (kv_heads, dim)
        table_dim = rotary_dim
    table = rotary([longest], dim=table_dim, head=table_dim).cos_sin_cache
    fresh(2)
    mixture = r_layer.Mixture(
        (torch.randn(hidden, experts) * router), torch.randn(experts) * bias,
        Experts(ExpertWeights(normal(experts, hidden, 2 * wide, size=0.3)), ExpertWeights(normal(experts, wide, hidden, size=0.3))),
        Experts(ExpertWeights(normal(1, hidden, 2 * wide, size=0.3)), ExpertWeights(normal(1, wide, hidden, size=0.3))),
        2, 1, 1, 1.5,
    )  # fmt: skip
    del own
    return r_layer.DecoderLayerInputs(
        normal(tokens, hidden), normal(tokens, hidden), steps, positions, table, weights, mixture, normal(hidden), normal(hidden),
        1e-6, 0.25, window, *(normal(requests * width + 1, page, *shape) for shape in caches), slots, sliding, *tables,
    )  # fmt: skip


D = "b_decoder_layer_"
demo(D + "01_gate_of_kv_head")(lambda: layer([((0,), (2,), (2,))]))
demo(D + "02_table_by_place_in_step")(lambda: layer([((0, 1), (2, 3), (2, 3)), ((1,), (1,), (4,))]))
demo(D + "03_window_in_chunks")(lambda: layer([((0,), (3,), (3,)), ((0,), (3,), (6,))], window=3))
demo(D + "04_no_shared_expert_for_one_token")(lambda: layer([((0,), (1,), (1,))]))
demo(D + "05_chunks_from_first_key")(lambda: layer([((0, 1), (3, 3), (3, 3)), ((0, 1), (2, 2), (5, 5))], latent=True))
demo(D + "06_table_of_an_earlier_step")(lambda: layer([((0,), (2,), (2,)), ((1,), (3,), (3,))]))
demo(D + "07_pairs_half_a_head_apart")(lambda: layer([((0,), (3,), (3,))], rotary_dim=8))
demo(D + "08_bias_in_weights")(lambda: layer([((0,), (4,), (4,))], router=0.5, bias=1.0))
demo(D + "09_new_page_not_in_table")(lambda: layer([((0,), (4,), (4,)), ((0,), (1,), (5,))]))


# ---------------------------------------------------------------- hybrid_pools
def history(steps, full=8, sliding=8, page=4, window=4, sharing=True, requests=4):
    fresh()
    storage = [r_pools.PoolStorage(normal(1 + count, page, 1, 16), normal(1 + count, page, 1, 16)) for count in (full, sliding)]
    return r_pools.HybridPoolsInputs(*storage, 1, window, 0.25, requests, sharing), steps


def step_tokens(count):
    from npudiff.reference.hybrid_pools import Tokens

    return Tokens(normal(count, 1, 16), r_pools.TokenStates(*(normal(count, 1, 16) for _ in range(4))))


def take(pools, step, new):
    match step:
        case r_pools.Allocate(request, _):
            return pools.allocate(request, new.states)
        case r_pools.Extend(request, _):
            return pools.extend(request, new.states)
        case r_pools.Decode(requests):
            return pools.decode(requests, new.states)
        case r_pools.Share(source, request, count, _):
            return pools.share(source, request, count, new.states)
        case r_pools.Fork(source, request):
            return pools.fork(source, request)
        case r_pools.Evict(requests):
            pools.evict(requests)
        case r_pools.Free(request):
            pools.free(request)
    return True


def worst_of_history(item, inputs, steps):
    """Worst error over bound of a history; infinity where pools answer otherwise, or lie otherwise."""
    fresh(3)
    reference, pools, worst = r_pools.HybridPoolsReference(inputs), item.function(inputs, TARGET), 0.0
    for step in steps:
        new = step_tokens(sum(r_pools.new_tokens(step).values()))
        fits = reference.take(step, new)
        if take(pools, step, new) != fits or reference.violations(pools.snapshot()):
            return math.inf
        rows = reference.rows
        if rows:
            query = torch.cat([reference.memory.live[request].query[-count:] for request, count in rows.items()])
            result = pools.attend(tuple(rows), tuple(rows.values()), query)
            worst = max(worst, ratio(reference.attention(), result))
    return worst


Al, Ex, De, Ev, Fr, Sh, Fo = r_pools.Allocate, r_pools.Extend, r_pools.Decode, r_pools.Evict, r_pools.Free, r_pools.Share, r_pools.Fork
H = "b_hybrid_pools_"
demo(H + "01_unmapped_page_freed")(lambda: history([Al(0, 12), Ev((0,)), Fr(0)], sharing=False))
demo(H + "02_whole_pages_wanted")(lambda: history([Al(0, 6), De((0,))], full=2, sliding=2))
demo(H + "03_share_holds_the_last_page")(lambda: history([Al(0, 8), Sh(0, 1, 2, 1), Fr(0), Al(2, 9)]))
demo(H + "04_decode_in_order_of_rows")(lambda: history([Al(0, 5), Al(1, 6), De((1, 0))]))
demo(H + "05_first_slot_unmapped")(lambda: history([Al(0, 12), Ev((0,))], sharing=False))
demo(H + "06_fork_copies_full_pool")(lambda: history([Al(0, 6), Fo(0, 1)]))
demo(H + "07_decode_without_asking")(lambda: history([Al(0, 4), Al(1, 4), De((0, 1))], full=3, sliding=3))
demo(H + "08_eviction_of_the_first_request")(lambda: history([Al(0, 4), Al(1, 12), Ev((0, 1))], sharing=False))
demo(H + "09_full_pool_asked_only")(lambda: history([Al(0, 12)], full=8, sliding=2))


# ---------------------------------------------------------------- the proof
def ratio(expected, outputs):
    """Largest error over bound, or of a row's gain."""
    worst = 0.0
    for name, actual in outputs.items():
        want = expected[name]
        value, bound = want.value, want.bound
        specified = ~bound.isinf()
        equal = (actual.double() == value.double()) | ~specified
        error = (actual.double() - value.double()).abs()
        over = torch.where(bound > 0, error / bound.clamp(min=1e-300), torch.inf)
        over = torch.where(equal, 0.0, torch.where(error.isnan(), torch.inf, over))
        worst = max(worst, float(over.max()) if over.numel() else 0.0)
        if want.gain is not None and actual.numel():
            size = value.double().square().sum(dim=-1)
            gain = ((actual.double() - value.double()) * value.double()).sum(dim=-1).abs() / size
            gains = torch.where(want.gain.isfinite() & (size > 0), gain / want.gain, 0.0)
            worst = max(worst, float(gains.nan_to_num(math.inf).max()))
    return worst


def differ(expected, wrong, twin):
    """Largest difference of wrong and twin over the reference's bound."""
    worst = 0.0
    for name in wrong:
        bound = expected[name].bound
        gap = (wrong[name].double() - twin[name].double()).abs()
        same = (wrong[name].double() == twin[name].double()) | bound.isinf()
        over = torch.where(bound > 0, gap / bound.clamp(min=1e-300), torch.inf)
        over = torch.where(same, 0.0, torch.where(gap.isnan(), torch.inf, over))
        worst = max(worst, float(over.max()) if over.numel() else 0.0)
    return worst


REFERENCES = {
    "sliding_attention": r_attention.sliding_attention, "swa_mask": r_mask.swa_mask, "paged_cache": r_paged.paged_cache,
    "cache_gather": r_gather.cache_gather, "rope_cache": r_rope.rope_cache, "rotary": r_rotary.rotary,
    "rms_norm": r_norm.rms_norm, "kv_rmsnorm_rope_cache": r_kv.kv_rmsnorm_rope_cache, "mla_preprocess": r_mla.mla_preprocess,
    "cached_attention": r_cached.cached_attention, "page_allocation": r_pages.page_allocation, "decoder_layer": r_layer.decoder_layer,
}  # fmt: skip


def load(component):
    spec = importlib.util.spec_from_file_location("blind_" + component, HERE / f"{component}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    items = [value for value in vars(module).values() if type(value).__name__ == "Implementation"]
    return module, {item.name: item for item in items}


def run(item, calls):
    """Outputs of the last of some calls of one live implementation."""
    live, outputs = item.fresh(), None
    for inputs in calls:
        outputs = live.function(inputs.to("cpu"), TARGET)
    return {name: part.clone() for name, part in outputs.items()}


def prove(module, item, component, make):
    given = make()
    if component == "hybrid_pools":
        module.WRONG = True
        wrong = worst_of_history(item, *given)
        module.WRONG = False
        twin = worst_of_history(item, *make())
        return wrong, twin, wrong
    calls = given if isinstance(given, list) else [given]
    expected = REFERENCES[component](calls[-1])
    module.WRONG = True
    wrong = run(item, calls)
    module.WRONG = False
    twin = run(item, calls)
    return ratio(expected, wrong), ratio(expected, twin), differ(expected, wrong, twin)


def main():
    words, failed = sys.argv[1:], 0
    for component in [*REFERENCES, "hybrid_pools"]:
        module, items = load(component)
        for name, item in items.items():
            if words and not any(word in name for word in words):
                continue
            try:
                wrong, twin, gap = prove(module, item, component, DEMOS[name])
                proved = wrong > 1 and twin <= 1 and gap > 1
                print(f"{'proved' if proved else 'FAILED':7}{name:58} wrong {wrong:9.3g}  twin {twin:5.2f}  apart {gap:9.3g}", flush=True)
            except Exception as error:  # noqa: BLE001
                proved = False
                print(f"FAILED {name:58} {type(error).__name__}: {error}", flush=True)
            failed += not proved
        for name in DEMOS:
            if name.startswith("b_" + component + "_0") and name not in items:
                print("no kernel", name)
    print(f"{failed} not proved")
    sys.exit(failed > 0)


if __name__ == "__main__":
    with TARGET.activate():
        main()
