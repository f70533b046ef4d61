"""What a campaign costs: two local workers beside one, and what Ray takes of a round."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure import Row
from npudiff.campaign.causes import Causes
from npudiff.campaign.known import Knowledge
from npudiff.campaign.rounds import BATCH, Ended, Round, round_of
from npudiff.campaign.team import LocalTeam, Team
from npudiff.judge.judge import EQUIVALENCE
from npudiff.run.plan import Plan, Request, make_plan

IMPLEMENTATIONS = {"swa_mask": "eager", "swiglu": "npu_swiglu"}

ROUNDS, TIMES = 8, 3
"""Rounds of a turn, and how often it is run; the teams that are compared take turns."""


def rows() -> Iterator[Row]:
    """Run the same rounds with each team; the median of what is compared within one time."""
    plan = make_plan(
        Request(
            components=tuple(IMPLEMENTATIONS),
            implementations=tuple(IMPLEMENTATIONS.values()),
            target="sim",
            isolate=False,
            examples=BATCH,
        )
    )
    teams: dict[str, Team] = {"one": LocalTeam(plan, 1), "two": LocalTeam(plan, 2)}
    ratios, cases = [], 0
    for turn in range(TIMES):
        taken = {name: _turn(team, plan, turn) for name, team in teams.items()}
        cases = taken["one"][1]
        ratios.append(taken["one"][0] / taken["two"][0])
    ratio = statistics.median(ratios)
    what = f"a campaign's cases per second, two local workers over one ({cases:,} cases a turn)"
    yield Row(what, f"{ratio:.2f} x", "≥ 1.8 x", ratio >= 1.8)
    if importlib.util.find_spec("ray") is not None:
        yield _of_ray(plan, teams["one"])


def _of_ray(plan: Plan, local: Team) -> Row:
    from npudiff.campaign.cluster import RayTeam

    overheads = []
    with RayTeam(plan, "auto", 1, 0) as team:
        for turn in range(TIMES):
            here, there = _overhead(local, plan, turn), _overhead(team, plan, turn)
            overheads.append((here, there))
    here, there = (statistics.median(column) for column in zip(*overheads, strict=True))
    what = "what a campaign on Ray takes beside its rounds, one actor (a local worker in brackets)"
    return Row(what, f"{there:.1%} ({here:.1%})", "≤ 5 %", there <= 0.05)


def _rounds(plan: Plan, turn: int) -> list[Round]:
    jobs = [job for job in plan.jobs if job.prop is EQUIVALENCE]
    return [round_of("benchmark", jobs[one % len(jobs)], turn * ROUNDS + one) for one in range(ROUNDS)]


def _run(team: Team, rounds: Sequence[Round]) -> tuple[float, list[Ended]]:
    with tempfile.TemporaryDirectory() as folder:
        causes = Causes(Path(folder), Knowledge("benchmark"))
        began = time.perf_counter()
        ended = [one for one in team.run(rounds, causes, None) if isinstance(one, Ended)]
        return time.perf_counter() - began, ended


def _turn(team: Team, plan: Plan, turn: int) -> tuple[float, int]:
    seconds, ended = _run(team, _rounds(plan, turn))
    return seconds, sum(one.outcome.cases for one in ended)


def _overhead(team: Team, plan: Plan, turn: int) -> float:
    """Return the part of the time of a turn that is none of its rounds'."""
    seconds, ended = _run(team, _rounds(plan, turn))
    return 1 - sum(one.outcome.seconds for one in ended) / seconds
