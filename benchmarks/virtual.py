"""What the virtual NPU costs: each ``aten`` operator beside the CPU, loading torch_npu, and the first build.

Skipped where torch_npu is not installed. ``python -m benchmarks.virtual`` prints the operators one by one.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

from benchmarks.measure import Row, seconds

ROUNDS, CALLS = 15, 40
ASKED = 100.0
"""Microseconds over the CPU."""

SEVERAL = "forward and backward"
"""The one row that is several operators."""

_TABLE = "import benchmarks.virtual as virtual; virtual.table()"
_LOAD = """
import os, time
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
import torch
from npudiff.device.virtual import enable, loading
begin = time.perf_counter()
loading.stand_in()
built = time.perf_counter()
enable()
print(built - begin, time.perf_counter() - built)
"""


def rows() -> Iterator[Row]:
    """Measure in processes of their own: the simulator of the other measurements is loaded in this one."""
    if importlib.util.find_spec("torch_npu") is None:
        return
    output = subprocess.run([sys.executable, "-c", _TABLE], check=True, capture_output=True, text=True).stdout
    over = [float(line.split()[-1]) for line in output.splitlines() if not line.startswith(SEVERAL)]
    median, worst = statistics.median(over), max(over)
    measured = f"{median:.0f} µs in the median of {len(over)} operators, at most {worst:.0f} µs"
    yield Row("an `aten` operator on the virtual NPU, over the CPU", measured, "≤ 100 µs", worst <= ASKED)
    warm = statistics.median(_loading(os.environ.get("XDG_CACHE_HOME"))[1] for _ in range(3))
    yield Row("import of torch_npu with a virtual NPU, after torch", f"{warm:.1f} s", "≤ 3 s", warm <= 3)
    with tempfile.TemporaryDirectory() as empty:
        cold = _loading(empty)[0]
    yield Row("the stand-in for CANN, built once", f"{cold:.1f} s", "≤ 10 s", cold <= 10)


def _loading(cache: str | None) -> tuple[float, float]:
    """Return the seconds for the stand-in, and for torch_npu and its kernels on it."""
    environment = dict(os.environ) if cache is None else {**os.environ, "XDG_CACHE_HOME": cache}
    command = [sys.executable, "-c", _LOAD]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    stand_in, package = map(float, output.split())
    return stand_in, package


def table() -> None:
    """Print for each operator: name, microseconds on the CPU, on the virtual NPU, and the difference."""
    for name, (host, device) in overhead().items():
        print(f"{name:28} {host:8.1f} {device:8.1f} {device - host:8.1f}")


def overhead() -> dict[str, tuple[float, float]]:
    """Return microseconds per call on the CPU and on the virtual NPU, rounds of both interleaved."""
    import npudiff.device.virtual

    npudiff.device.virtual.enable()
    host, npu = operators("cpu"), operators("npu")
    found = {}
    for name, act in host.items():
        times: tuple[list[float], list[float]] = ([], [])
        for round_ in range(ROUNDS + 1):
            for kept, one in zip(times, (act, npu[name]), strict=True):
                taken = seconds(lambda one=one: [one() for _ in range(CALLS)])
                if round_:
                    kept.append(taken / CALLS * 1e6)
        found[name] = statistics.median(times[0]), statistics.median(times[1])
    return found


def operators(place: str) -> dict[str, Callable[[], object]]:
    """Return calls of operators on small tensors of a device."""
    import torch
    from torch.nn import functional

    x, y = torch.ones(8, 16, device=place), torch.ones(8, 16, device=place)
    weight, out = torch.ones(16, 16, device=place), torch.empty(8, 16, device=place)
    index, half = torch.zeros(4, dtype=torch.int64, device=place), x.half()
    mask, heads = x > 2, torch.ones(1, 2, 8, 16, device=place)
    leaf = torch.ones(8, 16, device=place, requires_grad=True)
    image, filters = torch.ones(1, 2, 8, 8, device=place), torch.ones(2, 2, 3, 3, device=place)
    return {
        "add": lambda: x + y,
        "add_ in place": lambda: x.add_(0),
        "add, out=": lambda: torch.add(x, y, out=out),
        "multiply by a number": lambda: x * 2,
        "compare": lambda: x < y,
        "exp": lambda: x.exp(),
        "gelu": lambda: functional.gelu(x),
        "sum": lambda: x.sum(),
        "max along a dimension": lambda: x.max(-1),
        "softmax": lambda: x.softmax(-1),
        "layer_norm": lambda: functional.layer_norm(x, (16,)),
        "mm": lambda: torch.mm(x, weight),
        "matmul": lambda: x @ weight,
        "linear": lambda: functional.linear(x, weight),
        "attention": lambda: functional.scaled_dot_product_attention(heads, heads, heads),
        "conv2d": lambda: functional.conv2d(image, filters),
        "embedding": lambda: functional.embedding(index, weight),
        "index": lambda: x[index],
        "index_put_": lambda: x.index_put_((index,), y[:1]),
        "masked_fill": lambda: x.masked_fill(mask, 0),
        "gather": lambda: x.gather(0, index[:, None]),
        "sort": lambda: x.sort(),
        "topk": lambda: x.topk(2),
        "cat": lambda: torch.cat([x, y]),
        "where": lambda: torch.where(mask, x, y),
        "view": lambda: x.view(16, 8),
        "transpose, contiguous": lambda: x.t().contiguous(),
        "copy_": lambda: x.copy_(y),
        "to another dtype": lambda: half.float(),
        "to the host": lambda: x.cpu(),
        "item": lambda: x[0, 0].item(),
        "zeros": lambda: torch.zeros(8, 16, device=place),
        "randn": lambda: torch.randn(8, 16, device=place),
        SEVERAL: lambda: (leaf * x).sum().backward(),
    }


if __name__ == "__main__":
    table()
