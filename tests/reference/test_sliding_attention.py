from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from by_night import by_night
from npudiff.model.constraints import Constraints
from npudiff.properties.sliding_attention import build_inputs, cases
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase
from npudiff.reference import attended_requests, attention_tile, cache_reader
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs, sliding_attention

DRAWN = settings(
    max_examples=by_night(200), derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
TINY = {
    "batch": (1, 2, 3),
    "query_length": range(1, 8),
    "kv_length": range(14),
    "page_size": (2, 3, 4),
    "kv_heads": (1, 2),
    "group": (1, 2, 3),
    "head_dims": ("4", "6/5", "3/7"),
}
BLIND = Constraints.of(TINY | {"window": (1, 2, 3, 5, None), "fully_masked_rows": ("any", "empty")})
CASES = Constraints.of([TINY | {"window": (1, 2, 3, 5, 100)}, TINY | {"window": (None,)}, TINY | {"sinks": (True,)}])


def dot(first, second):
    return math.fsum(map(math.prod, zip(first, second, strict=True)))


def plain_attention(inputs):
    """Attention in plain Python floats: outputs and LSE of every row, padding included, as nested lists."""
    kv = inputs.kv
    query, keys, values = (tensor.double().tolist() for tensor in (inputs.query, kv.key, kv.value))
    sinks = None if inputs.sinks is None else inputs.sinks.double().tolist()
    table = kv.block_table.tolist()
    heads, kv_heads, value_dim = len(query[0]), len(keys[0][0]), len(values[0][0][0])
    output = [[[0.0] * value_dim for _ in range(heads)] for _ in query]
    lse = [[-math.inf] * heads for _ in query]
    start = 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for row in range(new):
            own = total - new + row
            seen = [j for j in range(own + 1) if inputs.window is None or own - j < inputs.window]
            for head in range(heads):
                kv_head = head * kv_heads // heads
                slots = [(table[request][j // kv.page_size], j % kv.page_size) for j in seen]
                scores = [inputs.scale * dot(query[start + row][head], keys[p][o][kv_head]) for p, o in slots]
                logits = scores + ([] if sinks is None else [sinks[head]])
                if not logits:
                    continue
                top = max(logits)
                total_weight = math.fsum(math.exp(logit - top) for logit in logits)
                lse[start + row][head] = top + math.log(total_weight)
                weights = [math.exp(score - top) / total_weight for score in scores]
                seen_values = [values[p][o][kv_head] for p, o in slots]
                columns = zip(*seen_values, strict=True) if slots else [()] * value_dim
                output[start + row][head] = [dot(weights, column) for column in columns]
        start += new
    return torch.tensor(output, dtype=torch.float64), torch.tensor(lse, dtype=torch.float64)


def assert_same(actual, expected, tolerance=1e-9):
    """Equal up to float64 rounding (scores reach 6e4, so 1e-9 of the largest value); infinities must be the same."""
    assert actual.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(actual[~finite], expected[~finite])
    scale = 1 + float(expected[finite].abs().max()) if finite.any() else 1.0
    assert float((actual - expected)[finite].abs().max() if finite.any() else 0) <= tolerance * scale


def check_against_plain(case):
    inputs = build_inputs(case)
    expected, (output, lse) = sliding_attention(inputs), plain_attention(inputs)
    rows = sum(inputs.query_lengths)
    assert_same(expected["output"].value, output)
    assert_same(expected["lse"].value[:rows], lse[:rows])


@DRAWN
@given(cases(CASES))
def test_value_and_lse_equal_a_plain_triple_loop(case):
    check_against_plain(case)


@settings(DRAWN, max_examples=by_night(60))
@given(cases(BLIND))
def test_rows_that_see_nothing_equal_a_plain_triple_loop(case):
    check_against_plain(case)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("request_", [Request(1, 0), Request(5, 3), Request(2, 2), Request(1, 7), Request(0, 4)])
def test_each_corner_equals_a_plain_triple_loop(request_, window, sinks):
    case = SlidingAttentionCase(
        (request_, Request(1, 5)), window, 3, 2, 3, 8, 5, sinks=sinks, padded_rows=2, recipe="needle", scale=2.0
    )
    check_against_plain(case)


def test_blind_rows_are_exactly_zero_and_their_lse_is_the_sink():
    case = SlidingAttentionCase((Request(5, 3), Request(2, 0)), window=2, group=2, head_dim=8, value_head_dim=8)
    blind = torch.tensor([0, 1, 5, 6])
    for sinks in (False, True):
        inputs = build_inputs(replace(case, sinks=sinks))
        expected = sliding_attention(inputs)
        assert not expected["output"].value[blind].any()
        assert not expected["output"].bound[blind].any()
        assert not expected["lse"].bound[blind].any()
        lse = torch.full((2,), -math.inf, dtype=torch.float64) if inputs.sinks is None else inputs.sinks.double()
        assert torch.equal(expected["lse"].value[blind], lse.expand(4, 2))
        assert (expected["output"].bound[[2, 3, 4]] > 0).all()


def test_padded_rows_have_zero_output_and_any_lse():
    inputs = build_inputs(SlidingAttentionCase((Request(2, 5),), 3, padded_rows=3, poison="nan"))
    expected = sliding_attention(inputs)
    assert not expected["output"].value[2:].any()
    assert not expected["output"].bound[2:].any()
    assert (expected["lse"].bound[2:] == math.inf).all()
    assert expected["lse"].bound[:2].isfinite().all()


def test_outputs_have_the_query_dtype_and_float32():
    for dtype in (torch.bfloat16, torch.float16):
        case = SlidingAttentionCase((Request(2, 5),), head_dim=6, value_head_dim=4, dtype=str(dtype).split(".")[1])
        expected = sliding_attention(build_inputs(case))
        assert expected["output"].dtype == dtype
        assert expected["lse"].dtype == torch.float32
        assert expected["output"].value.shape == (2, 1, 4)
        assert {part.value.dtype for part in expected.values()} == {torch.float64}
        assert {part.bound.dtype for part in expected.values()} == {torch.float64}


def test_a_layer_with_a_window_reads_the_sliding_pool_and_any_other_the_full_one():
    inputs = build_inputs(SlidingAttentionCase((Request(2, 5),), window=3, hybrid=True))
    assert inputs.kv is inputs.sliding
    assert replace(inputs, window=None).kv is inputs.full
    assert replace(inputs, sliding=None).kv is inputs.full


@settings(DRAWN, max_examples=by_night(40))
@given(cases(Constraints.of({"kv_length": range(300), "query_length": range(1, 65)})))
def test_tiles_do_not_change_the_result(case):
    inputs = build_inputs(case)
    whole = sliding_attention(inputs)
    tolerance = 1e-9 if case.recipe == "cold" else 1e-12  # the float64 rounding of a score of 6e4
    heads, rows = case.heads, max(1, *(request.query for request in case.requests))
    for name, home, size in (
        ("ROW_TILE", attended_requests, 3),
        ("SCORE_TILE", attention_tile, 37 * heads * rows),
        ("CACHE_TILE", cache_reader, 29 * case.kv_heads * (case.head_dim + case.value_head_dim)),
        ("SCORE_TILE", attention_tile, 1 if max(request.kv for request in case.requests) < 40 else 2**23),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(home, name, size)
            tiled = sliding_attention(inputs)
        for output in ("output", "lse"):
            assert_same(tiled[output].value, whole[output].value, tolerance)
            if name != "ROW_TILE":  # the bound counts the keys of a tile of rows
                assert_same(tiled[output].bound, whole[output].bound, 1e-5)  # their sums are float32
        assert bool((tiled["output"].bound <= 1.0001 * whole["output"].bound).all())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("total", [131_072, 131_071, 131_073])
def test_a_window_reads_only_its_own_pages_of_a_long_history(total, rows):
    window, size, dim = 512, 128, 16
    first = total - rows - window + 1
    columns = range(first // size, (total - 1) // size + 1)
    generator = torch.Generator().manual_seed(3)
    dense = torch.randn(len(columns) * size, 2, dim, generator=generator).to(torch.bfloat16)
    pages = torch.full((40, size, 2, dim), math.nan, dtype=torch.bfloat16)
    names = torch.randperm(39, generator=generator)[: len(columns)] + 1
    pages[names] = dense.reshape(len(columns), size, 2, dim)
    table = torch.full((1, -(-total // size)), 10**9, dtype=torch.int32)
    table[0, ::2] = -7
    table[0, columns.start : columns.stop] = names.to(torch.int32)
    query = torch.randn(rows, 4, dim, generator=generator).to(torch.bfloat16)
    inputs = SlidingAttentionInputs(query, PagedKV(pages, pages, table), None, (rows,), (total,), window, 0.25, None)
    expected = sliding_attention(inputs)["output"]
    assert expected.value.isfinite().all()
    assert expected.bound.isfinite().all()
    for row in range(rows):
        own = total - rows + row - columns.start * size
        seen = dense[own - window + 1 : own + 1].double()
        for head in range(4):
            weights = (seen[:, head // 2] @ query[row, head].double() * 0.25).softmax(0)
            torch.testing.assert_close(expected.value[row, head], weights @ seen[:, head // 2], rtol=1e-11, atol=1e-12)


def test_what_contradicts_itself_is_refused():
    inputs = build_inputs(SlidingAttentionCase((Request(2, 5),), window=3, kv_heads=2, group=2, sinks=True))
    key, value, table = inputs.full.key, inputs.full.value, inputs.full.block_table
    for wrong, words in (
        ({"window": 0}, "window must be at least 1"),
        ({"query": inputs.query[:, :3]}, "does not fit keys"),
        ({"query": inputs.query[..., :-1]}, "does not fit keys"),
        ({"query_lengths": (2, 1)}, "2 query lengths, 1 KV lengths"),
        ({"query_lengths": (3,)}, "add up to 3"),
        ({"sinks": torch.zeros(3)}, r"sinks must be \[4\]"),
        ({"full": PagedKV(key, value[:, :-1], table)}, "do not match"),
    ):
        with pytest.raises(ValueError, match=words):
            sliding_attention(replace(inputs, **wrong))


MEASURE = """
    import resource, sys
    from npudiff.properties.sliding_attention import build_inputs
    from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase
    from npudiff.reference.sliding_attention import sliding_attention

    case = SlidingAttentionCase({requests}, {window}, 128, 8, 8, 128, 128)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    expected = sliding_attention(build_inputs(case))
    assert expected["output"].bound.isfinite().all()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("requests", "window"),
    [
        ("(Request(1, 131_072),) * 8", 512),
        ("(Request(1, 131_072),) * 8", None),
        ("(Request(2048, 32_768 + 2048),)", 512),
        ("(Request(128, 32_768 + 128),)", None),
    ],
)
def test_memory_stays_below_one_and_a_half_gibibytes(requests, window):
    script = textwrap.dedent(MEASURE).format(requests=requests, window=window)
    root = Path(attended_requests.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1.5, f"{float(run.stdout):.2f} GiB"


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("tile", [2**22, 64])
def test_the_direction_of_the_scale_is_the_derivative(monkeypatch, sinks, tile):
    monkeypatch.setattr(attention_tile, "SCORE_TILE", tile)
    case = SlidingAttentionCase(requests=(Request(5, 40), Request(1, 9)), window=16, sinks=sinks)
    inputs, step = build_inputs(case), 1e-5
    up, down = (
        sliding_attention(replace(inputs, scale=inputs.scale * (1 + by)))["output"].value for by in (step, -step)
    )
    expected = sliding_attention(inputs)["output"]
    direction = expected.directions[attended_requests.SCALE]
    torch.testing.assert_close(direction, (up - down) / (2 * step), rtol=1e-4, atol=1e-5)
    assert direction.abs().max() > 0.01
