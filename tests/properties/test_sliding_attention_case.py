from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import HealthCheck, given, settings

from npudiff.model.case import dumps, loads
from npudiff.model.constraints import Constraints
from npudiff.properties._shared.head_dims import join_head_dims, split_head_dims
from npudiff.properties.sliding_attention import cases
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase

AXES = SlidingAttentionCase.axes()
check_case = SlidingAttentionCase.check
describe = SlidingAttentionCase.describe
features = SlidingAttentionCase.features
values = SlidingAttentionCase.values

DRAWN = settings(
    max_examples=200, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
PLAIN = SlidingAttentionCase((Request(1, 5),))
RICH = SlidingAttentionCase(
    (Request(1, 40), Request(300, 7)), 9, 32, 2, 3, 192, 128, "float16", True, True, 3, 1, 0.5, "needle", "nan", 11
)  # fmt: skip


@DRAWN
@given(cases(Constraints()))
def test_a_case_survives_json(case):
    text = dumps(case)
    assert loads(SlidingAttentionCase, text) == case
    assert json.loads(text)["requests"] == [{"query": request.query, "kv": request.kv} for request in case.requests]


@pytest.mark.parametrize(
    "text",
    [
        '{"requests":[{"query":1,"kv":"5"}]}',
        '{"requests":[{"query":1}]}',
        '{"requests":[{"query":1,"kv":5}],"window":"none"}',
        '{"requests":[{"query":1,"kv":5}],"sinks":1}',
        '{"requests":[{"query":1,"kv":5}],"colour":1}',
        "{}",
    ],
)
def test_json_that_is_no_case_is_refused(text):
    with pytest.raises(ValueError, match="case"):
        loads(SlidingAttentionCase, text)


def test_a_case_cannot_be_changed_and_can_be_a_key():
    with pytest.raises(FrozenInstanceError):
        PLAIN.window = 3
    assert {PLAIN: 1}[replace(RICH, **vars(PLAIN))] == 1


@DRAWN
@given(cases(Constraints()))
def test_a_case_has_a_value_on_every_axis_that_the_axis_allows(case):
    by_axis = values(case)
    assert by_axis.keys() == AXES.keys()
    for name, used in by_axis.items():
        assert used
        for value in used:
            assert AXES[name].value(name, value, "test") == value


def test_sizes_follow_from_requests():
    assert (RICH.heads, RICH.tokens, RICH.width) == (6, 304, 3)
    assert SlidingAttentionCase((Request(1, 0),)).width == 1
    assert SlidingAttentionCase((Request(1, 16), Request(1, 17)), spare_pages=2).width == 4


def test_axis_values_of_a_case():
    by_axis = values(RICH)
    assert set(by_axis["query_length"]) == {1, 300}
    assert set(by_axis["kv_length"]) == {40, 7}
    assert tuple(by_axis["head_dims"]) == ("192/128",)
    assert tuple(by_axis["fully_masked_rows"]) == ("any",)
    assert tuple(by_axis["batch"]) == (2,)
    assert tuple(by_axis["window"]) == (9,)
    assert tuple(values(PLAIN)["window"]) == (None,)


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([(1, 1), (5, 5), (0, 0)], "none"),
        ([(1, 0), (5, 5)], "empty"),
        ([(1, 0), (6, 5)], "any"),
        ([(2, 1)], "any"),
    ],
)
def test_blind_rows_name_what_kind_of_request_has_them(requests, expected):
    assert SlidingAttentionCase(tuple(Request(*lengths) for lengths in requests)).fully_masked_rows == expected


@pytest.mark.parametrize(
    ("requests", "window", "present", "absent"),
    [
        ([(1, 16)], None, {"query length 1"}, {"mixed batch", "prefix-free", "window cuts", "partial page"}),
        ([(1, 17), (9, 9)], 17, {"query length 1", "mixed batch", "partial page"}, {"window cuts"}),
        ([(2, 17)], 16, {"query length 2..8", "prefix", "window cuts"}, {"query length 1", "blind rows"}),
        ([(8, 8193)], None, {"query length 2..8", "long history"}, {"window cuts"}),
        ([(9, 8192)], None, {"prefix"}, {"query length 2..8", "long history", "partial page"}),
        ([(9, 8)], None, {"blind rows"}, {"prefix"}),
    ],
)
def test_features_name_the_regions_of_a_case(requests, window, present, absent):
    found = set(features(SlidingAttentionCase(tuple(Request(*lengths) for lengths in requests), window)))
    assert present <= found
    assert not absent & found


def test_description_leaves_out_what_is_plain():
    assert describe(PLAIN) == "q1/kv5 · window none · page 16 · heads 1:1 · dim 64 · bfloat16"
    assert describe(RICH) == (
        "q1/kv40 q300/kv7 · window 9 · page 32 · heads 6:2 · dim 192/128 · float16 · sinks · hybrid · 3 padded rows"
        " · 1 spare page · scale x0.5 · needle · NaN poison · seed 11"
    )


@pytest.mark.parametrize(("text", "dims"), [("128", (128, 128)), ("192/128", (192, 128))])
def test_head_dims_are_read_and_written(text, dims):
    assert split_head_dims(text) == dims
    assert join_head_dims(*dims) == text


@pytest.mark.parametrize("text", ["", "a", "1/b", "1/2/3"])
def test_head_dims_of_another_form_are_refused(text):
    with pytest.raises(ValueError):
        split_head_dims(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"requests": ()},
        {"requests": (Request(1, -1),)},
        {"requests": (Request(-1, 1),)},
        {"requests": (Request(1, 2**20 + 1),)},
        {"requests": (Request(1, 1),) * 4097},
        {"requests": (Request(2**17, 2**18),)},
        {"window": 0},
        {"window": -1},
        {"page_size": 0},
        {"kv_heads": 0},
        {"group": 0},
        {"head_dim": 0},
        {"value_head_dim": 0},
        {"padded_rows": -1},
        {"spare_pages": -1},
        {"dtype": "float32"},
        {"recipe": "hot"},
        {"poison": "none"},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"seed": -1},
        {"kv_heads": 65_536, "page_size": 65_536},
    ],
)
def test_a_case_that_cannot_be_built_is_refused(changes):
    check_case(PLAIN)
    check_case(RICH)
    with pytest.raises(ValueError):
        check_case(replace(PLAIN, **changes))
