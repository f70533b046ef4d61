"""The reference against attention that others wrote: torch's own SDPA and FlexAttention.

Both get dense keys and values, gathered token by token, and a mask of their own making. They have no sinks and no
rule for rows that see nothing, so the strategy draws neither.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.nn import functional
from torch.nn.attention import flex_attention as flex

from by_night import by_night
from npudiff.model.constraints import Constraints
from npudiff.properties.sliding_attention import build_inputs, cases
from npudiff.reference.sliding_attention import sliding_attention

TOLERANCE = 1e-9
"""Relative to the largest value. Both sides are float64; a score of the cold recipe is about -60,000, and its dot
product may be off by a few hundred roundings of 6e4 * 2**-53, 1e-9 in all, which the exponential carries over."""

DRAWN = settings(
    max_examples=by_night(80), derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
WITHOUT_SINKS = {"sinks": (False,), "fully_masked_rows": ("none",)}
CASES = Constraints.of({**WITHOUT_SINKS, "kv_length": range(700)})
LONG = Constraints.of(
    {**WITHOUT_SINKS, "kv_length": (8193, 10_001), "query_length": range(1, 9), "window": (1, 512, 4096, None)}
)


def dense(kv, cache, slots):
    """Tokens of a cache, float64 ``[heads, tokens, dim]``, picked one by one."""
    if kv.layout == "PA_NZ":
        tokens = [cache[page, :, :, offset].flatten(1) for page, offset in slots]
    else:
        tokens = [cache[page, offset] for page, offset in slots]
    return torch.stack(tokens).double().transpose(0, 1)


def requests(inputs):
    """Per request: its rows in the query, first visible key, and dense float64 tensors ``[heads, tokens, dim]``."""
    kv, start = inputs.kv, 0
    for index, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        rows = slice(start, start + new)
        start += new
        if not new:
            continue
        oldest = 0 if inputs.window is None else max(0, total - new - inputs.window + 1)
        pages = kv.block_table[index].tolist()
        slots = [(pages[token // kv.page_size], token % kv.page_size) for token in range(oldest, total)]
        keys, values = (dense(kv, cache, slots) for cache in (kv.key, kv.value))
        query = inputs.query[rows].double().transpose(0, 1)
        yield rows, total - new, oldest, query, keys, values


def assert_close(actual, expected, scale):
    error = float((actual - expected).abs().max())
    assert error <= TOLERANCE * scale, f"{error} on values of {scale}"


def check_against_sdpa(case):
    inputs = build_inputs(case)
    expected = sliding_attention(inputs)
    for rows, position, oldest, query, keys, values in requests(inputs):
        group = query.shape[0] // keys.shape[0]
        own = torch.tensor([[position + row] for row in range(query.shape[1])])
        token = torch.tensor([list(range(oldest, oldest + keys.shape[1]))])
        mask = token <= own
        if case.window is not None:
            mask = mask & (token > own - case.window)
        kv_head = [head // group for head in range(query.shape[0])]
        dense_keys, dense_values = keys[kv_head], values[kv_head]
        output = functional.scaled_dot_product_attention(
            query.unsqueeze(0), dense_keys.unsqueeze(0), dense_values.unsqueeze(0), attn_mask=mask, scale=inputs.scale
        )[0].transpose(0, 1)
        assert_close(output, expected["output"].value[rows], 1 + float(values.abs().max()))
        scores = query @ dense_keys.mT * inputs.scale
        lse = scores.masked_fill(~mask, -torch.inf).logsumexp(-1).T
        assert_close(lse, expected["lse"].value[rows], 1 + float(lse.abs().max()))


@DRAWN
@given(cases(CASES))
def test_output_and_lse_agree_with_scaled_dot_product_attention(case):
    check_against_sdpa(case)


@settings(DRAWN, max_examples=6)
@given(cases(LONG))
def test_long_histories_agree_with_scaled_dot_product_attention(case):
    check_against_sdpa(case)


@pytest.fixture
def eager_flex(monkeypatch):
    """Run FlexAttention op by op: compiling a graph per shape takes seconds."""
    if hasattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"):
        monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.slow
@settings(DRAWN, max_examples=by_night(60))
@given(case=cases(CASES))
def test_output_and_lse_agree_with_flex_attention(eager_flex, case):
    inputs = build_inputs(case)
    expected = sliding_attention(inputs)
    window = 2**31 - 1 if case.window is None else case.window
    for rows, position, oldest, query, keys, values in requests(inputs):

        def sees(batch, head, row, column, shift=position - oldest):
            return (column <= row + shift) & (row + shift - column < window)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is not compiled, and how its LSE is asked for
            blocks = flex.create_block_mask(sees, None, None, query.shape[1], keys.shape[1], device="cpu")
            output, lse = flex.flex_attention(
                query.unsqueeze(0),
                keys.unsqueeze(0),
                values.unsqueeze(0),
                block_mask=blocks,
                scale=inputs.scale,
                enable_gqa=True,
                return_lse=True,
            )
        assert_close(output[0].transpose(0, 1), expected["output"].value[rows], 1 + float(values.abs().max()))
        lse = lse[0].double().T
        assert_close(lse, expected["lse"].value[rows], 1 + float(lse.abs().max()))
