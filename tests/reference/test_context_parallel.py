"""Attention over several ranks against attention on one: scaled_dot_product_attention, and shards counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from npudiff.properties.context_parallel.case import RECIPES, ContextParallelCase, Request
from npudiff.properties.context_parallel.inputs import POISON, build_inputs
from npudiff.reference.context_parallel import context_parallel, history, part_of_rank, rows_of_ranks

DECODE = ContextParallelCase(
    (Request(1, 9), Request(3, 21), Request(2, 2)), "decode", 3, 8, 2, own_heads=2, kv_heads=3, head_dim=16, padded=1
)
PREFILL = replace(
    DECODE, requests=(Request(7, 7), Request(13, 22), Request(1, 4)), stage="prefill", own_heads=6, padded=0
)


def plain(case):
    """Outputs and log-sum-exps of all heads, by somebody else's attention over tokens that are taken by hand."""
    inputs = build_inputs(case)
    outputs, logs, start = [], [], 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        rows = slice(start, start + new)
        start += new
        query = inputs.query[rows].double().transpose(0, 1)[None]
        if not total:
            outputs.append(torch.zeros_like(query[0].transpose(0, 1)))
            logs.append(torch.full(query.shape[1:3], -torch.inf, dtype=torch.float64).T)
            continue
        old = by_hand(inputs, request, total - new)
        key, value = (
            torch.cat([before, added[rows]]).double().transpose(0, 1)[None]
            for before, added in zip(old, (inputs.key, inputs.value), strict=True)
        )
        seen = torch.ones(new, total, dtype=torch.bool).tril(total - new)
        output = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=inputs.scale, enable_gqa=True
        )
        scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(-1, -2) * inputs.scale
        outputs.append(output[0].transpose(0, 1))
        logs.append(scores.masked_fill(~seen, -torch.inf).logsumexp(dim=-1)[0].T)
    return inputs, torch.cat(outputs), torch.cat(logs)


def by_hand(inputs, request, count):
    """Keys and values of a history: tokens are dealt one stretch after the other, like cards."""
    found, dealt = [], [0] * inputs.ranks
    rank = 0
    for token in range(count):
        if inputs.stage == "decode" and token and token % inputs.interleave == 0:
            rank = (rank + 1) % inputs.ranks
        place = dealt[rank]
        dealt[rank] += 1
        page = int(inputs.block_table[rank, request, place // inputs.page_size])
        found.append((rank, page, place % inputs.page_size))
    places = (
        tuple(torch.tensor(column, dtype=torch.long) for column in zip(*found, strict=True))
        or (torch.zeros(0, dtype=torch.long),) * 3
    )
    return inputs.key_cache[places], inputs.value_cache[places]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_it_is_plain_attention_of_all_tokens(case, recipe):
    inputs, output, lse = plain(replace(case, recipe=recipe))
    expected = context_parallel(inputs)
    parts = output.tensor_split(3, dim=1) if case.sharded else [output] * 3
    logs = lse.tensor_split(3, dim=1) if case.sharded else [lse] * 3
    torch.testing.assert_close(expected["output"].value, torch.cat(list(parts)), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(expected["lse"].value, torch.cat(list(logs)), rtol=1e-11, atol=1e-10)
    assert list(rows_of_ranks(inputs, "output")) == [len(output)] * 3
    assert expected["output"].value.shape[0] == 3 * len(output)


@pytest.mark.parametrize("interleave", [1, 2, 4, 8])
def test_shards_hold_what_dealing_by_hand_gives(interleave):
    case = replace(DECODE, interleave=interleave, requests=(Request(1, 40), Request(1, 7)), padded=0)
    inputs = build_inputs(case)
    for request, total in enumerate((40, 7)):
        found = history(inputs, request)
        assert all(map(torch.equal, found, by_hand(inputs, request, total - 1)))
        assert not (found[1] == POISON).any()


def test_lengths_of_shards_are_those_of_vllm_ascend():
    """Its own test: five tokens in stretches of four over two ranks are four and one."""
    case = ContextParallelCase((Request(1, 5),), "decode", 2, 16, 4)
    assert [case.tokens_of(rank, 5) for rank in range(2)] == [4, 1]
    for total in range(60):
        lengths = [replace(case, ranks=3).tokens_of(rank, total) for rank in range(3)]
        assert sum(lengths) == total
        assert sorted(lengths, reverse=True) == lengths
        assert lengths[0] - lengths[-1] <= 4


def test_padded_requests_see_nothing_and_say_so():
    inputs = build_inputs(DECODE)
    expected = context_parallel(inputs)
    rows = torch.tensor([start + row for start in (0, 8, 16) for row in (6, 7)])
    assert not expected["output"].value[rows].any()
    assert not expected["output"].bound[rows].any()
    assert expected["lse"].value[rows].isneginf().all()


def test_a_rank_is_given_its_own_heads_and_pools_and_may_write_into_them():
    inputs = build_inputs(DECODE)
    part = part_of_rank(inputs, 1)
    assert torch.equal(part.query, inputs.query[:, 2:4])
    assert torch.equal(part.key_cache, inputs.key_cache[1])
    before = inputs.key_cache.clone()
    part.to("cpu").key_cache.zero_()
    assert torch.equal(inputs.key_cache, before)
    assert part_of_rank(build_inputs(PREFILL), 1).query.shape[1] == 6


def test_more_ranks_have_wider_bounds():
    alone = replace(DECODE, ranks=1, own_heads=6)
    one, three = (context_parallel(build_inputs(case)) for case in (alone, DECODE))
    narrow = torch.cat(list(one["output"].bound.tensor_split(3, dim=1)))
    torch.testing.assert_close(three["output"].value, torch.cat(list(one["output"].value.tensor_split(3, dim=1))))
    assert (three["output"].bound >= narrow).all()
    assert (three["output"].bound <= 2.2 * narrow + 1e-12).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": "idle"}, "stage is one of"),
        ({"interleave": 3}, "whole stretches"),
        ({"query_lengths": (1, 3, 2, 1)}, "must add up"),
        ({"kv_lengths": (9, 21, 1, 0)}, "more new tokens than tokens"),
        ({"kv_lengths": (9, 2100, 2, 0)}, "too narrow"),
    ],
)
def test_inputs_that_contradict_each_other_are_refused(changes, said):
    inputs = replace(build_inputs(DECODE), **changes)
    with pytest.raises(ValueError, match=said):
        context_parallel(inputs)


def test_shapes_that_contradict_each_other_are_refused():
    inputs = build_inputs(DECODE)
    for changes, said in (
        ({"query": inputs.query[:, :5]}, "are not shared"),
        ({"key": inputs.key[:3]}, "of new tokens must be"),
        ({"key_cache": inputs.key_cache[..., :8]}, "pools must hold"),
        ({"block_table": inputs.block_table + 1000}, "is none of"),
    ):
        with pytest.raises(ValueError, match=said):
            context_parallel(replace(inputs, **changes))
