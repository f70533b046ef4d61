"""The loop with a team that is told what to do: lost processes, lost cards, jobs that are given up."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from npudiff.campaign.known import Knowledge
from npudiff.campaign.log import CampaignLog
from npudiff.campaign.loop import MOST_FAILURES, Campaign
from npudiff.campaign.rounds import LOOKS_INSIDE, CardLost, Ended, Failed, narrowed, round_of
from npudiff.campaign.team import VISIBLE, LocalTeam, cards_named
from npudiff.errors import DeviceLost
from npudiff.model.job import Outcome
from npudiff.run.plan import Plan, Request

NOWHERE = SimpleNamespace(keep=lambda: lambda outcome: ())
"""Causes of rounds that find nothing."""


class Team:
    """Ends each round at once, but for those of which it is told something else."""

    where = "a test"

    def __init__(self, told=lambda one: None, size=1, turns=4):
        self.told, self.size, self.turns = told, size, turns
        self.ran = []

    def run(self, turns, causes, until):
        for rounds in itertools.islice(turns, self.turns):
            for one in rounds:
                self.ran.append((one.job.name, one.number))
                yield self.told(one) or Ended(one, Outcome(one.job, cases=5, seconds=4.0), (), cut=False)
                if not self.size:
                    return
        raise KeyboardInterrupt


@pytest.fixture
def searched(toy, tmp_path):
    """Run a campaign of two jobs with a team."""

    def run(team):
        job = toy.job()
        jobs = (job, replace(job, prop=toy.REPEATS))
        knowledge = Knowledge("here 0")
        with CampaignLog(tmp_path, knowledge, "name") as log:
            campaign = Campaign.begun(
                Plan(job.subject.target, jobs, (), Request(isolate=False)), tmp_path, knowledge, log
            )
            with pytest.raises(KeyboardInterrupt):
                campaign.run(team, None)
        return campaign

    return run


def test_a_round_that_was_lost_is_run_again_and_no_other(searched):
    lost = []

    def told(one):
        if one.number == 1 and one.job.prop.name == "repeats" and not lost:
            lost.append(one)
            return Failed(one, "the process died: signal SIGKILL")
        return None

    team = Team(told)
    campaign = searched(team)
    again = [one for one in team.ran if one == ("toy.mine.repeats", 1)]
    assert len(again) == 2
    assert len(team.ran) == len(set(team.ran)) + 1
    assert campaign.knowledge.failed == [("toy.mine.repeats", "the process died: signal SIGKILL")]
    assert not campaign.given_up


def test_a_job_whose_rounds_fail_each_time_is_given_up_and_told(searched):
    team = Team(lambda one: Failed(one, "boom") if one.job.prop.name == "repeats" else None, turns=9)
    campaign = searched(team)
    assert [name for name, _ in team.ran].count("toy.mine.repeats") >= MOST_FAILURES
    assert campaign.given_up == ["toy.mine.repeats"]
    assert team.ran[-1][0] == "toy.mine.equivalence"


def test_without_a_card_it_ends(toy, tmp_path):
    job = toy.job()
    team = Team()

    def lost(one):
        team.size = 0
        return CardLost("5", "no known answer", one)

    team.told = lost
    knowledge = Knowledge("here 0")
    with CampaignLog(tmp_path, knowledge, "name") as log:
        campaign = Campaign.begun(
            Plan(job.subject.target, (job,), (), Request(isolate=False)), tmp_path, knowledge, log
        )
        with pytest.raises(DeviceLost, match="5: no known answer"):
            campaign.run(team, None)
    assert knowledge.lost == [("5", "no known answer")]


def test_a_card_that_is_lost_is_taken_out_and_its_rounds_go_elsewhere(toy, monkeypatch):
    """Two cards, one of which gives no known answer."""
    monkeypatch.setenv(VISIBLE, "4,7")

    def right(inputs, target):
        time.sleep(0.05)
        return toy.double(inputs)

    @contextlib.contextmanager
    def activate():
        if os.environ[VISIBLE] == "7":
            raise DeviceLost("no known answer")
        yield

    job = toy.job(right)
    job = replace(job, subject=replace(job.subject, target=replace(job.subject.target, activate=activate)))
    plan = Plan(job.subject.target, (job,), (), Request(isolate=False, examples=2))
    cards = cards_named(2)
    assert cards == ["4", "7"]
    team = LocalTeam(plan, 1, cards)
    assert team.where == "2 cards"
    rounds = [round_of("name", job, number) for number in range(6)]
    told = list(team.run(iter([rounds]), NOWHERE, None))
    (lost,) = [one for one in told if isinstance(one, CardLost)]
    assert (lost.card, lost.why) == ("7", "no known answer")
    assert team.where == "1 card"
    left = [one for one in rounds if one not in [end.round for end in told if isinstance(end, Ended)]]
    assert left == [lost.round]  # the other card has run the rest
    rest = list(team.run(iter([left]), NOWHERE, None))
    assert [one.round for one in rest] == left


def test_a_worker_that_dies_loses_its_round_only(toy):
    def dies(inputs, target):
        if inputs.x.numel() and float(inputs.x[0]) == 999:
            os._exit(3)
        return toy.double(inputs)

    job = toy.job(dies)
    plan = Plan(job.subject.target, (job,), (), Request(isolate=False, examples=3))
    rounds = [round_of("name", job, number) for number in range(4)]
    rounds[1] = replace(rounds[1], given=('{"numbers":[999],"kind":"plain"}',))
    team = LocalTeam(plan, 2)
    told = list(team.run(iter([rounds]), NOWHERE, None))
    (failed,) = [one for one in told if isinstance(one, Failed)]
    assert failed.round == rounds[1]
    assert "died: exit code 3" in failed.why
    ended = [one.round.number for one in told if isinstance(one, Ended)]
    assert sorted(ended) == [0, 2, 3]


def test_nobody_waits_for_the_end_of_a_turn(toy, tmp_path):
    """One round is not over before rounds of the next two turns are: whoever is free goes on."""

    def waits(inputs, target):
        if inputs.x.numel() and float(inputs.x[0]) == 999:
            while len(list(tmp_path.iterdir())) < 3:
                time.sleep(0.005)
        elif inputs.x.numel():
            (tmp_path / str(float(inputs.x[0]))).touch()
        return toy.double(inputs)

    job = toy.job(waits)
    plan = Plan(job.subject.target, (job,), (), Request(isolate=False, examples=1))
    long, *short = [
        replace(round_of("name", job, number), given=(f'{{"numbers":[{value}],"kind":"plain"}}',))
        for number, value in enumerate((999, 1, 2, 3))
    ]
    team = LocalTeam(plan, 2)
    told = list(team.run(iter([[long, short[0]], [short[1]], [short[2]]]), NOWHERE, None))
    assert sorted(one.round.number for one in told) == [0, 1, 2, 3]
    assert not any(one.outcome.findings for one in told)


def test_a_round_that_runs_is_not_chosen_again(searched):
    """One of the first rounds ends, the other one runs on while the next turns are asked for."""
    team, given = Team(), []

    def run(turns, causes, until):
        rounds = next(turns)
        given.extend((one.job.name, one.number) for one in rounds)
        assert next(turns) == []  # nobody knows yet whether a case can be drawn
        yield Ended(rounds[0], Outcome(rounds[0].job, cases=5, seconds=4.0), (), cut=False)
        for later in itertools.islice(turns, 3):
            given.extend((one.job.name, one.number) for one in later)
        raise KeyboardInterrupt

    team.run = run
    campaign = searched(team)
    assert len(given) > 8
    assert len(set(given)) == len(given)
    assert len(campaign.flying) == len(given) - 1


def test_known_regions_are_left_out_but_now_and_then(toy):
    job = toy.job()
    odd = {"kind": ["odd"]}
    assert narrowed(job, [odd]).constraints.allows({"kind": ("plain",)})
    assert not narrowed(job, [odd]).constraints.allows({"kind": ("odd",)})
    assert narrowed(job, [{}]) is None  # nobody knows where it fails
    assert narrowed(job, [odd, {"kind": ["plain"]}]) is None  # everywhere
    assert narrowed(job, [{"gone": [1]}]) is None
    regions = [round_of("name", job, number, [odd]).regions for number in range(2 * LOOKS_INSIDE)]
    assert regions.count(()) == 2
    assert round_of("name", job, 3).seed == round_of("name", job, 3).seed != round_of("name", job, 4).seed
