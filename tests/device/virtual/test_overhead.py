"""An operator on the virtual NPU costs at most 100 microseconds more than on the CPU, in the median.

On a machine that is slow for the moment that is as long as 2,000 additions in Python take."""

from __future__ import annotations

import statistics
from itertools import repeat

import pytest

from shortest import shortest

pytestmark = pytest.mark.virtual

ASKED = 100e-6


def additions():
    total = 0
    for one in repeat(1, 2000):
        total += one
    return total


def test_the_median_overhead_of_an_operator_is_at_most_100_microseconds():
    import torch

    def calls(place):
        x, weight = torch.ones(8, 16, device=place), torch.ones(16, 16, device=place)
        index = torch.zeros(4, dtype=torch.int64, device=place)
        return (
            lambda: x + x, lambda: x.add_(0), lambda: x @ weight, lambda: x.softmax(-1), lambda: x[index],
            lambda: x.max(-1), lambda: torch.cat([x, x]), x.half, lambda: x.t().contiguous(), x.cpu,
        )  # fmt: skip

    over = [
        shortest(device, 100) - shortest(host, 100) for host, device in zip(calls("cpu"), calls("npu"), strict=True)
    ]
    assert statistics.median(over) <= max(ASKED, shortest(additions, 20))
