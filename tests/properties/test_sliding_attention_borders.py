from __future__ import annotations

import math

import pytest
import torch

from npudiff.properties.sliding_attention.borders import LiveRange, border_tokens, live_range
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase
from npudiff.properties.sliding_attention.inputs import build_inputs
from npudiff.properties.sliding_attention.pages import plan_pages


def tokens(request, window, page_size=16, seed=0):
    case = SlidingAttentionCase((request,), window, page_size, seed=seed)
    return set(border_tokens(case, request, live_range(request, window)))


def test_borders_of_a_chunk_worked_by_hand():
    """Rows at 95, 97 and 99 with 10 visible keys: the oldest key that each sees, and the one just outside."""
    request = Request(5, 100)
    assert live_range(request, 10) == LiveRange(86, 100)
    assert {86, 87, 88, 89, 90, 95, 97, 99} <= tokens(request, 10)
    assert all(86 <= token < 100 for token in tokens(request, 10))


def test_borders_of_a_decode_are_the_edge_and_its_own_key():
    assert {600 - 128, 599} <= tokens(Request(1, 600), 128)
    assert {0, 599} <= tokens(Request(1, 600), None)


def test_a_long_history_has_borders_inside_that_differ_between_seeds():
    """Where a split of the history among cores would begin, and where tables and masks end."""
    inside = set().union(*(tokens(Request(1, 131_072), None, 128, seed) for seed in range(60)))
    assert {part * 131_072 // 8 for part in range(1, 8)} <= inside
    assert {511, 512, 2047, 2048, 8191, 8192, 9999, 10_000} <= inside


@pytest.mark.parametrize(("requests", "window"), [
    ((Request(1, 4000), Request(3, 4000)), None), ((Request(1, 4000), Request(40, 3000)), 1000),
])  # fmt: skip
def test_pages_at_borders_and_at_both_ends_belong_to_one_request_and_one_place(requests, window):
    case = SlidingAttentionCase(requests, window, 16)
    plan = plan_pages(case)
    counts = torch.bincount(torch.from_numpy(plan.table).flatten().to(torch.int64))
    for row, (request, span) in enumerate(zip(requests, plan.live, strict=True)):
        first, last = span.first // 16, (span.last - 1) // 16
        own = {first, first + 1, last - 1, last, *(token // 16 for token in border_tokens(case, request, span))}
        assert all(int(counts[plan.table[row, page]]) == 1 for page in own)


@pytest.mark.parametrize("window", [128, 4096])
def test_the_key_just_outside_the_window_of_the_last_row_is_strong_in_a_needle_case(window):
    """An inner row sees it, so it is not poison; a kernel that shows it to the last row gives it a share."""
    case = SlidingAttentionCase((Request(3, window + 50),), window, 16, head_dim=64, recipe="needle")
    inputs = build_inputs(case)
    last = window + 49
    keys = inputs.kv.read(0, last - window, last + 1)[0][:, 0].double()
    weights = torch.softmax(inputs.query[2, 0].double() @ keys.T / math.sqrt(64), dim=-1)
    assert float(weights[0]) > 0.05


def test_sinks_are_about_as_large_as_the_log_sum_exp():
    case = SlidingAttentionCase((Request(1, 4000),), None, 16, kv_heads=4, group=8, sinks=True)
    assert abs(float(build_inputs(case).sinks.double().mean()) - math.log(4000)) < 1
