"""Cases of attention within chunks: what is drawn, where poison lies, and what relations see."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from draws import drawn
from npudiff.device.ascend.chunked_attention import LocalRequests, masked
from npudiff.device.targets import sim
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation
from npudiff.properties.chunked_attention import (
    POISON,
    ChunkedAttentionCase,
    Request,
    build_inputs,
    component,
    coordinates,
    seen_from,
)

CASE = ChunkedAttentionCase((Request(21, 37), Request(1, 48), Request(5, 20)), seed=4)


@functools.cache
def usual_cases():
    return drawn(component, Constraints(), 300)


@pytest.mark.slow
def test_cases_are_drawn_at_the_borders_of_chunks():
    found = usual_cases()
    regions = Counter(region for case in found for region in component.features(case))
    for region in ("query length 1", "earlier chunks", "new tokens in several chunks", "whole last chunk", "needle",
                   "shorter than a chunk"):  # fmt: skip
        assert regions[region] > len(found) / 12, (region, regions)
    assert {case.whole_pages for case in found} == {False, True}


def rows_of(case):
    """Positions of the first and the last new token of each request that has some."""
    return [(one.kv - one.query, one.kv - 1) for one in case.requests if one.query]


@pytest.mark.parametrize(
    ("share", "has"),
    [
        (0.05, lambda case: 0 in case.query_length and case.query_length != {0}),
        (0.4, lambda case: case.scale != 1.0),
        (0.1, lambda case: case.head_dim > 64 and case.head_dim % 64),
        (0.3, lambda case: case.chunk not in (1, 3, 17) and case.chunk % 16 > 1),
        (0.1, lambda case: max(case.kv_length) > 1000),
        (0.2, lambda case: any(first % case.chunk == 0 and first for first, _ in rows_of(case))),
        (0.02, lambda case: any(first % case.chunk >= 128 and first // case.chunk < last // case.chunk
                                for first, last in rows_of(case))),
    ],
    ids=["a request has no rows", "another scale", "other head dims", "chunks of any size", "later chunks",
         "rows begin with a chunk", "a border behind more than a tile of keys"],
)  # fmt: skip
def test_what_kernels_forget_is_drawn(share, has):
    found = usual_cases()
    assert sum(bool(has(case)) for case in found) > share * len(found)


def test_a_needle_weighs_the_same_whatever_the_scale_is():
    needles = replace(CASE, recipe="needle", dtype="float16")
    given = [build_inputs(replace(needles, scale=scale)) for scale in (1.0, 4.0)]
    first, second = ((inputs.query.float() * inputs.scale).flatten() for inputs in given)
    torch.testing.assert_close(first, second)


def test_chunks_of_whole_pages_are_drawn_where_they_are_asked_for():
    for wanted in (False, True):
        found = drawn(component, Constraints.of({"whole_pages": (wanted,)}), 60)
        assert {case.whole_pages for case in found} == {wanted}


def test_pages_of_chunks_that_nobody_sees_are_the_dummy_page():
    inputs = build_inputs(CASE)
    assert [seen_from(CASE, request) for request in CASE.requests] == [16, 32, 0]
    zero = [(inputs.kv.block_table[row, :3] == 0).tolist() for row in range(3)]
    assert zero == [[True, False, False], [True, True, False], [False, False, True]]
    assert bool((inputs.kv.value[0] == POISON).all())
    assert not bool((inputs.kv.value[inputs.kv.block_table[0, 1].long()] == POISON).any())
    partial = inputs.kv.value[inputs.kv.block_table[0, 2].long()]
    assert bool((partial[5:] == POISON).all())


def test_an_element_is_told_by_request_position_and_chunk():
    inputs = build_inputs(replace(CASE, padded_rows=1))
    places = coordinates(inputs, "output")
    assert places["request"].flatten().tolist() == [*[0] * 21, 1, *[2] * 5, -1]
    assert places["chunk"].flatten().tolist() == [*[1] * 16, *[2] * 5, 2, 0, *[1] * 4, -1]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (replace(CASE, chunk=0), "chunk must lie in"),
        (replace(CASE, requests=(Request(3, 2),)), "no more new tokens than tokens"),
        (replace(CASE, requests=(Request(1, 2**16),), chunk=2**16, kv_heads=64), "more than 16777216 elements"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_cases_that_cannot_be_built_are_refused(case, words):
    with pytest.raises(ValueError, match=words):
        case.check()


def judged(name, function, case):
    (prop,) = [one for one in component.relations if one.name == name]
    subject = Subject(component, Implementation("chunked_attention", "mine", function), sim(None))
    with sim(None).activate():
        return prop.check(subject, case).holds


def right(inputs, target):
    return masked(inputs, 0)


def by_length(inputs, target):
    """Be off a little where a request has many tokens, however few are in its chunk."""
    return masked(inputs, 0) * (1 + 2**-6 * (max(inputs.kv_lengths) > 50))


def by_chunk(inputs, target):
    """Read the length of a chunk for that of a request."""
    return masked(inputs, 0) * (1 + 2**-6 * (inputs.chunk > 100))


def by_place(inputs, target):
    """Give the first request other weights."""
    outputs = masked(inputs, 0)
    outputs[: inputs.query_lengths[0]] *= 2
    return outputs


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("batch_order_does_not_matter", by_place),
        ("a_long_chunk_is_causal", by_chunk),
        ("earlier_chunks_do_not_matter", by_length),
    ],
)
def test_a_relation_holds_of_what_is_right_and_finds_what_is_not(name, wrong):
    assert judged(name, right, CASE)
    assert not judged(name, wrong, CASE)


def test_a_batch_is_cut_as_local_requests():
    """The example of vllm's and sglang's sources: chunks of 4, pages of 2."""
    case = ChunkedAttentionCase((Request(4, 6), Request(10, 17), Request(5, 9)), chunk=4, page_size=2)
    inputs = build_inputs(case)
    table = torch.arange(30, dtype=torch.int32).view(3, 10)
    batch = LocalRequests(replace(inputs, kv=replace(inputs.kv, block_table=table))).batch()
    assert batch.query_lengths == (2, 2, 1, 4, 4, 1, 4, 1)
    assert batch.kv_lengths == (4, 2, 4, 4, 4, 1, 4, 1)
    assert batch.full.block_table[:, 0].tolist() == [0, 2, 12, 14, 16, 18, 22, 24]
    assert batch.full.block_table[:, 1].tolist() == [1, 3, 13, 15, 17, 19, 23, 25]
    assert batch.window is None
