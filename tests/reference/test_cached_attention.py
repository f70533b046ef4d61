from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from npudiff.properties.cached_attention import CachedAttentionCase, Request, build_inputs
from npudiff.reference.cached_attention import cached_attention

CASE = CachedAttentionCase((Request(3, 20), Request(1, 7)), page_size=4, kv_heads=2, group=3)


@pytest.mark.parametrize("window", [None, 1, 5, 17])
def test_it_is_attention_over_the_rows_that_were_given(window):
    """Against scaled_dot_product_attention in float64, without any cache."""
    inputs = build_inputs(replace(CASE, window=window))
    output = cached_attention(inputs)["output"].value
    row = token = 0
    for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True):
        own, key = torch.arange(total - new, total)[:, None], torch.arange(total)[None, :]
        mask = (key <= own) & (key > own - (window or 10**6))
        heads = [part.double().transpose(0, 1)[None] for part in (
            inputs.query[row : row + new], inputs.key[token : token + total], inputs.value[token : token + total]
        )]  # fmt: skip
        right = functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=inputs.scale, enable_gqa=True)
        assert torch.allclose(output[row : row + new], right[0].transpose(0, 1), rtol=1e-10, atol=1e-12)
        row, token = row + new, token + total


def test_layouts_are_of_no_consequence_to_the_result():
    results = [
        cached_attention(build_inputs(replace(CASE, write_layout=write, read_layout=read)))["output"].value
        for write in ("PA_BSND", "PA_NZ")
        for read in ("PA_BSND", "PA_NZ")
    ]
    assert all(torch.equal(result, results[0]) for result in results)


def test_what_the_pool_held_before_is_never_seen():
    inputs = build_inputs(CASE)
    other = replace(inputs, key_cache=inputs.key_cache * 0 - 7, value_cache=inputs.value_cache * 0 + 9)
    assert torch.equal(cached_attention(inputs)["output"].value, cached_attention(other)["output"].value)
