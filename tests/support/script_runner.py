"""Runs scripts of findings in a process that knows no more of npudiff than the simulator, and says what came of them.

    python script_runner.py PROFILE FOLDER...

prints a line of JSON: per folder whether something was wrong, what was raised, and the bits of all that was checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import runpy
import sys
from pathlib import Path


def bits(tensor):
    """Shape, dtype and digest of a tensor."""
    import torch

    flat = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)
    digest = hashlib.sha256(bytes(flat.tolist())).hexdigest()
    return [list(tensor.shape), str(tensor.dtype), digest]


def outcome(folder, device):
    """Make the calls of one script."""
    script = runpy.run_path(str(folder / "reproduce.py"), run_name="script")
    data = folder / "reproduce.safetensors"
    run = script["Run"](script["read"](data) if data.exists() else {}, device)
    run.keep()
    seen, check = {}, run.check

    def watched(name, dtype, actual, *rest, **options):
        seen[name] = bits(actual)
        check(name, dtype, actual, *rest, **options)

    run.check, raised, said = watched, None, io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            script["calls"](run, device)
    except Exception as error:  # noqa: BLE001 - which one is what is asked
        raised = type(error).__name__
    return {"wrong": run.wrong, "raised": raised, "last": run.reached_last, "bits": seen, "said": said.getvalue()}


if __name__ == "__main__":
    from npudiff.device import simulator

    simulator.install()
    strange = (
        "safetensors",
        "npudiff.reference",
        "npudiff.properties",
        "npudiff.findings.finding",
        "npudiff.findings.reproduce",
    )
    assert not [name for name in sys.modules if name.startswith(strange)]
    with simulator.use_profile(sys.argv[1]):
        print(json.dumps({folder: outcome(Path(folder), "cpu") for folder in sys.argv[2:]}))
