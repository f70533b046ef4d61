from __future__ import annotations

from collections import Counter

import pytest

from npudiff.campaign.known import JobKnowledge
from npudiff.campaign.shares import FLOOR, next_jobs, shares


def known(gain=0.0, seconds=100.0, rounds=50):
    return JobKnowledge(done=rounds, seconds=seconds, gain=gain)


def test_what_brings_more_has_more_and_all_have_the_floor():
    jobs = {"finds": known(gain=10), "idle": known(), "other": known()}
    share = shares(jobs)
    assert sum(share.values()) == pytest.approx(1)
    assert share["finds"] > 5 * share["idle"]
    assert share["idle"] == share["other"] >= FLOOR / 3


def test_what_had_less_time_has_more():
    share = shares({"new": known(seconds=1, rounds=1), "old": known(seconds=1000)})
    assert share["new"] > 0.8


def test_what_has_never_run_comes_first_and_once():
    jobs = {"old": known(gain=100), "new": JobKnowledge(), "newer": JobKnowledge()}
    assert next_jobs(jobs, 40, 0.5) == ["new", "newer"]


def test_rounds_come_as_shares_say_whatever_they_take():
    jobs = {
        "long": known(seconds=500, rounds=50),  # ten seconds a round
        "short": known(seconds=5, rounds=50),
        "gains": known(gain=20, seconds=100),
    }
    share = shares(jobs)
    spent = Counter()
    turns = 200
    for turn in range(turns):
        for name in next_jobs(jobs, 40, (turn * 0.618034) % 1):
            spent[name] += jobs[name].seconds_of_a_round
    for name in jobs:
        assert spent[name] / (40 * turns) == pytest.approx(share[name], rel=0.1)


def test_a_turn_is_never_empty_and_begins_with_what_takes_long():
    jobs = {"slow": known(seconds=5000, rounds=1), "slower": known(seconds=6000, rounds=1)}
    assert len(next_jobs(jobs, 20, 0.0)) == 1
    jobs = {"a": known(seconds=50, rounds=50), "b": known(seconds=200, rounds=50)}
    assert next_jobs(jobs, 40, 0.1)[0] == "b"
