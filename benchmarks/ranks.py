"""What collectives cost on virtual NPUs: the stand-in for HCCL beside gloo, in the same processes, rounds interleaved.

Skipped where torch_npu is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.measure import Row

RANKS = 4
SIZES = {"1 KiB": 1 << 10, "16 MiB": 1 << 24}
ASKED = 1.0
"""Times gloo."""

PROGRAM = """
import json, os, statistics, sys, time
import torch
import torch.distributed as dist

torch.npu.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("cpu:gloo,npu:hccl")
found = {}
for name, size in json.loads(sys.argv[1]).items():
    tensors = {"gloo": torch.zeros(size // 4), "hccl": torch.zeros(size // 4, device="npu")}
    times = {kind: [] for kind in tensors}
    calls = 50 if size < 1 << 20 else 3
    for round_ in range(16):
        for kind, tensor in tensors.items():
            dist.barrier()
            torch.npu.synchronize()
            begin = time.perf_counter()
            for _ in range(calls):
                dist.all_reduce(tensor)
                torch.npu.synchronize()
            if round_:
                times[kind].append((time.perf_counter() - begin) / calls)
    found[name] = {kind: statistics.median(taken) for kind, taken in times.items()}
if dist.get_rank() == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""


def rows() -> Iterator[Row]:
    """Measure in ranks of their own."""
    if importlib.util.find_spec("torch_npu") is None:
        return
    for name, (gloo, hccl) in all_reduces().items():
        ratio = hccl / gloo
        yield Row(
            f"all-reduce of {name} over {RANKS} virtual NPUs: time over gloo on the host",
            f"{ratio:.2f} x ({_time(hccl)}, gloo {_time(gloo)})",
            f"≤ {ASKED:g} x",
            ratio <= ASKED,
        )


def all_reduces() -> dict[str, tuple[float, float]]:
    """Return seconds of an all-reduce over gloo and on virtual NPUs, by size; each waits for the one before."""
    command = [sys.executable, "-m", "npudiff", "virtual", "--ranks", str(RANKS), "--"]
    program = [sys.executable, "-c", PROGRAM, json.dumps(SIZES)]
    done = subprocess.run([*command, *program], check=True, capture_output=True, text=True)
    said = next(line for line in done.stdout.splitlines() if "{" in line)
    found = json.loads(said[said.index("{") :])
    return {name: (times["gloo"], times["hccl"]) for name, times in found.items()}


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
