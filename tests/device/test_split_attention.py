"""Attention in parts: how a history is cut, and parts that are put together, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from npudiff.device import ascend, targets
from npudiff.device.ascend.split_attention import Part, SplitAttention
from npudiff.judge.compare import compare
from npudiff.model.component import Subject
from npudiff.properties.sliding_attention import component
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase

CASE = SlidingAttentionCase((Request(1, 40),), 3)


def attention(case=CASE):
    return SplitAttention(component.inputs(case), targets.sim(None))


def part(output, lse):
    return Part(torch.tensor([[[output]]]), torch.tensor([[lse]]))


@pytest.mark.parametrize(
    ("total", "spans"),
    [
        (0, [(0, 0)] * 4),
        (16, [(0, 16), (16, 16), (16, 16), (16, 16)]),
        (33, [(0, 16), (16, 32), (32, 33), (33, 33)]),
        (64, [(0, 16), (16, 32), (32, 48), (48, 64)]),
        (65, [(0, 32), (32, 64), (64, 65), (65, 65)]),
    ],
)
def test_parts_are_whole_pages(total, spans):
    assert attention().spans(total) == spans


def test_parts_weigh_as_much_as_their_exponentials():
    merged = attention().merged([part(8.0, math.log(3.0)), part(0.0, math.log(1.0)), part(5.0, -math.inf)])
    assert merged.output.item() == pytest.approx(6.0)
    assert merged.lse.item() == pytest.approx(math.log(4.0))


def test_nothing_is_seen_where_no_part_sees_anything():
    merged = attention().merged([part(0.0, -math.inf)] * 2)
    assert (merged.output.item(), merged.lse.item()) == (0.0, -math.inf)


def test_a_sink_is_one_part_without_a_value():
    split = attention(replace(CASE, sinks=True))
    query = split.inputs.query
    parts = [split.empty(query)] * 4
    sink, *rest = split.with_sink(parts, query)
    assert sink.lse.item() == split.inputs.sinks.float().item()
    assert not sink.output.any()
    assert rest == parts
    assert attention().with_sink(parts, query) == parts


def test_what_left_the_window_of_every_row_is_not_read():
    split, read = attention(), []
    split.gathered = lambda request, keys: read.append(keys.tolist()) or SplitAttention.gathered(split, request, keys)
    split.run()
    assert read == [[37, 38, 39]]


@pytest.mark.parametrize("layout", ["PA_BSND", "PA_NZ"])
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_across_parts_are_right_in_both_layouts(layout, sinks):
    requests = (Request(20, 70), Request(1, 0), Request(3, 2), Request(1, 300))
    drawn = SlidingAttentionCase(requests, 9, layout=layout, sinks=sinks, kv_heads=2, group=3, poison="nan")
    inputs = component.inputs(drawn)
    outputs = Subject(component, ascend.split_kv, targets.sim(None)).run(inputs)
    assert compare(component.reference(inputs), outputs).holds
