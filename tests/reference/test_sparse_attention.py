"""The reference of attention over chosen keys, against torch's own attention and against attention over all keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.properties.sliding_attention.case import Request
from npudiff.properties.sparse_attention import SparseAttentionCase, build_inputs, dense
from npudiff.reference.latent_attention import latent_attention
from npudiff.reference.sparse_attention import seen_by, sparse_attention

PLAIN = SparseAttentionCase((Request(1, 40), Request(3, 21), Request(0, 5)), chosen=8, heads=3, padded_rows=1, seed=3)


def by_torch(inputs):
    """Outputs of ``scaled_dot_product_attention`` in float64 over what is listed, row by row."""
    outputs, size, row = torch.zeros(inputs.query.shape, dtype=torch.float64), inputs.pool.page_size, 0
    latents = inputs.pool.key.double()
    if inputs.scales is not None:
        latents = latents * inputs.scales.double().repeat_interleave(128, -1)
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for position in range(total - new, total):
            listed = [key for key in inputs.indices[row, 0].tolist() if 0 <= key <= position]
            page = inputs.pool.block_table[request].long()[torch.tensor(listed) // size]
            place = page, torch.tensor(listed) % size
            keys = torch.cat([latents[place], inputs.pool.value[place].double()], -1).transpose(0, 1)
            query = torch.cat([inputs.query[row], inputs.query_rope[row]], -1).double().unsqueeze(1)
            outputs[row] = torch.nn.functional.scaled_dot_product_attention(
                query, keys, latents[place].transpose(0, 1), scale=inputs.scale
            ).squeeze(1)
            row += 1
    return outputs, row


@pytest.mark.parametrize(
    "case",
    [
        PLAIN,
        replace(PLAIN, choice="behind", order="falling"),
        replace(PLAIN, choice="fewer", recipe="needle", poison="nan"),
        replace(PLAIN, form="int8", scale=4.0),
        replace(PLAIN, requests=(Request(2, 1500),), chosen=1024, recipe="outlier"),
    ],
)
def test_torch_agrees_on_what_is_listed(case):
    inputs = build_inputs(case)
    theirs, rows = by_torch(inputs)
    expected = sparse_attention(inputs)["output"]
    assert float((theirs[:rows] - expected.value[:rows]).abs().max()) < 1e-11
    assert bool(expected.bound[rows:].isposinf().all())


@pytest.mark.parametrize("order", ["scattered", "rising"])
def test_all_keys_are_latent_attention(order):
    inputs = build_inputs(replace(PLAIN, chosen=64, order=order, padded_rows=0))
    chosen, everything = sparse_attention(inputs), latent_attention(dense(inputs))
    for name in ("output", "lse"):
        assert torch.allclose(chosen[name].value, everything[name].value, rtol=1e-12, atol=1e-13)
        assert torch.allclose(chosen[name].bound, everything[name].bound, rtol=0.02)


def test_a_row_that_sees_nothing_is_zero():
    inputs = build_inputs(PLAIN)
    indices = inputs.indices.clone()
    indices[0] = -1
    expected = sparse_attention(replace(inputs, indices=indices))
    assert not bool(expected["output"].value[0].any())
    assert not bool(expected["output"].bound[0].any())
    assert bool(expected["lse"].value[0].isneginf().all())


def test_what_is_listed_ends_at_the_first_that_is_not_and_at_the_row():
    assert seen_by(torch.tensor([3, 9, 1, -1, 2]), 5).tolist() == [3, 1]
    assert seen_by(torch.tensor([-1, 0]), 5).tolist() == []


def test_errors_of_int8_latents_are_within_the_bound():
    """Rounded to the dtype of queries, as the operator's expected values have it, and not as well."""
    inputs = build_inputs(replace(PLAIN, form="int8", heads=8))
    expected = sparse_attention(inputs)["output"]
    latents = (inputs.pool.key.float() * inputs.scales.repeat_interleave(128, -1)).bfloat16()
    rounded = replace(inputs, pool=replace(inputs.pool, key=latents), scales=None)
    error = (sparse_attention(rounded)["output"].value - expected.value)[:4].abs()
    assert bool((error <= expected.bound[:4]).all())
    assert float((error / expected.bound[:4]).max()) > 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": torch.zeros(5, 8, dtype=torch.int32)}, "indices must be"),
        ({"indices": torch.full((5, 1, 8), 99, dtype=torch.int32)}, "names no token"),
        ({"kv_lengths": (40,)}, "are not of 5 rows"),
        ({"query_rope": torch.zeros(5, 3, 32)}, "queries are of"),
        ({"scales": torch.ones(1)}, "int8 latents have scales"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sparse_attention(replace(build_inputs(PLAIN), **changes))
