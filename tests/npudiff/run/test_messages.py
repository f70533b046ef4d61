"""Outcomes that go between processes come out as they went in, and a journal goes when all is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from npudiff.model.job import Budget, Failure, Outcome, Poisoning, Verdict
from npudiff.run.messages import Kept, Task, outcome_from_message, outcome_to_message


def whole(toy):
    return Outcome(
        toy.job(), cases=5, not_applicable=Counter({"never": 2}), features=Counter({"plain": 4}), worst_ratio=0.5,
        worst_case=toy.Case((1,)), exact=False, seconds=3.0, seconds_to_failure=1.0, shrink_seconds=0.5,
        first_failure=Failure(toy.Case((7, 8)), None, None), failure=Failure(toy.Case((2,)), None, None),
        repeated=(2, 3), alone=(1, 2), isolated=True, poisonings=[Poisoning("a", "b", "c")], verdict=Verdict.RAISED,
    )  # fmt: skip


def test_an_outcome_arrives_as_it_was_sent(toy, tmp_path):
    sent = whole(toy)
    finding = Kept({"format": 1}, tmp_path, problem="no space", written=False)
    received, kept = outcome_from_message(sent.job, outcome_to_message(sent, [finding]))
    assert kept == [finding]
    assert received == sent


def test_an_outcome_without_a_failure_has_none(toy):
    received, kept = outcome_from_message(toy.job(), outcome_to_message(Outcome(toy.job()), []))
    assert (received.failure, received.first_failure, received.worst_case, kept) == (None, None, None, [])
    assert received.verdict is Verdict.HOLDS


def test_the_journal_goes_when_the_findings_are_written(toy, tmp_path):
    finding = Kept({"format": 1}, tmp_path / "finding")
    was_there = []

    def keep(outcome):
        was_there.append(outcome.journal.exists())
        return [finding]

    for writes, kept in ((keep, [finding]), (None, [])):
        journal = tmp_path / "journal"
        journal.touch()
        outcome = replace(whole(toy), journal=journal)
        assert Task(toy.job(), Budget(), writes).kept(outcome) == kept
        assert not journal.exists()
        assert outcome.journal is None
    assert was_there == [True]
