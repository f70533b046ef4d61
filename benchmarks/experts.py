"""Products of experts: time over plain float64 products, and a layer of DeepSeek-V3's width with eight tokens."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.measure import Row, medians, seconds
from npudiff.device.ascend.moe_experts import routed_v2
from npudiff.judge.compare import compare
from npudiff.model.component import Subject
from npudiff.properties.grouped_matmul import GroupedMatmulCase, build_inputs
from npudiff.properties.moe_experts import MoeExpertsCase, component
from npudiff.reference.grouped_matmul import GroupedMatmulInputs, counts_of, grouped_matmul
from npudiff.run.discovery import load_target

CASES = {
    "bfloat16, a row per expert": GroupedMatmulCase(8, 2048, 1536, 8),
    "bfloat16, 64 rows per expert": GroupedMatmulCase(512, 2048, 1536, 8),
    "W8A8, 64 rows per expert": GroupedMatmulCase(512, 2048, 1536, 8, form="w8a8"),
    "W4A8, a row per expert": GroupedMatmulCase(8, 2048, 1536, 8, form="w4a8"),
}
LAYER = MoeExpertsCase(
    8, hidden=7168, width=2048, experts=256, top_k=8, form="w4a8", here="chosen", shared_width=2048
)  # fmt: skip


def rows() -> Iterator[Row]:
    """Compare the reference of grouped products with products alone; time a wide layer in a process of its own."""
    for name, case in CASES.items():
        inputs = build_inputs(case)
        contestants = {"reference": lambda: grouped_matmul(inputs), "plain": lambda: plain(inputs)}  # noqa: B023
        times = medians(contestants, 7)
        ratio = times["reference"] / times["plain"]
        what = f"grouped_matmul reference, {name}: time over a float64 product per expert"
        yield Row(what, f"{ratio:.2f} x", "≤ 2 x", ratio <= 2)
    command = [sys.executable, "-m", "benchmarks.experts"]
    taken, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    within = float(taken) <= 40 and int(peak) <= 6 * 1024
    yield Row(
        "W4A8 layer of DeepSeek-V3's width, 8 tokens, top 8 of 256: inputs, reference and simulator",
        f"{float(taken):.0f} s, {int(peak) / 1024:.1f} GiB",
        "≤ 40 s, ≤ 6 GiB",
        within,
    )


def plain(inputs: GroupedMatmulInputs) -> list[torch.Tensor]:
    """Float64 products of the rows of each expert that has any, as they are."""
    counts = counts_of(inputs.group_list, inputs.group_list_type, inputs.weights.experts).tolist()
    parts = torch.split(inputs.states[: sum(counts)], counts)
    return [
        part.to(torch.float64) @ inputs.weights.values[expert].to(torch.float64)
        for expert, part in enumerate(parts)
        if len(part)
    ]


def _report_layer() -> None:
    """Print seconds and peak resident memory in MiB of one case, as a run would take it; torch is part of it."""
    taken = seconds(_run_layer)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(f"{taken:.1f}", int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024)


def _run_layer() -> None:
    target = load_target("sim", None)
    inputs = component.inputs(LAYER)
    with target.activate():
        comparison = compare(component.reference(inputs), Subject(component, routed_v2, target).run(inputs))
    if not comparison.holds:
        raise SystemExit(f"the layer is not right: {comparison.worst}")


if __name__ == "__main__":
    _report_layer()
