"""How long a user waits: for help, for pytest to start with the plugin, for a whole check."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from benchmarks.measure import Row, seconds

ROUNDS = 9

_PLUGIN = """
import pytest, sys, time
started = time.perf_counter()
import npudiff.plugin
print(time.perf_counter() - started, 'torch' in sys.modules)
"""


def rows() -> Iterator[Row]:
    """Start each in a process of its own."""
    command = [sys.executable, "-m", "npudiff", "--help"]
    times = [seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(ROUNDS)]
    median = statistics.median(times)
    yield Row("`npudiff --help`", f"{median:.2f} s", "≤ 0.3 s", median <= 0.3)
    yield _plugin()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "npudiff", "check", "--output", folder, "--target", "sim"]
        taken = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    yield Row("`npudiff check` of all implementations", f"{taken:.0f} s", "≤ 60 s", taken <= 60)


def _plugin() -> Row:
    times, torch_imported = [], False
    for _ in range(ROUNDS):
        output = subprocess.run([sys.executable, "-c", _PLUGIN], check=True, capture_output=True, text=True).stdout
        taken, _, torch = output.strip().partition(" ")
        times.append(float(taken) * 1000)
        torch_imported |= torch == "True"
    median = statistics.median(times)
    what = "import of the pytest plugin" + (", which imports torch" if torch_imported else ", without torch")
    return Row(what, f"{median:.0f} ms", "≤ 20 ms", median <= 20 and not torch_imported)
