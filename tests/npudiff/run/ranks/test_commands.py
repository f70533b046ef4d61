"""Commands on a component of several ranks, which a guide builds: what is listed, found, replayed and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import warm
from npudiff.errors import ExitCode

GUIDE = (Path(__file__).parents[4] / "docs" / "ranks.md").read_text(encoding="utf-8")
MINE = """
import npudiff, torch, torch.distributed as dist

@npudiff.implementation("row_parallel")
def of_the_last_rank(own, target):
    part = own.x @ own.weight.t()
    dist.all_reduce(part)
    return part + own.bias * (1 + (dist.get_rank() == dist.get_world_size() - 1))
"""


@pytest.fixture
def folder(tmp_path):
    blocks = re.findall(r"```python\n# row_parallel\.py\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "row_parallel.py").write_text("".join(blocks), encoding="utf-8")
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    return tmp_path


def ran(*arguments, cwd, code=ExitCode.CLEAN):
    done = warm.run(*arguments, "--json", "said.json", cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads((cwd / "said.json").read_text())


def test_a_finding_is_told_with_its_rank_and_replayed(folder):
    own = ("--component", "row_parallel.py", "--impl", "mine.py")
    checked = ran("check", "row_parallel", *own, "--target", "sim", "--seed", 1, "--where", "ranks=2,3",
                  cwd=folder, code=ExitCode.FINDINGS)  # fmt: skip
    (finding,) = checked["findings"]
    told = json.loads((folder / finding["folder"] / "finding.json").read_text())
    assert told["case"]["ranks"] == 2
    assert "rank 1" in json.dumps(told["detail"])
    assert "replay runs all of them" in json.dumps(told["detail"])
    again = ran("replay", finding["folder"], *own, cwd=folder, code=ExitCode.FINDINGS)
    assert {one["verdict"] for one in again["replays"]} == {"FAILED"}


def test_the_listing_says_that_ranks_compute_it(folder):
    (listed,) = ran("list", "--component", "row_parallel.py", cwd=folder)["components"]
    assert listed["ranks"] is True
    done = warm.run("list", "row_parallel", "--component", "row_parallel.py", cwd=folder)
    assert "is what each rank runs" in done.stdout
    assert "outputs: y of all ranks" in done.stdout


@pytest.mark.slow
def test_a_candidate_that_is_not_trusted_is_refused(folder):
    component = folder / "named.py"
    component.write_text(MINE.replace('"row_parallel"', '"context_parallel"'), encoding="utf-8")
    done = warm.run("check", "context_parallel", "--impl", "named.py", "--untrusted", "--target", "sim", cwd=folder)
    assert done.returncode == ExitCode.USAGE
    assert "computed by several ranks, and not with --untrusted" in done.stderr
