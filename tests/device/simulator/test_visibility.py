"""Visibility on its own: bands by element, tiles, and live rows, against the rule written out."""

import itertools

import pytest
import torch

from npudiff.device.simulator.fused_attention.sparse_modes import sequence_mask
from npudiff.device.simulator.fused_attention.visibility import Visibility


@pytest.mark.parametrize("before", [None, -2, 0, 3])
@pytest.mark.parametrize("after", [None, -2, 0, 3])
def test_hidden_is_the_rule_by_element(before, after):
    visibility = Visibility(queries=7, keys=9, live_rows=range(7), before=before, after=after)
    for rows, (start, stop) in itertools.product((range(7), range(2, 5), range(6, 7)), ((0, 9), (3, 8), (8, 9))):
        hidden = visibility.hidden(rows, start, stop)
        for i, j in itertools.product(rows, range(start, stop)):
            rule = (before is not None and j < i - before) or (after is not None and j > i + after)
            assert (False if hidden is None else hidden[i - rows[0], j - start].item()) == rule


@pytest.mark.parametrize("before", [None, -2, 0, 3])
@pytest.mark.parametrize("after", [None, -2, 0, 3])
def test_key_range_is_what_any_row_sees(before, after):
    visibility = Visibility(queries=7, keys=9, live_rows=range(7), before=before, after=after)
    for rows in (range(7), range(2, 5), range(6, 7)):
        start, stop = visibility.key_range(rows)
        low = [0 if before is None else i - before for i in rows]
        high = [8 if after is None else i + after for i in rows]
        assert start == max(0, min(low))
        assert stop == min(9, max(high) + 1)


def test_a_band_that_hides_nothing_costs_no_mask():
    visibility = Visibility(queries=700, keys=1400, live_rows=range(700), before=650, after=700)
    assert visibility.hidden(range(128), 0, 512) is None
    assert visibility.hidden(range(600, 700), 0, 512) is not None


@pytest.mark.parametrize(
    ("shape", "decode", "expected"),
    [
        ((5, 7), False, (5, 7)),
        ((2, 5, 7), False, (5, 7)),
        ((2, 1, 5, 7), False, (5, 7)),
        ((2, 7), True, (1, 7)),
        ((2, 1, 7), True, (1, 7)),
        ((2, 1, 1, 7), True, (1, 7)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8])
def test_sequence_mask_is_rows_by_keys(shape, decode, expected, dtype):
    mask = (torch.arange(torch.Size(shape).numel()).view(shape) % 3 == 0).to(dtype)
    part = sequence_mask(mask, 1, decode=decode)
    assert tuple(part.shape) == expected
    whole = mask if len(shape) == 2 and not decode else mask[1]
    assert torch.equal(part.flatten(), whole.flatten().bool())


def test_sequence_mask_serves_all_from_one():
    mask = torch.rand(1, 1, 5, 7) < 0.5
    assert torch.equal(sequence_mask(mask, 3, decode=False), mask[0, 0])
