"""The gate on the virtual NPU: a kernel that torch_npu refuses closes it, and a known issue is of its version."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from npudiff.cli import main
from npudiff.errors import ExitCode
from npudiff.run.environment import version_of

pytestmark = pytest.mark.virtual

KERNEL = """
import npudiff
import torch
from npudiff.device.ascend.swa_mask import window_mask


@npudiff.implementation("swa_mask", name="mixes_devices")
def mixes_devices(inputs, target):
    mask = window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
    return mask & torch.ones(mask.shape, dtype=torch.bool) if inputs.window == 3 else mask
"""

ISSUE = """
[[issue]]
component = "swa_mask"
implementation = "mixes_devices"
verdict = "exception"
where = ["window=3"]
target = ["virtual"]
torch_npu = "{versions}"
link = "https://example.org/issues/7"
expires = {soon}
"""


def gate(tmp_path, *arguments):
    output = tmp_path / "out"
    options = ["--impl", str(tmp_path / "mine.py"), "--target", "virtual", "--workers", "1", "--rotating", "off"]
    code = main(["gate", *options, "--examples", "60", "--budget", "120s", "--output", str(output), *arguments])
    return code, json.loads((output / "npudiff.sarif").read_text())["runs"][0]


def test_tensors_of_two_devices_close_the_gate_until_they_are_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(KERNEL)
    code, run = gate(tmp_path)
    assert code == ExitCode.FINDINGS
    assert "swa_mask.mixes_devices: equivalence: exception" in {
        result["message"]["text"].partition(" on ")[0] for result in run["results"]
    }
    assert run["automationDetails"]["id"].startswith("npudiff/virtual/")
    soon = dt.datetime.now(dt.timezone.utc).date() + dt.timedelta(days=60)
    version = version_of("torch_npu").partition(".post")[0]
    for versions, expected in ((f">={version}", ExitCode.CLEAN), (f"<{version}", ExitCode.FINDINGS)):
        (tmp_path / "known_issues.toml").write_text(ISSUE.format(versions=versions, soon=soon))
        code, run = gate(tmp_path)
        assert code == expected
        noted = [result["message"]["text"] for result in run["results"] if result["level"] == "note"]
        assert len(noted) == 1
