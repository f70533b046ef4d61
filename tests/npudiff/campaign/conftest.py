"""Two kernels, one of which is wrong, and the command that searches them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

KERNELS = """
import npudiff
from npudiff.device.ascend.swa_mask import window_mask


@npudiff.implementation("swa_mask", name="good")
def good(inputs, target):
    return window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)


@npudiff.implementation("swa_mask", name="bad")
def bad(inputs, target):
    mask = good(inputs, target)
    return ~mask if inputs.window == 3 else mask
"""


def entries(folder):
    """The entries of a campaign's log."""
    return [json.loads(line) for line in (folder / "campaign" / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def campaign(cli, tmp_path):
    """Write kernels, and return a function that searches them; the result has the log, and the folders of findings."""
    (tmp_path / "mine.py").write_text(KERNELS)

    def run(*arguments, impl="mine.py", time="2s", batch=20):
        common = ("--impl", impl, "--target", "sim", "--no-isolate", "-j", 1, "--output", "kept", "--seed", 7)
        result = cli("campaign", *common, "--time", time, "--batch", batch, *arguments)
        folder = tmp_path / "kept"
        log = entries(folder) if (folder / "campaign" / "log.jsonl").exists() else []
        found = sorted(path.name for path in (folder / "findings").glob("*"))
        page = folder / "campaign.html"
        return SimpleNamespace(
            **vars(result), log=log, found=found, folder=folder, page=page.read_text() if page.exists() else ""
        )

    return run


@pytest.fixture
def read_log():
    return entries
