"""How many cards a campaign keeps busy: a simulation of its loop, with costs that are measured here.

Measured are rounds of implementations of several components, and what the process of the campaign does for each round:
it chooses it, reads the message, writes the log and the page. Simulated are workers that wait for it, and for no turn.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Row, seconds
from npudiff.campaign.causes import Causes
from npudiff.campaign.known import JobKnowledge, Knowledge
from npudiff.campaign.log import CampaignLog
from npudiff.campaign.loop import Campaign, seconds_of_a_turn
from npudiff.campaign.page import PageKeeper
from npudiff.campaign.rounds import BATCH, Ended, Round, round_of, task_of
from npudiff.campaign.shares import next_jobs
from npudiff.draw.data import Stream
from npudiff.files.unwritten import Unwritten
from npudiff.judge.judge import EQUIVALENCE
from npudiff.run.messages import outcome_from_message, outcome_to_message
from npudiff.run.plan import Plan, Request, make_plan
from npudiff.run.workers import TaskRunner

COMPONENTS = ("swa_mask", "rms_norm", "moe_finalize", "grouped_matmul", "sparse_indexer", "moe_experts")
"""Cheap and dear ones: of the first implementation of each a round is measured."""

CARDS, HOURS = 64, 1.0
SENDING = 0.01
"""Part of a round that Ray takes: what ``python -m benchmarks campaign`` measures."""


def rows() -> Iterator[Row]:
    """Measure costs, simulate, and say at how many cards the loop no longer keeps them busy."""
    plan = make_plan(Request(components=COMPONENTS, target="sim", isolate=False, examples=BATCH, mutants=0))
    rounds, central = measured(plan)
    lengths = ", ".join(f"{one:.2g}" for one in sorted(rounds))
    used = kept_busy(rounds, central, CARDS)
    costs = f"rounds of {lengths} s, {1e3 * central:.1f} ms of its own process for each"
    yield Row(
        f"cards that a campaign keeps busy of {CARDS}, by simulation: {costs}",
        f"{used * CARDS:.1f}",
        "≥ 57.6",
        used >= 0.9,
    )
    most = 1
    while kept_busy(rounds, central, 2 * most) >= 0.9:
        most *= 2
    yield Row("most cards of which nine in ten are busy, doubled from one on", f"{most}", "", holds=True)


def measured(plan: Plan) -> tuple[list[float], float]:
    """Return the seconds of rounds, and what the campaign's process takes for one, with the disk.

    All but the disk is time of a processor, which does not depend on what else runs.
    """
    firsts = {job.subject.component.name: job for job in reversed(plan.jobs) if job.prop is EQUIVALENCE}
    taken, ended = [], []
    for job in firsts.values():
        one = round_of("benchmark", job, 1)
        began = time.process_time()
        with contextlib.closing(TaskRunner([task_of(plan, one, None, None)])) as runner:
            outcome, _ = runner.run(0)
        taken.append(time.process_time() - began)
        ended.append((one, outcome_to_message(outcome, [])))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        knowledge = Knowledge("sim")
        with CampaignLog(root, knowledge, "benchmark") as log:
            campaign = Campaign(plan, knowledge, Causes(root, knowledge), log)
            page = PageKeeper(root, campaign, Unwritten())
            page.write("here", live=True)  # its template is compiled once
            began = time.process_time()
            for one, message in ended * 4:
                _takes(campaign, page, one, message)
            cost = (time.process_time() - began) / (4 * len(ended))
            lines = [seconds(lambda: log.add("lost", card="0", why="measured")) for _ in range(50)]
            began = time.process_time()
            chosen = campaign._next(CARDS, 1)
            choice = (time.process_time() - began) / len(chosen)
    return taken, cost + choice + statistics.median(lines)


def _takes(campaign: Campaign, page: PageKeeper, one: Round, message: Mapping[str, object]) -> None:
    outcome, _ = outcome_from_message(one.job, dict(message))
    campaign._take(Ended(one, outcome, (), cut=False))
    page.write("here", live=True)


def kept_busy(rounds: Sequence[float], central: float, cards: int) -> float:
    """Return the part of cards that is busy with rounds.

    Parameters
    ----------
    rounds : sequence of float
        Seconds of a round of each job; one takes up to a half less or more.
    central : float
        Seconds for which the campaign's own process is busy with each round: it does one after the other.
    cards : int
        Workers.
    """
    jobs = {str(place): JobKnowledge() for place in range(len(rounds))}
    varied = itertools.cycle((Stream(7, "rounds").random_uint64(2**16) / 2.0**64).tolist())
    waiting: deque[str] = deque()
    free, running = [0.0] * cards, list[tuple[float, str, float]]()
    served = busy = 0.0
    while served < HOURS * 3600:
        while free:
            if not waiting:  # as many jobs have never run as there are, and all of them come first
                waiting.extend(next_jobs(jobs, seconds_of_a_turn(jobs) * cards, 0.5))
            name = waiting.popleft()
            takes = rounds[int(name)] * (0.5 + next(varied))
            heapq.heappush(running, (heapq.heappop(free) + takes * (1 + SENDING), name, takes))
        ends, name, takes = heapq.heappop(running)
        served = max(served, ends) + central
        heapq.heappush(free, served)
        job = jobs[name]
        job.done, job.seconds, busy = job.done + 1, job.seconds + takes, busy + takes
    return busy / (cards * served)


def main() -> None:
    """Print the rows."""
    began = time.perf_counter()
    for row in rows():
        print(f"{row.what}: {row.measured} ({row.asked})")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
