"""How many of the wrong kernels of ``blind_kernels`` are found in the default budget, from one seed.

No failure is shrunk, and a kernel that is found by one property is not run on the next. Each component has a process of
its own, since its kernels may keep something or end it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from npudiff.judge.judge import CALL_INDEPENDENCE, EQUIVALENCE
from npudiff.model.job import Job
from npudiff.run.discovery import component_names
from npudiff.run.engine import run_job
from npudiff.run.plan import Request, make_plan

FOLDER = Path(__file__).parent / "blind_kernels"
SECONDS = 3600.0


def found_of(path: Path, seed: int) -> dict[str, str]:
    """Return the property by which each kernel of a file was found; empty text for one that was not."""
    request = Request(
        components=(path.stem,), implementations=(str(path),), target="sim", seed=seed, isolate=False, workers=1
    )
    plan = make_plan(request)
    found = {job.subject.implementation.name: "" for job in plan.jobs}
    for job in sorted(plan.jobs, key=_place):
        name = job.subject.implementation.name
        if not found[name]:
            outcome = run_job(job, replace(plan.budget(job), shrink=False))
            found[name] = job.prop.name if outcome.findings else ""
    return found


def _place(job: Job) -> int:
    first = (EQUIVALENCE.name, CALL_INDEPENDENCE.name)
    return first.index(job.prop.name) if job.prop.name in first else len(first)


def main() -> int:
    """Print what was found, a line for each component, and how many in all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blind", description=__doc__)
    parser.add_argument("components", nargs="*", help="all by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", default="*", help="folder of blind_kernels, all by default")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file is not None:
        print(json.dumps(found_of(options.file, options.seed)))
        return 0
    all_found: dict[str, str] = {}
    for path in sorted(FOLDER.glob(f"{options.folder}/*.py")):
        if path.stem not in component_names() or (options.components and path.stem not in options.components):
            continue
        command = [sys.executable, "-m", "benchmarks.blind", "--file", str(path), "--seed", str(options.seed)]
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        found: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
        all_found |= found
        missed = [name for name, by in found.items() if not by]
        print(f"{path.stem:24} {len(found) - len(missed):3} of {len(found):3}  {' '.join(missed)}", flush=True)
    count = sum(map(bool, all_found.values()))
    print(f"{count} of {len(all_found)}, {count / max(1, len(all_found)):.1%}, seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
