"""What the reference costs at the size of Step-3.5-Flash: time over plain attention, and memory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.measure import Row, medians
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase
from npudiff.properties.sliding_attention.inputs import build_inputs
from npudiff.reference.sliding_attention import SlidingAttentionInputs, sliding_attention

CASES = {
    "decode, batch 8, 128K history": SlidingAttentionCase((Request(1, 131_072),) * 8, 512, 128, 8, 8, 128, 128),
    "2,048-token chunk on a 32K prefix": SlidingAttentionCase((Request(2048, 34_816),), 512, 128, 8, 8, 128, 128),
}
ROUNDS = {"decode, batch 8, 128K history": 15, "2,048-token chunk on a 32K prefix": 3}
ROWS = 256
"""Query rows per call of plain attention: few enough that it computes little outside the band, and fast enough."""


def rows() -> Iterator[Row]:
    """Compare the reference with float64 attention of PyTorch on the keys that the rows see."""
    for name, case in CASES.items():
        inputs = build_inputs(case)
        contestants = {"reference": lambda: sliding_attention(inputs), "plain": lambda: plain_attention(inputs)}  # noqa: B023
        times = medians(contestants, ROUNDS[name])
        ratio = times["reference"] / times["plain"]
        measured = f"{ratio:.1f} x ({times['reference']:.2f} s)"
        yield Row(f"reference, {name}: time over float64 attention on the visible keys", measured, "≤ 3 x", ratio <= 3)
        peak = _peak_memory(name)
        yield Row(f"reference, {name}: peak memory of the process", f"{peak / 1024:.2f} GiB", "≤ 1.5 GiB", peak <= 1536)


def plain_attention(inputs: SlidingAttentionInputs) -> None:
    """Run float64 ``scaled_dot_product_attention`` on the visible keys of blocks of rows; no bound, no LSE."""
    start = 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        for row in range(0, new, ROWS):
            stop = min(row + ROWS, new)
            _attend(inputs, request, start + row, stop - row, total - new + row)
        start += new


def _attend(inputs: SlidingAttentionInputs, request: int, start: int, rows: int, position: int) -> torch.Tensor:
    window = inputs.window or 2**62
    first, last = max(0, position - window + 1), position + rows
    keys, values = (cache.to(torch.float64).transpose(0, 1) for cache in inputs.kv.read(request, first, last))
    query = inputs.query[start : start + rows].to(torch.float64).transpose(0, 1)
    distance = torch.arange(position, last).unsqueeze(1) - torch.arange(first, last)
    mask = None if rows == 1 else (distance >= 0) & (distance < window)
    arguments = (query.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), mask)
    return torch.nn.functional.scaled_dot_product_attention(*arguments, scale=inputs.scale, enable_gqa=True)


def _peak_memory(name: str) -> int:
    """Peak resident memory in MiB of a process that builds the inputs and runs the reference; torch is part of it."""
    command = [sys.executable, "-m", "benchmarks.reference", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _report_peak(name: str) -> None:
    sliding_attention(build_inputs(CASES[name]))
    status = Path("/proc/self/status").read_text(encoding="ascii")  # getrusage would count the parent's peak as well
    print(int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024)


if __name__ == "__main__":
    _report_peak(sys.argv[1])
