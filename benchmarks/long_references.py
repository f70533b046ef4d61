"""References of long histories and prompts: time and memory, each in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import Row
from npudiff.reference.gated_delta import GatedDeltaInputs, gated_delta
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sparse_attention import SparseAttentionInputs, sparse_attention
from npudiff.reference.sparse_indexer import SparseIndexerInputs, sparse_indexer

BATCH, HISTORY, PAGE, CHOSEN = 8, 131_072, 128, 2048
"""A decode of DeepSeek-V3.2: no two requests share a page."""

TOKENS, HEADS, DIM = 32_768, 32, 128
"""A prompt of a linear layer."""


@dataclass(frozen=True)
class Long:
    """A call, and what is asked of its reference."""

    what: str
    run: Callable[[], Callable[[], object]]
    """Makes inputs, and returns what answers them."""
    seconds: float | None = None
    gibibytes: float | None = None
    """Of the whole process, with torch and the inputs."""


def rows() -> Iterator[Row]:
    """Run each in a process of its own."""
    for name, one in LONG.items():
        command = [sys.executable, "-m", "benchmarks.long_references", name]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        seconds, gibibytes = done["seconds"], done["gibibytes"]
        within = seconds <= (one.seconds or seconds) and gibibytes <= (one.gibibytes or gibibytes)
        asked = f"≤ {one.gibibytes:g} GiB" if one.seconds is None else f"≤ {one.seconds:g} s"
        yield Row(f"reference, {one.what}", f"{seconds:.1f} s, {gibibytes:.2f} GiB", asked, within)


def _normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.bfloat16)


def _table() -> torch.Tensor:
    pages = BATCH * HISTORY // PAGE
    return torch.randperm(pages, generator=torch.Generator().manual_seed(0)).to(torch.int32).view(BATCH, -1)


def _attention() -> Callable[[], object]:
    pages = BATCH * HISTORY // PAGE
    pool = PagedKV(_normal(pages, PAGE, 1, 512, seed=1), _normal(pages, PAGE, 1, 64, seed=2), _table())
    generator = torch.Generator().manual_seed(3)
    indices = torch.stack([torch.randperm(HISTORY, generator=generator)[:CHOSEN] for _ in range(BATCH)])
    query, rotated = _normal(BATCH, 128, 512, seed=4), _normal(BATCH, 128, 64, seed=5)
    ones, lengths = (1,) * BATCH, (HISTORY,) * BATCH
    listed = indices.to(torch.int32).unsqueeze(1)
    return partial(sparse_attention, SparseAttentionInputs(query, rotated, pool, listed, ones, lengths, 192**-0.5))


def _indexer() -> Callable[[], object]:
    query, weights = _normal(BATCH, 64, 128, seed=1), _normal(BATCH, 64, seed=2)
    keys = _normal(BATCH * HISTORY // PAGE, PAGE, 1, 128, seed=3)
    ones, lengths = (1,) * BATCH, (HISTORY,) * BATCH
    return partial(sparse_indexer, SparseIndexerInputs(query, weights, keys, _table(), ones, lengths, CHOSEN))


def _linear(*, chunked: bool) -> Callable[[], object]:
    query, key = (torch.nn.functional.normalize(_normal(TOKENS, HEADS, DIM, seed=at), dim=-1) for at in (1, 2))
    uniform = torch.rand(2, TOKENS, HEADS, generator=torch.Generator().manual_seed(3))
    slots = torch.full((TOKENS,), -1, dtype=torch.int32)
    slots[-1] = 1
    inputs = GatedDeltaInputs(
        query,
        key,
        _normal(TOKENS, HEADS, DIM, seed=4),
        uniform[0].to(torch.bfloat16),
        torch.zeros(2, HEADS, DIM, DIM),
        (TOKENS,),
        torch.zeros(1, dtype=torch.int32),
        slots,
        DIM**-0.5,
        gate=-0.05 * uniform[1],
        chunked=chunked,
    )
    return partial(gated_delta, inputs)


_DECODE = f"batch {BATCH}, {HISTORY // 1024}K history, of which no two requests share a page"
_PROMPT = f"{TOKENS:,} tokens, {HEADS} heads of {DIM}"
LONG = {
    "attention": Long(f"`sparse_attention`, 128 heads, {CHOSEN:,} keys each, {_DECODE}", _attention, gibibytes=2.0),
    "indexer": Long(f"`sparse_indexer`, 64 heads, {_DECODE}", _indexer, gibibytes=2.0),
    "tokens": Long(f"`gated_delta`, {_PROMPT}, token by token", partial(_linear, chunked=False), seconds=20.0),
    "chunks": Long(f"`gated_delta`, {_PROMPT}, in chunks", partial(_linear, chunked=True), seconds=20.0),
}
"""By name."""


def _report(name: str) -> None:
    answer = LONG[name].run()
    began = time.perf_counter()
    answer()
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text(encoding="ascii")  # getrusage would count the parent's peak as well
    kibibytes = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    print(json.dumps({"seconds": seconds, "gibibytes": kibibytes / 2**20}))


if __name__ == "__main__":
    _report(sys.argv[1])
