"""A campaign on a Ray cluster of this machine: pytest -m ray. What needs no Ray is tested without one."""

from __future__ import annotations

import importlib.util
import json

import pytest

from npudiff.campaign.cluster import request_from_text, request_to_text, round_from_text, round_to_text
from npudiff.campaign.rounds import Round, round_of
from npudiff.errors import ExitCode
from npudiff.run.plan import Request


@pytest.fixture
def ray():
    """Skip where Ray is not installed."""
    return pytest.importorskip("ray", reason="needs Ray: pip install 'npudiff[ray]'")


def test_what_is_sent_is_text_and_comes_back_the_same(toy, tmp_path):
    job = toy.job()
    one = round_of("name", job, 3, [{"kind": ["odd"]}])
    assert round_from_text(round_to_text(one), {job.name: job}) == one
    given = Round(job, 0, 0, given=('{"numbers":[1],"kind":"plain"}',))
    assert round_from_text(round_to_text(given), {job.name: job}) == given
    request = Request(components=("swiglu",), implementations=("a.py",), where=("x=1",), seed=3, journal=tmp_path)
    sent = request_from_text(request_to_text(request))
    assert (sent.components, sent.implementations, sent.where, sent.seed) == (("swiglu",), ("a.py",), ("x=1",), 3)
    assert sent.journal is None  # a folder of the machine that asks
    json.loads(request_to_text(request))


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_one_line_says_what_is_missing(campaign):
    result = campaign("swa_mask", "--ray", "auto")
    assert result.code == ExitCode.USAGE
    assert "pip install 'npudiff[ray]'" in result.err


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_campaign_on_ray_finds_what_a_local_one_does(ray, campaign, tmp_path):
    result = campaign("swa_mask", "--ray", "auto", time="30s")
    assert result.code == ExitCode.FINDINGS
    (name,) = result.found
    folder = tmp_path / "kept" / "findings" / name
    assert {"finding.json", "finding.html", "reproduce.py"} <= {path.name for path in folder.iterdir()}
    assert f"npudiff replay kept/findings/{name}" in (folder / "finding.json").read_text()
    assert "1 worker of Ray" in result.out
    (tmp_path / "kept").rename(tmp_path / "by_ray")
    local = campaign("swa_mask", time="4s")
    same = ("seed", "cases", "worst", "worst_case", "verdict")
    theirs = {(e["job"], e["number"]): e for e in result.log if e["kind"] == "round" and not e["cut"]}
    ours = {(e["job"], e["number"]): e for e in local.log if e["kind"] == "round" and not e["cut"]}
    common = theirs.keys() & ours.keys()
    assert len(common) > 3
    for key in common:
        assert [theirs[key][one] for one in same] == [ours[key][one] for one in same]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_cards_are_a_resource_of_the_cluster(ray, campaign):
    result = campaign("swa_mask", "--ray", "auto", "--cards", 2)
    assert result.code == ExitCode.USAGE
    assert "--cards 2: this cluster has 0 of the resource 'NPU'" in result.err
