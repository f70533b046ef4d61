"""A campaign on a Ray cluster of this machine: pytest -m ray. What needs no Ray is tested without one."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import time

import pytest

from npudiff.campaign import cluster
from npudiff.campaign.cluster import RayTeam, request_from_text, request_to_text, round_from_text, round_to_text
from npudiff.campaign.known import Knowledge
from npudiff.campaign.log import CampaignLog
from npudiff.campaign.loop import Campaign
from npudiff.campaign.rounds import Round, round_of
from npudiff.errors import DeviceLost, ExitCode
from npudiff.run.plan import Request, make_plan


def entries(folder):
    return [json.loads(line) for line in (folder / "campaign" / "log.jsonl").read_text().splitlines()]


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


SLOW = """
import os
import signal
import time

import npudiff
from npudiff.device.ascend.swa_mask import window_mask


@npudiff.implementation("swa_mask", name="slow")
def slow(inputs, target):
    time.sleep(0.01)
    try:
        os.close(os.open("to be killed", os.O_RDONLY))
        os.unlink("to be killed")
    except FileNotFoundError:
        pass
    else:
        os.kill(os.getpid(), signal.SIGKILL)
    return window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
"""


@pytest.fixture
def machines(ray):
    """Return a function that starts a cluster: a head that runs nothing, and a machine for each of some resources."""
    from ray.cluster_utils import Cluster

    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    memory = {"object_store_memory": 80 * 2**20}
    head = {**memory, "num_cpus": 0, "include_dashboard": False, "_system_config": health}
    clusters = []

    def start(*resources):
        clusters.append(Cluster(initialize_head=True, head_node_args=head))
        nodes = [clusters[-1].add_node(**memory, **one) for one in resources]
        return clusters[-1], nodes

    yield start
    ray.shutdown()
    for one in clusters:
        one.shutdown()


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """Run a campaign of the slow kernel on a team, until 40 rounds are over and what is waited for has happened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "LOOKS_EVERY", 0.5)
    (tmp_path / "slow.py").write_text(SLOW)
    request = Request(
        components=("swa_mask",), implementations=("slow.py",), target="sim", isolate=False, examples=10, mutants=0
    )

    def run(address, workers=None, cards=0, told=lambda team, campaign: None, happened=lambda knowledge: True):
        plan = make_plan(request)
        knowledge = Knowledge("here 0")
        with CampaignLog(tmp_path, knowledge, "7") as log, RayTeam(plan, address, workers, cards) as team:
            campaign = Campaign.begun(plan, tmp_path, knowledge, log)

            def tell():
                told(team, campaign)
                if sum(one.rounds for one in knowledge.jobs.values()) >= 40 and happened(knowledge):
                    raise KeyboardInterrupt

            campaign.tell = tell
            with contextlib.suppress(KeyboardInterrupt):
                campaign.run(team, time.monotonic() + 200)
            size = team.size
        return campaign, entries(tmp_path), size

    return run


def none_is_missing(log):
    """Whether no round is missing, and none was run twice; those that a campaign was ended in are not over."""
    mine = [entry for entry in log if entry["kind"] == "round" and not entry["cut"]]
    for job in {entry["job"] for entry in mine}:
        numbers = sorted(entry["number"] for entry in mine if entry["job"] == job)
        assert len(set(numbers)) == len(numbers)
        assert max(numbers) < len(numbers) + 2  # two workers: others are in flight at the end
    return len(mine)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_process_that_is_killed_in_a_round_is_told_and_the_round_is_run_again(machines, searched, tmp_path):
    there, _ = machines({"num_cpus": 1}, {"num_cpus": 1})

    def kill(team, campaign):
        if sum(one.rounds for one in campaign.knowledge.jobs.values()) == 5:
            (tmp_path / "to be killed").touch()

    campaign, log, size = searched(there.address, 2, told=kill, happened=lambda knowledge: knowledge.restarted)
    assert not (tmp_path / "to be killed").exists()
    assert size == 2
    ((worker, why),) = campaign.knowledge.restarted
    assert worker.startswith("process ")
    assert why.startswith("Ray went on with process ")
    assert none_is_missing(log) >= 40
    assert not campaign.knowledge.failed
    assert not campaign.knowledge.causes


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spare", [0, 1])
def test_a_machine_that_is_lost_loses_no_round(spare, machines, searched):
    """Its worker goes to the other machine where that has a processor to spare, and is taken out where it has none."""
    there, nodes = machines({"num_cpus": 1}, {"num_cpus": 1 + spare})
    killed = []

    def kill(team, campaign):
        if not killed and sum(one.rounds for one in campaign.knowledge.jobs.values()) >= 5:
            killed.append(next(one for one in team._actors if one.node == nodes[0].node_id).where)
            there.remove_node(nodes[0], allow_graceful=False)

    campaign, log, size = searched(there.address, 2, told=kill, happened=lambda knowledge: knowledge.restarted)
    assert size == 1 + spare
    ((worker, why),) = campaign.knowledge.restarted
    assert worker == killed[0]
    assert why.startswith("Ray went on with process " if spare else "its machine is gone, and no other one has a place")
    assert none_is_missing(log) >= 40
    assert not campaign.knowledge.failed


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_without_a_machine_it_ends(machines, searched):
    there, nodes = machines({"num_cpus": 1})

    def kill(team, campaign):
        if there.worker_nodes:
            there.remove_node(nodes[0], allow_graceful=False)

    with pytest.raises(DeviceLost, match="its machine is gone"):
        searched(there.address, 1, told=kill)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_card_of_a_cluster_that_is_lost_is_taken_out_and_its_rounds_go_elsewhere(machines, searched, monkeypatch):
    there, _ = machines({"num_cpus": 1, "resources": {"NPU": 2}}, {"num_cpus": 1, "resources": {"NPU": 1}})
    real = cluster.Worker

    class Loses(real):
        """Has lost its card, where this is the second one."""

        def run(self, request, text, seconds):
            answer = json.loads(super().run(request, text, seconds))
            if os.environ.get("ASCEND_RT_VISIBLE_DEVICES") == "1":
                answer = {"here": answer["here"], "lost": "no known answer", "card": "1"}
            return json.dumps(answer)

    monkeypatch.setattr(cluster, "Worker", Loses)
    campaign, log, size = searched(there.address, cards=3, happened=lambda knowledge: knowledge.lost)
    assert size == 2
    assert campaign.knowledge.lost == [("1", "no known answer")]
    assert [entry["kind"] for entry in log].count("lost") == 1
    assert none_is_missing(log) >= 40
