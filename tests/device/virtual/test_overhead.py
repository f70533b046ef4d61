"""An operator on the virtual NPU costs at most 100 microseconds more than on the CPU, in the median."""

from __future__ import annotations

import statistics

import pytest

from shortest import shortest

pytestmark = pytest.mark.virtual

ASKED = 100e-6
"""Of an idle machine. The same code took 90 to 133 microseconds on one whose speed changes: by day more is let pass."""


def calls(place):
    import torch

    x, weight = torch.ones(8, 16, device=place), torch.ones(16, 16, device=place)
    index = torch.zeros(4, dtype=torch.int64, device=place)
    return (
        lambda: x + x, lambda: x.add_(0), lambda: x @ weight, lambda: x.softmax(-1), lambda: x[index],
        lambda: x.max(-1), lambda: torch.cat([x, x]), x.half, lambda: x.t().contiguous(), x.cpu,
    )  # fmt: skip


def median_overhead():
    pairs = zip(calls("cpu"), calls("npu"), strict=True)
    return statistics.median(shortest(device, 100) - shortest(host, 100) for host, device in pairs)


@pytest.mark.slow
def test_the_median_overhead_of_an_operator_is_at_most_100_microseconds():
    assert median_overhead() <= ASKED


def test_it_is_nowhere_near_a_millisecond_whatever_else_the_machine_does():
    assert median_overhead() <= 4 * ASKED
