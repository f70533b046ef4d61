"""Shares of the time: which jobs the next rounds are of.

A job earns time by what its last rounds brought, for all the time that it has had: new regions, margins that rise,
findings. A job that brings no more than others of its age has as much time as they, one that is new has more. A part of
the time is given to all alike, since what has brought nothing for long may still do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from npudiff.campaign.known import JobKnowledge

FLOOR = 0.25
"""Part of the time that all jobs share evenly."""

HOPED_GAIN, HOPED_SECONDS = 0.5, 1.0
"""What any job may still bring, and the seconds before it has run: one that has run little is neither sure to bring
nothing, nor to go on as it began."""


def shares(jobs: Mapping[str, JobKnowledge]) -> dict[str, float]:
    """Return the share of the time that each job has; they sum up to 1, and none is less than ``FLOOR`` / jobs."""
    rates = {name: (HOPED_GAIN + one.gain) / (HOPED_SECONDS + one.seconds) for name, one in jobs.items()}
    total = sum(rates.values())
    return {name: FLOOR / len(jobs) + (1 - FLOOR) * rate / total for name, rate in rates.items()}


def next_jobs(jobs: Mapping[str, JobKnowledge], seconds: float, offset: float) -> Sequence[str]:
    """Return the jobs of the next rounds, each as often as its share asks for, those first that take longest.

    A job that has not run comes before all others. A share of less than a round is a round now and then: places of
    rounds are at equal distances along the shares, from an offset that is as likely to be anywhere (systematic
    sampling), so nothing has to be remembered from turn to turn.

    Parameters
    ----------
    jobs : mapping
        Name to what is known.
    seconds : float
        Time of all rounds together.
    offset : float
        From 0 to 1, and another one in each turn.
    """
    fresh = [name for name, one in jobs.items() if not one.rounds]
    if fresh:
        return fresh
    chosen: list[str] = []
    at = offset
    for name, share in shares(jobs).items():
        at += share * seconds / jobs[name].seconds_of_a_round
        chosen += [name] * int(at)
        at -= int(at)
    if not chosen:  # all take longer than the time
        best = shares(jobs)
        chosen = [max(jobs, key=lambda name: best[name])]
    return sorted(chosen, key=lambda name: -jobs[name].seconds_of_a_round)
