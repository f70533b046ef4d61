"""Adapters of latent attention: layouts, heads and masks of their calls, and prefixes in parts."""

from __future__ import annotations

import pytest

from npudiff.device import targets
from npudiff.device.ascend import latent_attention as adapters
from npudiff.properties.latent_attention.case import LatentAttentionCase
from npudiff.properties.latent_attention.inputs import build_inputs
from npudiff.properties.sliding_attention.case import Request


def inputs(*lengths, **changes):
    return build_inputs(LatentAttentionCase(tuple(Request(query, kv) for query, kv in lengths), **changes))


@pytest.mark.parametrize(("heads", "padded"), [(1, 1), (3, 4), (12, 16), (20, 32), (128, 128)])
def test_heads_are_padded_with_zeros_to_a_power_of_two(heads, padded):
    call = adapters.AbsorbedCall(inputs((1, 5), heads=heads))
    assert call.arguments("BSND", 1, 1)["num_heads"] == padded
    for part in call.queries():
        assert part.shape[1] == padded
        assert not part[:, heads:].any()


def test_one_row_has_no_mask_and_several_are_causal():
    call = adapters.AbsorbedCall(inputs((1, 5), (1, 9)))
    assert (call.arguments("BSND", 1, 1)["atten_mask"], call.arguments("BSND", 1, 1)["sparse_mode"]) == (None, 0)
    several = adapters.AbsorbedCall(inputs((2, 5), (3, 9))).arguments("TND_NTD", 2, 2)
    assert several["atten_mask"].shape == (2048, 2048)
    assert (several["sparse_mode"], several["actual_seq_qlen"], several["actual_seq_kvlen"]) == (3, [2, 5], [5, 9])


@pytest.mark.parametrize(("layout", "shape"), [("PA_BSND", (1, 16, 512)), ("PA_NZ", (1, 32, 16, 16))])
def test_pages_are_given_by_head_or_in_strips(layout, shape):
    latents, ropes = adapters.AbsorbedCall(inputs((1, 5), layout=layout)).caches(by_head=True)
    assert latents.shape[1:] == shape
    assert ropes.shape[0] == latents.shape[0]


def test_a_prefix_comes_in_chunks_of_which_short_requests_have_none():
    given = inputs((2, 102), (3, 13), (4, 4), form="expanded")
    call = adapters.ExpandedCall(given, targets.sim(None))
    assert call.prefix_parts() == [
        ([0] * 3, [48, 10, 0]), ([48] * 3, [48, 0, 0]), ([96] * 3, [4, 0, 0]),
    ]  # fmt: skip
    whole = adapters.WholePrefixCall(given, targets.sim(None))
    assert whole.prefix_parts() == [([0] * 3, [100, 10, 0])]
    assert adapters.WholePrefixCall(inputs((4, 4), form="expanded"), targets.sim(None)).prefix_parts() == []
