"""What a campaign costs: two local workers beside one, two machines of a Ray cluster beside these, what Ray takes.

Cases per second mean little on a machine that does other things. Two figures do not depend on that: the part of the
workers' time that is in rounds, which both stretch alike, and the time of a processor that a case takes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Row
from npudiff.campaign.causes import Causes
from npudiff.campaign.known import Knowledge
from npudiff.campaign.rounds import BATCH, Ended, Round, round_of
from npudiff.campaign.team import LocalTeam, Team
from npudiff.judge.judge import EQUIVALENCE
from npudiff.run.plan import Plan, Request, make_plan

IMPLEMENTATIONS = {"swa_mask": "eager", "swiglu": "npu_swiglu"}

SECONDS, TIMES = 10.0, 3
"""How long a team searches, and how often: those that are compared take turns."""


@dataclass(frozen=True)
class Searched:
    """What a team has done in its time."""

    workers: int
    cases: int
    seconds: float
    in_rounds: float
    """Seconds of all rounds."""
    processor: float
    """Seconds of a processor that the processes took which have ended: workers of this machine."""

    @property
    def rate(self) -> float:
        """Cases per second."""
        return self.cases / self.seconds

    @property
    def busy(self) -> float:
        """Part of the workers' time that is in rounds."""
        return self.in_rounds / (self.workers * self.seconds)


def rows() -> Iterator[Row]:
    """Have teams search; the medians of what is compared within one time."""
    plan = make_plan(
        Request(
            components=tuple(IMPLEMENTATIONS),
            implementations=tuple(IMPLEMENTATIONS.values()),
            target="sim",
            isolate=False,
            examples=BATCH,
        )
    )
    one, two = LocalTeam(plan, 1), LocalTeam(plan, 2)
    yield from _of_two(_compared({"one": one, "two": two}, plan))
    if importlib.util.find_spec("ray") is not None:
        yield _of_ray(plan, one)
        yield _of_machines(plan, two)


def _of_two(found: Mapping[str, list[Searched]]) -> Iterator[Row]:
    """Two workers over one: as measured, and by what does not depend on the load."""
    ratio = _ratio(found, "two", "one")
    what = f"a campaign's cases per second, two local workers over one (load {os.getloadavg()[0]:.0f})"
    yield Row(what, f"{ratio:.2f} x", "≥ 1.8 x", ratio >= 1.8)
    busy = {name: statistics.median(one.busy for one in times) for name, times in found.items()}
    each = {name: statistics.median(one.processor / one.cases for one in times) for name, times in found.items()}
    dearer = each["two"] / each["one"]
    likely = 2 * busy["two"] / busy["one"] / dearer
    yield Row(
        "the same by the workers' time that is in rounds, "
        f"{busy['two']:.1%} and {busy['one']:.1%}, and what a case takes of a processor, {dearer:.2f} times as much",
        f"{likely:.2f} x",
        "≥ 1.8 x",
        likely >= 1.8,
    )


def _of_ray(plan: Plan, local: Team) -> Row:
    from npudiff.campaign.cluster import RayTeam

    with RayTeam(plan, "auto", 1, 0) as team:
        found = _compared({"here": local, "there": team}, plan)
    here, there = (1 - statistics.median(one.busy for one in found[name]) for name in ("here", "there"))
    what = "what a campaign on Ray takes beside its rounds, one actor (a local worker in brackets)"
    return Row(what, f"{there:.1%} ({here:.1%})", "≤ 5 %", there <= 0.05)


def _of_machines(plan: Plan, local: Team) -> Row:
    from npudiff.campaign.cluster import RayTeam

    with _two_machines() as address, RayTeam(plan, address, 2, 0) as team:
        found = _compared({"here": local, "there": team}, plan)
    ratio = _ratio(found, "there", "here")
    here, there = (statistics.median(one.busy for one in found[name]) for name in ("here", "there"))
    what = (
        "a campaign's cases per second, a Ray cluster of two machines with a worker each, both on this one, over two "
        f"local workers (load {os.getloadavg()[0]:.0f}; time in rounds {there:.1%} and {here:.1%})"
    )
    return Row(what, f"{ratio:.2f} x", "≥ 0.9 x", ratio >= 0.9)


@contextlib.contextmanager
def _two_machines() -> Iterator[str]:
    """Give the address of a cluster of a head that runs nothing, and two machines of one processor."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 * 2**20}
    alike = {
        "worker_niceness": 0
    }  # Ray's workers stand behind all else by default, which an idle machine does not show
    head = {**memory, "num_cpus": 0, "include_dashboard": False, "_system_config": alike}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, **memory)
        yield cluster.address
    finally:
        cluster.shutdown()


def _compared(teams: Mapping[str, Team], plan: Plan) -> dict[str, list[Searched]]:
    times = [{name: _search(team, plan) for name, team in teams.items()} for _ in range(TIMES)]
    return {name: [one[name] for one in times] for name in teams}


def _ratio(found: Mapping[str, list[Searched]], one: str, other: str) -> float:
    return statistics.median(a.rate / b.rate for a, b in zip(found[one], found[other], strict=True))


def _search(team: Team, plan: Plan) -> Searched:
    """Have a team run rounds of all jobs in turn until its time is up."""
    jobs = [job for job in plan.jobs if job.prop is EQUIVALENCE]
    turn: list[Round] = [round_of("benchmark", jobs[one % len(jobs)], one) for one in range(100)]
    with tempfile.TemporaryDirectory() as folder:
        causes = Causes(Path(folder), Knowledge("benchmark"))
        before, began = _of_ended_processes(), time.monotonic()
        until = began + SECONDS
        ended = []
        for told in itertools.takewhile(lambda _: time.monotonic() < until + 60, team.run(iter([turn]), causes, until)):
            if isinstance(told, Ended) and told.outcome.cases:
                ended.append(told.outcome)
                last = time.monotonic()
        processor = _of_ended_processes() - before
    return Searched(
        team.size, sum(one.cases for one in ended), last - began, sum(one.seconds for one in ended), processor
    )


def _of_ended_processes() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
