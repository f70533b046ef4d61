"""Components with history on the command line: a user's pools are checked, found wrong, kept, replayed and mended."""

from __future__ import annotations

import json
import re

import pytest

from npudiff.errors import ExitCode

POOLS = '''
import npudiff
from npudiff.device.ascend.hybrid_pools import NativePools

class Pools(NativePools):
    def unused(self, pages):
        return REST

@npudiff.implementation("hybrid_pools", name="mine", supports={"page_size": (2, 4)})
def mine(inputs, target):
    """My pools."""
    return Pools(inputs, target)
'''
RIGHT = POOLS.replace("REST", "super().unused(pages)")
WRONG = POOLS.replace("REST", "pages")
CASE = {
    "page_size": 4,
    "full_pages": 6,
    "sliding_pages": 4,
    "window": 3,
    "requests": 2,
    "prefix_sharing": True,
    "steps": [
        {"kind": "allocate", "request": 0, "tokens": 5},
        {"kind": "fork", "source": 0, "request": 1},
        {"kind": "free", "request": 0},
        {"kind": "decode", "requests": [1]},
    ],
}


@pytest.mark.slow
def test_pools_that_are_right_are_clean_and_their_steps_are_counted(cli, kernel):
    result = cli("check", "hybrid_pools", "--impl", kernel(RIGHT), "--target", "sim", "--examples", "9", "--seed", "1")
    assert result.code == ExitCode.CLEAN, result.out
    assert re.search(r"mine +3 +[6-9]\d +\d+% +0 +0\.\d\d ", result.out), result.out


def test_a_finding_is_a_trace_that_replays_until_it_is_mended(cli, kernel, tmp_path):
    path = kernel(WRONG)
    result = cli("check", "hybrid_pools", "--impl", path, "--target", "sim", "--hypothesis-profile", "ci")
    assert result.code == ExitCode.FINDINGS
    assert re.search(r"\n  case +page 2 · window \d · pools \d/\d · prefix sharing · .* · free [ab]\n", result.out)
    assert re.search(r"\n  output +pages: page 1 of [ab] belongs in the sliding pool, and is mapped to ", result.out)
    (folder,) = (tmp_path / ".npudiff" / "findings").iterdir()
    assert len(json.loads((folder / "finding.json").read_text())["case"]["steps"]) <= 3
    failed = cli("replay", folder, "--impl", path)
    assert failed.code == ExitCode.FINDINGS
    assert failed.out.startswith("FAILED hybrid_pools.mine.equivalence: page 2 · window ")
    kernel(RIGHT)
    assert cli("replay", folder, "--impl", path).out.startswith("FIXED  hybrid_pools.mine.equivalence: page 2 ")


def test_a_given_trace_is_walked_up_to_the_step_that_fails(cli, kernel):
    path = kernel(WRONG)
    arguments = ["check", "hybrid_pools", "--impl", path, "--target", "sim", "--case"]
    result = cli(*arguments, json.dumps(CASE))
    assert result.code == ExitCode.FINDINGS
    assert (
        "case       page 4 · window 3 · pools 6/4 · prefix sharing · allocate a 5 · fork a b · free a\n" in result.out
    )
    kernel(RIGHT)
    assert cli(*arguments, json.dumps(CASE)).code == ExitCode.CLEAN
    refused = cli(*arguments, json.dumps({**CASE, "steps": CASE["steps"][1:]}))
    assert refused.code == ExitCode.USAGE
    assert refused.err == "npudiff: --case: step 1, fork a b: not live: a\n"


def test_a_trace_outside_what_is_supported_is_not_applicable(cli, kernel):
    path = kernel(RIGHT)
    result = cli("check", "hybrid_pools", "--impl", path, "--target", "sim", "--case", json.dumps({"page_size": 3}))
    assert result.code == ExitCode.NOTHING_RAN
    assert "not applicable" in result.out
