"""How long the judge that stays warm takes for a verdict, and a cold check beside importing torch."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, seconds

ROUNDS = 9

NORM = """
import npudiff, torch

@npudiff.implementation("rms_norm", supports={"rounding": ("once",)})
def mine(inputs, target):
    total = inputs.hidden if inputs.residual is None else inputs.hidden + inputs.residual
    wide = total.float()
    rstd = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + inputs.epsilon)
    weight = inputs.weight.float() + (1.0 if inputs.kind == "gemma" else 0.0)
    return {"output": (wide * rstd * weight).to(total.dtype), "rstd": rstd, "sum": total}
"""
WRONG_NORM = NORM.replace("+ inputs.epsilon", "+ 1e-3")
ATTENTION = """
import npudiff
from npudiff.device.ascend.sliding_attention import fia_extend_tnd as built_in

@npudiff.implementation("sliding_attention", supports=built_in.constraints.boxes)
def mine(inputs, target):
    return built_in(inputs, target)
"""
ONE_CASE = 1


def rows() -> Iterator[Row]:
    """Ask one judge for all verdicts."""
    command = [sys.executable, "-m", "npudiff", "serve", "--target", "sim"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as judge:

        def asked(component: str, source: str, verdict: str) -> None:
            request = {"component": component, "source": source, "seconds": 120.0}
            judge.stdin.write(json.dumps(request) + "\n")
            judge.stdin.flush()
            said = json.loads(judge.stdout.readline())
            if said["verdict"] != verdict:
                raise SystemExit(said["text"])

        asked("rms_norm", NORM, "clean")  # it is ready
        for what, component, source, verdict, most in (
            ("a wrong norm", "rms_norm", WRONG_NORM, "findings", 0.5),
            ("a right norm, 100 cases", "rms_norm", NORM, "clean", 1.0),
            ("right attention by an operator, 100 cases", "sliding_attention", ATTENTION, "clean", 5.0),
        ):
            times = [seconds(lambda: asked(component, source, verdict)) for _ in range(ROUNDS)]  # noqa: B023
            median = statistics.median(times)
            shown = f"{median:.2f} s ({min(times):.2f} to {max(times):.2f})"
            yield Row(f"warm judge, verdict on {what}", shown, f"≤ {most:g} s", median <= most)
        judge.stdin.close()
    yield _cold()


def _cold() -> Row:
    """A check of one case beside importing torch."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mine.py")
        file.write_text(NORM, encoding="utf-8")
        check = [sys.executable, "-m", "npudiff", "check", "rms_norm", "--impl", str(file), "--target", "sim"]
        check += ["--examples", str(ONE_CASE), "--output", folder, "--workers", "1", "--no-isolate"]
        torch = [sys.executable, "-c", "import torch"]
        times: dict[str, list[float]] = {"check": [], "torch": []}
        for _ in range(ROUNDS):
            times["check"].append(seconds(lambda: subprocess.run(check, check=True, capture_output=True)))
            times["torch"].append(seconds(lambda: subprocess.run(torch, check=True, capture_output=True)))
    whole, import_ = (statistics.median(times[name]) for name in ("check", "torch"))
    shown = f"{whole / import_:.2f} x ({whole:.2f} s)"
    return Row("cold `npudiff check` with one case, over importing torch", shown, "≤ 1.5 x", whole <= 1.5 * import_)
