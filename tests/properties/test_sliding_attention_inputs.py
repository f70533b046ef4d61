from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from by_night import by_night
from npudiff.draw.data import Stream
from npudiff.model.constraints import Constraints
from npudiff.properties.sliding_attention import build_inputs, cases
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase
from npudiff.reference.cache_layout import CacheLayout
from npudiff.reference.sliding_attention import sliding_attention

DRAWN = settings(
    max_examples=by_night(150), derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
RECORDED = SlidingAttentionCase(
    (Request(1, 40), Request(5, 33), Request(2, 0)),
    window=9,
    page_size=16,
    kv_heads=2,
    group=2,
    head_dim=24,
    value_head_dim=16,
    sinks=True,
    hybrid=True,
    padded_rows=1,
    spare_pages=1,
    recipe="needle",
    seed=7,
)
RECORDED_SHA256 = "bf11e84d13f5c1ee210b4d14ce9d743bf69e5ed83a755e81a29ff37f96b484c1"


def tensors(inputs):
    pools = [pool for pool in (inputs.full, inputs.sliding) if pool is not None]
    parts = [inputs.query, *(part for pool in pools for part in (pool.key, pool.value, pool.block_table))]
    return parts if inputs.sinks is None else [*parts, inputs.sinks]


def digest(inputs):
    bits = hashlib.sha256()
    for tensor in tensors(inputs):
        bits.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        bits.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return bits.hexdigest()


def used_slots(case, inputs):
    """``(page, offset)`` of every key that some row sees, found row by row."""
    used = set()
    for index, request in enumerate(case.requests):
        table = inputs.kv.block_table[index].tolist()
        for row in range(request.query):
            own = request.kv - request.query + row
            for token in range(own + 1):
                if case.window is None or own - token < case.window:
                    used.add((table[token // case.page_size], token % case.page_size))
    return used


def is_poison(values, case):
    return bool(values.isnan().all()) if case.poison == "nan" else bool((values == 4096).all())


def test_the_recorded_case_gives_the_recorded_bits():
    assert digest(build_inputs(RECORDED)) == RECORDED_SHA256


@settings(DRAWN, max_examples=30)
@given(cases(Constraints()))
def test_the_same_case_gives_the_same_bits(case):
    assert digest(build_inputs(case)) == digest(build_inputs(replace(case)))


def test_another_seed_gives_other_bits_in_every_tensor():
    one, two = build_inputs(RECORDED), build_inputs(replace(RECORDED, seed=8))
    assert not torch.equal(one.query, two.query)
    assert not torch.equal(one.kv.key, two.kv.key)
    assert not torch.equal(one.kv.value, two.kv.value)
    assert not torch.equal(one.kv.block_table, two.kv.block_table)
    assert not torch.equal(one.sinks, two.sinks)


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build_inputs(RECORDED)
    assert torch.equal(before, torch.get_rng_state())


def test_streams_of_other_names_or_seeds_differ():
    words = {
        tuple(Stream(seed, name).random_uint64(4).tolist())
        for seed in (0, 1, 2)
        for name in ("key", "value", "query", "k")
    }
    assert len(words) == 12
    assert Stream(5, "key").random_uint64(8)[:4].tolist() == Stream(5, "key").random_uint64(4).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_normal_values_have_mean_zero_deviation_one_and_the_asked_dtype(dtype):
    values = Stream(1, "normal").normal((200, 501), dtype)
    assert values.dtype == dtype
    assert values.shape == (200, 501)
    wide = values.double()
    assert abs(float(wide.mean())) < 0.02
    assert abs(float(wide.std()) - 1) < 0.02
    assert 3.3 < float(wide.abs().max()) < 4
    neighbours = (wide[:, 1:] * wide[:, :-1]).mean()
    assert abs(float(neighbours)) < 0.02


@DRAWN
@given(cases(Constraints.of({"kv_length": range(600), "query_length": range(1, 65)})))
def test_inputs_have_the_sizes_and_dtypes_of_the_case(case):
    inputs, dtype = build_inputs(case), getattr(torch, case.dtype)
    assert inputs.query.shape == (case.tokens, case.heads, case.head_dim)
    for cache, dim in ((inputs.kv.key, case.head_dim), (inputs.kv.value, case.value_head_dim)):
        nd, nz = (case.page_size, case.kv_heads, dim), (case.kv_heads, dim // 16, case.page_size, 16)
        assert cache.shape[1:] == (nz if case.layout == "PA_NZ" else nd)
    assert inputs.query.dtype == inputs.kv.key.dtype == inputs.kv.value.dtype == dtype
    assert inputs.kv.block_table.dtype == torch.int32
    assert inputs.kv.block_table.shape == (len(case.requests), case.width)
    assert (inputs.sliding is not None) == case.hybrid
    assert (inputs.sinks is not None) == case.sinks
    assert inputs.sinks is None or (inputs.sinks.dtype == torch.bfloat16 and inputs.sinks.shape == (case.heads,))
    assert inputs.scale == pytest.approx(case.scale / math.sqrt(case.head_dim))
    assert inputs.query_lengths == tuple(request.query for request in case.requests)
    assert inputs.kv_lengths == tuple(request.kv for request in case.requests)


@pytest.mark.slow
@DRAWN
@given(cases(Constraints.of({"kv_length": range(600), "query_length": range(1, 65), "layout": ("PA_BSND",)})))
def test_every_slot_that_a_table_names_and_no_row_may_read_is_poison(case):
    inputs = build_inputs(case)
    kv, used = inputs.kv, used_slots(case, inputs)
    named = {0, *kv.block_table.flatten().tolist()}
    free = [(page, offset) for page in named for offset in range(case.page_size) if (page, offset) not in used]
    pages, offsets = zip(*free, strict=True)
    assert is_poison(kv.value[list(pages), list(offsets)], case)
    if case.poison == "nan":
        assert is_poison(kv.key[list(pages), list(offsets)], case)
    live_pages, live_offsets = zip(*used, strict=True) if used else ((), ())
    for cache in (kv.key, kv.value):
        live = cache[list(live_pages), list(live_offsets)].double()
        assert live.isfinite().all()
    assert not live.numel() or float(live.abs().max()) < 4096
    assert not any(page == 0 for page, _ in used)


@pytest.mark.parametrize("dims", [(64, 64), (192, 128)])
def test_nz_pools_hold_the_same_bytes_at_the_addresses_of_their_layout(dims):
    case = SlidingAttentionCase(
        (Request(3, 40), Request(1, 7)), 5, kv_heads=3, head_dim=dims[0], value_head_dim=dims[1], hybrid=True
    )
    plain, strips = build_inputs(case), build_inputs(replace(case, layout="PA_NZ"))
    for nd, nz in ((plain.full, strips.full), (plain.sliding, strips.sliding)):
        assert torch.equal(nd.block_table, nz.block_table)
        for one, other in ((nd.key, nz.key), (nd.value, nz.value)):
            pages, size, heads, dim = one.shape
            layout = CacheLayout("PA_NZ", pages, size, heads, dim, one.dtype)
            assert other.is_contiguous()
            read = other.flatten()[layout.addresses(torch.arange(pages * size))]
            assert torch.equal(read.reshape(one.shape), one)


def test_every_page_that_no_table_names_is_poison():
    case = SlidingAttentionCase((Request(1, 5),), poison="nan")
    kv = build_inputs(case).kv
    others = sorted(set(range(len(kv.value))) - set(kv.block_table.flatten().tolist()))
    assert is_poison(kv.value[others], case)


@DRAWN
@given(cases(Constraints.of({"hybrid": (True,), "padded_rows": (1, 3), "kv_length": range(600)})))
def test_padded_rows_the_dummy_page_and_the_decoy_pool_are_poison(case):
    inputs = build_inputs(case)
    rows = sum(request.query for request in case.requests)
    assert is_poison(inputs.query[rows:], case)
    assert len(inputs.query[rows:]) == case.padded_rows
    assert inputs.query[:rows].isfinite().all()
    assert is_poison(inputs.kv.value[0], case)
    decoy = inputs.full if inputs.kv is inputs.sliding else inputs.sliding
    assert is_poison(decoy.key, case)
    assert is_poison(decoy.value, case)
    assert decoy.block_table.shape == inputs.kv.block_table.shape
    assert 0 <= int(decoy.block_table.min()) <= int(decoy.block_table.max()) < len(decoy.key)


@settings(DRAWN, max_examples=by_night(60))
@given(cases(Constraints.of({"poison": ("nan",)})))
def test_nan_poison_does_not_reach_the_reference(case):
    expected = sliding_attention(build_inputs(case))
    rows = sum(request.query for request in case.requests)
    assert expected["output"].value.isfinite().all()
    assert expected["output"].bound.isfinite().all()
    assert not expected["lse"].value[:rows].isnan().any()


def test_block_tables_are_permuted_and_pages_are_shared():
    case = SlidingAttentionCase((Request(1, 4096), Request(3, 4000)), page_size=16, spare_pages=2)
    orders = set()
    for number in range(20):
        table = build_inputs(replace(case, seed=number)).kv.block_table
        for row in table:
            assert row.tolist() != sorted(row.tolist())
        assert set(table[0].tolist()) & set(table[1, :250].tolist()) - {0}
        orders.add(tuple(table[0].tolist()))
    assert len(orders) == 20


def test_pages_of_a_request_have_neither_neighbouring_nor_rising_names():
    case = SlidingAttentionCase((Request(1, 48), Request(1, 48)), page_size=16)  # three pages of its own each
    tables = [build_inputs(replace(case, seed=number)).kv.block_table.flatten().tolist() for number in range(20)]
    assert all(len(set(table)) == 6 for table in tables)
    assert sum(table == sorted(table) for table in tables) < 3
    assert len({page for table in tables for page in table}) == 11  # every page but the dummy is used by some seed


def border_weights(total, window, **others):
    """Softmax weights of the oldest and newest visible key of decode rows, over seeds and heads."""
    weights = []
    for number in range(8):
        case = SlidingAttentionCase(
            (Request(1, total),), window, 128, 1, 4, 128, 128, recipe="needle", seed=number, **others
        )
        inputs = build_inputs(case)
        seen = total if window is None else min(window, total)
        keys = inputs.kv.read(0, total - seen, total)[0][:, 0].double()
        rows = (inputs.query[0].double() @ keys.T * inputs.scale).softmax(-1)
        weights += [rows[:, 0], rows[:, -1]]
    return torch.cat(weights)


@pytest.mark.few(5)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("total", "window", "scale"),
    [
        (600, 128, 1.0),
        (600, 128, 0.5),
        (131_072, 100_000, 1.0),
        (600, None, 1.0),
        (100, 128, 1.0),
        (9000, 4096, 1.0),
        (131_072, 131_000, 1.0),
        (600, 128, 4.0),
    ],
)
def test_the_window_edge_takes_a_visible_weight_of_a_decode_row(total, window, scale, dtype):
    border = border_weights(total, window, scale=scale, dtype=dtype)
    assert float(border.min()) > 0.1
    assert float(border.max()) < 0.9


@pytest.mark.parametrize("window", [None, 64])
def test_a_cold_case_has_scores_below_minus_50000_and_an_outlier_case_large_border_values(window):
    base = SlidingAttentionCase((Request(4, 300),), window, 32, 2, 2, 64, 64)
    inputs = build_inputs(replace(base, recipe="cold"))
    assert float(sliding_attention(inputs)["lse"].value.max()) < -50_000
    gaussian, outlier = (build_inputs(replace(base, recipe=recipe)) for recipe in ("gaussian", "outlier"))
    first = 0 if window is None else 300 - 4 - window + 1
    for token in (first, 299):
        plain, large = (inputs.kv.read(0, token, token + 1)[1].double() for inputs in (gaussian, outlier))
        assert torch.equal(large, 64 * plain)
