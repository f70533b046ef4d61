from __future__ import annotations

import math

import pytest
import torch

from even import evenly
from npudiff.draw.data import Stream
from npudiff.reference.inexact_attention import projected_attention, visible
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs, sliding_attention
from npudiff.reference.spread import CONFIDENCE, EVEN, Spread, rounding_scale

HEADS, KV_HEADS, DIM, KEYS, ROWS, COLUMNS = 4, 2, 16, 21, 5, 7
SCALE = 1 / math.sqrt(DIM)


def numbers(name, *shape):
    return Stream(3, name).normal(shape, torch.float32).bfloat16().double()


QUERY, KEY, VALUE = numbers("q", ROWS, HEADS, DIM), numbers("k", KEYS, KV_HEADS, DIM), numbers("v", KEYS, KV_HEADS, DIM)
MATRIX = numbers("m", HEADS, DIM, COLUMNS)
IDENTITY = torch.eye(DIM).double().expand(HEADS, DIM, DIM)


def attention(query, key, value, seen, matrix=IDENTITY, dtype=torch.bfloat16):
    return projected_attention(query, key, value, seen, SCALE, matrix, dtype)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_it_is_sliding_attention_where_nothing_has_errors(window):
    result = attention(*map(Spread.exact, (QUERY, KEY, VALUE)), visible(ROWS, KEYS, window))
    pool = PagedKV(KEY.bfloat16()[None], VALUE.bfloat16()[None], torch.zeros(1, 1, dtype=torch.int32))
    other = sliding_attention(
        SlidingAttentionInputs(QUERY.bfloat16(), pool, None, (ROWS,), (KEYS,), window, SCALE, None)
    )["output"]
    assert torch.allclose(result.value.transpose(0, 1), other.value, rtol=1e-12, atol=1e-15)
    ratio = CONFIDENCE * result.scale.transpose(0, 1) / other.bound
    assert float(ratio.min()) > 0.7
    assert float(ratio.max()) < 4.0  # bounds of single roundings there, six of their scales here


def test_by_hand_what_is_visible():
    assert visible(2, 4, 2).tolist() == [[False, True, True, False], [False, False, True, True]]
    assert visible(1, 3, None).tolist() == [[True, True, True]]


@pytest.mark.few(4)
@pytest.mark.parametrize("matrix", [IDENTITY, MATRIX], ids=["identity", "matrix"])
@pytest.mark.parametrize("which", ["query", "key", "value", "shared query", "shared key", "shared value"])
def test_scales_are_the_spread_of_many_runs(which, matrix):
    given = {"query": QUERY, "key": KEY, "value": VALUE}
    name = which.split()[-1]
    exact = given[name]
    shared = torch.zeros_like(exact[..., :1])
    own = torch.zeros_like(exact)
    if which.startswith("shared"):
        shared = torch.full_like(shared, 0.01)
    else:
        own = exact.abs() / 100
    spreads = {part: Spread.exact(tensor) for part, tensor in given.items()} | {name: Spread(exact, own, shared)}
    seen = visible(ROWS, KEYS, 9)
    result = attention(*spreads.values(), seen, matrix, torch.float64)
    errors = []
    for seed in range(300):
        moved = exact + own / EVEN * evenly(exact.shape, seed) + exact * shared * evenly(shared.shape, seed).sign()
        others = {part: Spread.exact(tensor) for part, tensor in (given | {name: moved}).items()}
        errors.append(attention(*others.values(), seen, matrix, torch.float64).value - result.value)
    spread = torch.stack(errors).square().mean(dim=0).sqrt()
    ratio = spread / result.scale
    assert float(ratio.max()) < 1.25
    assert 0.8 < float(ratio.median()) <= 1.1


def test_bounds_hold_where_errors_are_large():
    """An exponential grows faster than its slope says."""
    own = QUERY.abs() / 5
    seen = visible(ROWS, KEYS, None)
    result = attention(Spread.of(QUERY, own), Spread.exact(KEY), Spread.exact(VALUE), seen)
    for seed in range(200):
        moved = Spread.exact(QUERY + own / EVEN * evenly(QUERY.shape, seed))
        error = attention(moved, Spread.exact(KEY), Spread.exact(VALUE), seen).value - result.value
        assert float((error.abs() / result.scale).max()) < CONFIDENCE


def test_scales_grow_faster_than_errors():
    seen = visible(ROWS, KEYS, None)
    small, large = (
        attention(
            Spread.of(QUERY, QUERY.abs() * part), Spread.exact(KEY), Spread.exact(VALUE), seen, dtype=torch.float64
        )
        for part in (1e-4, 1e-1)
    )
    growth = large.scale / small.scale / 1000
    assert float(growth.min()) > 1.05
    assert float(growth.max()) < 20


def test_its_own_errors_are_those_of_rounded_weights_and_outputs():
    """Weights are rounded before they are divided by their sum, and the output at the end."""
    seen = visible(ROWS, KEYS, None)
    ratios = []
    for seed in range(40):
        query = QUERY + evenly(QUERY.shape, seed)
        result = attention(*map(Spread.exact, (query, KEY, VALUE)), seen, MATRIX)
        scores = SCALE * query.transpose(0, 1) @ KEY.transpose(0, 1).repeat_interleave(2, dim=0).transpose(1, 2)
        scores = scores.masked_fill(~seen, -torch.inf)
        powers = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
        values = VALUE.transpose(0, 1).repeat_interleave(2, dim=0)
        output = (powers.bfloat16().double() @ values / powers.sum(dim=-1, keepdim=True)).bfloat16().double()
        ratios.append((output @ MATRIX - result.value) / result.scale)
    spread = torch.stack(ratios).square().mean(dim=0).sqrt()
    assert 0.6 < float(spread.median()) < 1
    assert float(torch.stack(ratios).abs().max()) < CONFIDENCE


def test_weight_and_output_of_one_visible_key_are_rounded_once_each():
    """A weight of 1 is not rounded, but what a device divides by the sum may be."""
    result = attention(*map(Spread.exact, (QUERY, KEY, VALUE)), visible(ROWS, KEYS, 1))
    ratio = result.scale / (rounding_scale(torch.bfloat16) * result.output.abs())
    assert torch.allclose(ratio, torch.full_like(ratio, math.sqrt(2)), rtol=5e-3)
