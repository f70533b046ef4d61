"""A thousand calls of four ranks, with deaths, hangs and mismatched collectives among them: each is told once."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from npudiff.draw.data import Stream
from npudiff.model.component import ImplementationRaised
from npudiff.model.faults import Kind
from npudiff.run import ranks as run_ranks
from npudiff.run.discovery import load_target

RANKS = 4
NOTHING, DIES, HANGS, DIFFERS = range(4)


def planted(ranked):
    """What ranks do: a row begins with what happens, and to which rank."""

    def function(part, target):
        what, whom = int(part.rows[0, 0]), int(part.rows[0, 1])
        if what != NOTHING and whom == dist.get_rank():
            if what == DIES:
                os._exit(9)
            if what == HANGS:
                time.sleep(60)
            row = part.rows.to(target.device, copy=True)
            dist.all_reduce(row, op=dist.ReduceOp.MAX)
            return row
        return ranked.total(part, target)

    return function


def plan(calls, deaths, hangs, mismatches):
    """What happens in each call, and to which rank."""
    events = [DIES] * deaths + [HANGS] * hangs + [DIFFERS] * mismatches
    places = Stream(5, "places").permutation(calls)[: len(events)]
    happens = dict(zip(places, events, strict=True))
    return [(happens.get(call, NOTHING), call % RANKS) for call in range(calls)]


def run(subject, ranked, calls):
    """What each call is told to be: nothing, or what and of which rank."""
    for what, whom in calls:
        inputs = ranked.Rows(torch.tensor([[float(what), float(whom), float(row)] for row in range(RANKS)]))
        try:
            total = subject.run(inputs)["total"]
        except ImplementationRaised as error:
            yield of(error.__cause__)
        else:
            assert total.tolist() == [[4.0 * what, 4.0 * whom, 6.0]] * RANKS
            yield NOTHING, whom


def of(error):
    """What happened, and to which rank."""
    if error.kind is Kind.DIED:
        return DIES, int(error.text.split()[1])
    if error.kind is Kind.TIMED_OUT:
        return HANGS, int(error.text.split()[1])
    assert "max" in error.text
    assert "sum" in error.text
    return DIFFERS, who_calls(error.text, "max")


def who_calls(text, what):
    """The rank that calls something, of what npudiff's own collectives say or a device does."""
    said = text.split(" is not the same on all ranks: ")[-1]
    part = next(one for one in said.replace("; ", ", and ").split(", and ") if what in one)
    return int(part.split("rank")[-1].split()[0].strip("s,"))


SOME, THOUSAND = plan(60, 3, 1, 3), plan(1000, 20, 10, 10)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [
    pytest.param(SOME, id="some"), pytest.param(THOUSAND, id="thousand", marks=pytest.mark.slow),
])  # fmt: skip
def test_each_is_told_once_of_the_right_rank_and_call(ranked, calls):
    tells_all(ranked.subject(planted(ranked), 2.0), ranked, calls)


@pytest.mark.virtual
@pytest.mark.parametrize("calls", [
    pytest.param(SOME, id="some"), pytest.param(THOUSAND, id="thousand", marks=pytest.mark.slow),
])  # fmt: skip
def test_so_it_is_with_hccl_on_a_virtual_device(ranked, calls, request):
    target = load_target("virtual", None)
    if not ranks_cannot_be_forked(target):
        tells_all(ranked.subject(planted(ranked), 4.0, target=target), ranked, calls)
        return
    alone = [sys.executable, "-m", "pytest", "-q", "-m", "virtual", f"{__file__}::{request.node.name}"]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout


def ranks_cannot_be_forked(target):
    """Whether this process has used the device before, in other tests."""
    return run_ranks._has_used(target)


def tells_all(subject, ranked, calls):
    """Run calls, and see that nothing is left behind."""
    subject.run(ranked.inputs(RANKS))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert list(run(subject, ranked, calls)) == calls
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
    ranks = children()
    subject.target.on_ranks.close()
    assert len(ranks) >= RANKS
    assert len(children()) == len(ranks) - RANKS


def children():
    """Processes whose parent is this one, also those that have ended and nobody has waited for."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123
        return file.read().split()
