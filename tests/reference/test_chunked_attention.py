"""The reference of attention within chunks, against the mask of transformers and torch's attention, and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.masking_utils import chunked_causal_mask_function

from npudiff.properties.chunked_attention import ChunkedAttentionCase, Request, build_inputs
from npudiff.reference.chunked_attention import chunked_attention
from npudiff.reference.sliding_attention import SlidingAttentionInputs, sliding_attention

CASE = ChunkedAttentionCase(
    (Request(21, 37), Request(1, 48), Request(40, 40), Request(0, 20), Request(3, 3)),
    chunk=16, kv_heads=2, group=3, seed=4,
)  # fmt: skip


def gathered(kv, row, total):
    tokens = torch.arange(total)
    pages = kv.block_table[row].long()[tokens // kv.page_size]
    return (cache[pages, tokens % kv.page_size].double() for cache in (kv.key, kv.value))


def by_torch(inputs):
    """Attention in float64 with the mask of transformers, request by request."""
    seen = chunked_causal_mask_function(inputs.chunk, torch.zeros(1, dtype=torch.int64))
    outputs, start = [], 0
    for row, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        rows, keys = torch.arange(total - new, total)[:, None], torch.arange(total)[None]
        mask = seen(torch.tensor(0), torch.tensor(0), rows, keys)
        key, value = (one.transpose(0, 1)[None] for one in gathered(inputs.kv, row, total))
        query = inputs.query[start : start + new].double().transpose(0, 1)[None]
        found = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=inputs.scale, enable_gqa=True
        )
        outputs.append(found[0].transpose(0, 1))
        start += new
    return torch.cat(outputs)


@pytest.mark.parametrize(
    "case",
    [
        CASE,
        replace(CASE, chunk=3, recipe="needle"),
        replace(CASE, chunk=1),
        replace(CASE, chunk=17, page_size=4, dtype="float16"),
        replace(CASE, chunk=64, page_size=48, recipe="needle"),
        replace(CASE, requests=(Request(130, 150),), chunk=50),
    ],
    ids=ChunkedAttentionCase.describe,
)
def test_it_is_attention_with_the_mask_of_transformers(case):
    inputs = build_inputs(case)
    output = chunked_attention(inputs)["output"]
    torch.testing.assert_close(output.value, by_torch(inputs), rtol=1e-10, atol=1e-12)
    assert bool((output.bound > 0).all())
    assert output.dtype == inputs.query.dtype


def test_the_first_row_of_a_chunk_sees_itself_alone():
    inputs = build_inputs(replace(CASE, requests=(Request(3, 18),)))
    value = inputs.kv.value[inputs.kv.block_table[0, 1].long(), 0].double()
    output = chunked_attention(inputs)["output"].value
    assert torch.equal(output[1], value.repeat_interleave(3, 0))
    assert not torch.allclose(output[0], value.repeat_interleave(3, 0))


def test_a_chunk_that_is_longer_than_all_requests_is_plain_causality():
    inputs = build_inputs(replace(CASE, chunk=4096, page_size=16))
    plain = sliding_attention(
        SlidingAttentionInputs(
            inputs.query, inputs.kv, None, inputs.query_lengths, inputs.kv_lengths, None, inputs.scale, None
        )
    )["output"]
    output = chunked_attention(inputs)["output"]
    assert torch.equal(output.value, plain.value)
    assert torch.equal(output.bound, plain.bound)


def test_a_decode_and_the_last_row_of_a_prompt_agree():
    whole = build_inputs(replace(CASE, requests=(Request(40, 40),)))
    last = replace(whole, query=whole.query[-1:], query_lengths=(1,))
    torch.testing.assert_close(
        chunked_attention(last)["output"].value[0], chunked_attention(whole)["output"].value[-1], rtol=1e-12, atol=0
    )


def test_padded_rows_are_zero():
    output = chunked_attention(build_inputs(replace(CASE, padded_rows=2)))["output"]
    assert not output.value[-2:].any()
    assert not output.bound[-2:].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunk": 0}, "at least one position"),
        ({"query_lengths": (50, 1, 40, 0, 3)}, "are not of"),
        ({"kv_lengths": (20, 48, 40, 20, 3)}, "are not of"),
    ],
    ids=str,
)
def test_inputs_that_contradict_each_other_are_refused(changes, words):
    inputs = build_inputs(CASE)
    with pytest.raises(ValueError, match=words):
        chunked_attention(replace(inputs, **changes))
    with pytest.raises(ValueError, match="does not fit keys"):
        chunked_attention(replace(inputs, query=inputs.query[:, :5]))
