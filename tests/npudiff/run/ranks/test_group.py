"""Groups of ranks: what lives on between calls, and of which rank a failure is told."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from npudiff.model.component import ImplementationRaised, NotApplicable
from npudiff.model.faults import Faulted, Kind
from npudiff.model.implementation import Implementation
from npudiff.run.ranks import group as groups


def told(ranked, function, ranks=4, seconds=20.0):
    """The error of a call that fails."""
    with pytest.raises(ImplementationRaised) as caught:
        ranked.subject(function, seconds).run(ranked.inputs(ranks))
    return caught.value.__cause__


def of_rank(ranked, number, does):
    """What one rank does, where all others add rows."""

    def function(part, target):
        return does(part, target) if dist.get_rank() == number else ranked.total(part, target)

    return function


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_answer_is_right_for_any_number_of_ranks(ranked, ranks):
    inputs = ranked.inputs(ranks)
    expected = ranked.component.reference(inputs)["total"].value
    assert ranked.subject().run(inputs)["total"].tolist() == expected.tolist()


def test_ranks_live_on_between_calls_and_each_call_is_one_of_its_own(ranked):
    def process(part, target):
        dist.all_reduce(part.rows.clone())
        return torch.full_like(part.rows, os.getpid())

    subject = ranked.subject(process)
    first, second = (subject.run(ranked.inputs(3))["total"][:, 0].tolist() for _ in range(2))
    assert first == second
    assert len(set(first)) == 3
    assert os.getpid() not in first


def test_ranks_are_made_anew_for_an_implementation_that_they_do_not_know(ranked):
    subject = ranked.subject(ranked.total)
    assert subject.run(ranked.inputs(2))["total"].tolist() == [[3.0, 5.0, 7.0]] * 2
    other = Implementation("sums", "other", lambda part, target: ranked.total(part, target) + 1)
    changed = type(subject)(subject.component, other, subject.target)
    assert changed.run(ranked.inputs(2))["total"].tolist() == [[4.0, 6.0, 8.0]] * 2


def test_what_a_rank_raises_is_told_of_it_with_the_place(ranked):
    def raises(part, target):
        raise ValueError("no such slot")

    error = told(ranked, of_rank(ranked, 2, raises))
    assert (error.name, error.text, error.kind) == ("ValueError", "rank 2 of 4: no such slot", Kind.RAISED)
    assert any("in raises" in frame for frame in error.frames)


@pytest.mark.parametrize(("end", "said"), [
    (lambda: os._exit(3), "exit code 3"), (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
])  # fmt: skip
def test_a_rank_that_dies_is_told_and_nobody_waits_for_it(ranked, end, said):
    began = time.monotonic()
    error = told(ranked, of_rank(ranked, 1, lambda part, target: end()))
    assert error.kind is Kind.DIED
    assert error.text.startswith("rank 1 of 4: the process")
    assert said in error.text
    assert time.monotonic() - began < 5


def test_a_rank_that_hangs_is_told_and_not_those_that_wait_for_it(ranked):
    def hangs(part, target):
        time.sleep(60)

    error = told(ranked, of_rank(ranked, 3, hangs), seconds=2.0)
    assert error.kind is Kind.TIMED_OUT
    assert error.text == "rank 3 of 4: no answer within 2 s"
    assert any("in hangs" in frame for frame in error.frames)


def test_a_rank_that_takes_no_part_is_told_at_once(ranked):
    began = time.monotonic()
    error = told(ranked, of_rank(ranked, 2, lambda part, target: part.rows.clone()))
    assert error.text.startswith("rank 2 has ended its call, and rank 0 waits for it in all_reduce sum")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("odd", [0, 2])
def test_a_rank_that_calls_something_else_is_told_with_what_all_call(ranked, odd):
    def other(part, target):
        row = part.rows.clone()
        dist.all_reduce(row, op=dist.ReduceOp.MAX)
        return row

    error = told(ranked, of_rank(ranked, odd, other))
    assert error.name == "RanksDiffer"
    assert error.text.startswith(f"rank {odd} calls all_reduce max of [1, 3] of torch.float32; ranks ")
    assert " call all_reduce sum of [1, 3] of torch.float32" in error.text


@pytest.mark.slow
def test_two_ranks_that_wait_for_each_other_give_up(ranked):
    def receives(part, target):
        dist.recv(part.rows.clone(), src=1 - dist.get_rank())
        return part.rows

    error = told(ranked, receives, ranks=2, seconds=2.0)
    assert error.text == "rank 0 has waited for rank 1 in recv of [1, 3] of torch.float32, and it did not come"


@pytest.mark.parametrize(("answer", "said"), [
    (lambda row: row.expand(2, -1), "rank 1 of 3 has to return 1 rows of total, got [2, 3]"),
    (lambda row: row[0], "rank 1 of 3 has to return 1 rows of total, got [3]"),
    (lambda row: row.double(), "rank 1 of 3 returns total of shape [1, 3] of torch.float64, and rank 0"),
    (lambda row: row[:, :2], "rank 1 of 3 returns total of shape [1, 2] of torch.float32, and rank 0"),
])  # fmt: skip
def test_what_one_rank_returns_has_to_go_with_the_others(ranked, answer, said):
    error = told(ranked, of_rank(ranked, 1, lambda part, target: answer(ranked.total(part, target))), ranks=3)
    assert str(error).startswith(said)


def test_a_rank_that_writes_into_its_inputs_is_told(ranked):
    def writes(part, target):
        dist.all_reduce(part.rows)
        return part.rows.clone()

    error = told(ranked, writes, ranks=2)
    assert error.text == "rank 0 of 2: the implementation wrote into its inputs: rows"


def test_after_a_failure_the_next_call_is_made_by_new_ranks(ranked):
    def sometimes(part, target):
        if float(part.rows.max()) > 100 and dist.get_rank() == 1:
            os._exit(1)
        return ranked.total(part, target)

    subject = ranked.subject(sometimes)
    fails = ranked.Rows(torch.full((2, 1), 200.0))
    for _ in range(2):
        assert subject.run(ranked.inputs(2))["total"][0].tolist() == [3.0, 5.0, 7.0]
        with pytest.raises(ImplementationRaised, match="rank 1 of 2"):
            subject.run(fails)


def test_what_was_begun_and_never_waited_for_is_no_answer_to_anything_else(ranked):
    subject = ranked.subject()
    subject.begin(ranked.inputs(2))
    assert subject.run(ranked.Rows(torch.full((2, 1), 4.0)))["total"].tolist() == [[8.0], [8.0]]


@pytest.mark.slow
def test_calls_in_which_nobody_communicates_do_not_fill_the_lines(ranked):
    alone = ranked.subject(lambda part, target: part.rows.clone(), seconds=4.0)
    inputs = ranked.inputs(2)
    began = time.monotonic()
    for _ in range(600):  # a line holds some 280 messages that nobody reads
        alone.run(inputs)
    assert time.monotonic() - began < 20


def test_nothing_is_left_behind(ranked):
    def process(part, target):
        dist.all_reduce(part.rows.clone())
        return torch.full_like(part.rows, os.getpid())

    subject = ranked.subject(process)
    ranks = [int(number) for number in subject.run(ranked.inputs(4))["total"][:, 0]]
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        told(ranked, of_rank(ranked, 1, lambda part, target: os._exit(1)))
    subject.target.on_ranks.close()
    assert not [rank for rank in ranks if os.path.exists(f"/proc/{rank}")]  # noqa: PTH110
    assert len(os.listdir("/proc/self/fd")) <= files  # noqa: PTH208


@pytest.mark.slow
def test_the_ranks_that_live_on_are_not_too_many(ranked, monkeypatch):
    monkeypatch.setattr(groups, "MOST_RANKS", 4)
    subject = ranked.subject()
    for ranks in (1, 2, 3, 1, 2, 3, 8):
        assert len(subject.run(ranked.inputs(ranks))["total"]) == ranks


def test_as_many_devices_are_needed_as_ranks(ranked):
    with pytest.raises(NotApplicable, match="2 ranks need as many devices, and 1 are here"):
        ranked.subject(devices=lambda: 1).run(ranked.inputs(2))


@pytest.mark.slow
def test_ranks_end_with_the_target_that_had_them(ranked):
    def process(part, target):
        dist.all_reduce(part.rows.clone())
        return torch.full_like(part.rows, os.getpid())

    subject = ranked.subject(process, kept=False)
    ranks = [int(number) for number in subject.run(ranked.inputs(3))["total"][:, 0]]
    del subject
    gc.collect()
    assert not [rank for rank in ranks if os.path.exists(f"/proc/{rank}")]  # noqa: PTH110


def test_what_is_not_here_on_one_rank_is_no_fault_of_those_that_wait_for_it(ranked):
    class NotHere(Exception):
        pass

    def absent(part, target):
        raise NotHere("no such package")

    subject = ranked.subject(of_rank(ranked, 1, absent))
    item = replace(subject.implementation, absent=(NotHere,))
    with pytest.raises(NotApplicable, match="no such package"):
        replace(subject, implementation=item).run(ranked.inputs(3))


def test_a_process_that_is_gone_is_asked_nothing_and_nothing_else_is_ended(ranked):
    rank = groups._Rank([ranked.subject()], [{}], 0, "", 1.0)
    rank.kill()
    assert rank.gone
    rank.tell({"call": 1})
    with pytest.raises(Faulted, match="the process is gone"):
        rank.hear()
    rank.kill()


def test_ranks_leave_nothing_on_disk_however_they_end(ranked, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert ranked.subject().run(ranked.inputs(2))["total"].shape == (2, 3)
    assert not [*tmp_path.iterdir()]
