"""An operator on the virtual NPU costs at most 100 microseconds more than on the CPU, in the median."""

from __future__ import annotations

import statistics
import time

import pytest

pytestmark = pytest.mark.virtual

ASKED = 100e-6


def test_the_median_overhead_of_an_operator_is_at_most_100_microseconds():
    import torch

    def calls(place):
        x, weight = torch.ones(8, 16, device=place), torch.ones(16, 16, device=place)
        index = torch.zeros(4, dtype=torch.int64, device=place)
        return (
            lambda: x + x, lambda: x.add_(0), lambda: x @ weight, lambda: x.softmax(-1), lambda: x[index],
            lambda: x.max(-1), lambda: torch.cat([x, x]), x.half, lambda: x.t().contiguous(), x.cpu,
        )  # fmt: skip

    over = []
    for host, device in zip(calls("cpu"), calls("npu"), strict=True):
        shortest = []
        for call in (host, device):
            times = []
            for _ in range(100):
                started = time.perf_counter()
                call()
                times.append(time.perf_counter() - started)
            shortest.append(min(times))  # the one that nothing else interrupted: this runs beside other tests
        over.append(shortest[1] - shortest[0])
    assert statistics.median(over) <= ASKED
