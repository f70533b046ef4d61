from __future__ import annotations

import itertools

from npudiff.campaign.known import OF_A_CAUSE, JobKnowledge, Knowledge

ROUND = {
    "kind": "round", "place": "sim 8.5", "at": 1.0, "job": "a.b.c", "number": 0, "cases": 20, "steps": 0,
    "seconds": 2.0, "worst": 0.5, "worst_case": "{}", "exact": False, "cut": False, "new": [], "found": [],
    "guides": [],
}  # fmt: skip
FOUND = {"folder": "f", "of": "f", "new": True, "region": {"dtype": ["float16"]}}


def take(*changes):
    knowledge = Knowledge("sim 8.5")
    for one in changes:
        knowledge.take({**ROUND, **one})
    return knowledge


def test_rounds_are_counted_whatever_their_order_and_those_that_are_left_have_numbers():
    known = JobKnowledge()
    for number in (2, 0, 5):
        known.take({**ROUND, "number": number})
    assert known.rounds == 3
    assert list(itertools.islice(known.left(), 4)) == [1, 3, 4, 6]
    known.take({**ROUND, "number": 1})
    known.take({**ROUND, "number": 1})  # once more, of a log that somebody put together
    assert (known.done, known.ahead, known.rounds) == (3, {5}, 4)


def test_a_round_that_was_cut_counts_its_cases_and_is_run_again():
    known = take({"cut": True}).of("a.b.c")
    assert (known.rounds, known.cases, next(known.left())) == (0, 20, 0)


def test_new_are_regions_and_pairs_of_them():
    known = JobKnowledge()
    kinds = {("one",): 1, ("one", "two"): 2, ("two",): 3}
    assert known.new_in(kinds) == {("one",): 1, ("one", "two"): 2}
    known.take({**ROUND, "new": [[["one", "two"], "case"]]})
    assert known.new_in({("one",): 1, ("two", "three"): 4, ("one", "two"): 2}) == {("two", "three"): 4}
    assert known.corpus == {("one", "two"): "case"}


def test_the_margin_is_the_largest_and_its_rise_is_a_gain():
    knowledge = take({"worst": 0.5, "worst_case": "first"}, {"number": 1, "worst": 0.75, "worst_case": "second"})
    known = knowledge.of("a.b.c")
    assert (known.worst, known.worst_case, known.gain) == (0.75, "second", 1.0)
    knowledge.take({**ROUND, "number": 2, "worst": 0.1, "worst_case": "third"})
    assert known.worst_case == "second"
    assert known.gain < 1.0


def test_a_cause_is_known_once_and_counted_until_it_is_fixed():
    knowledge = take(
        {"found": [FOUND]}, {"number": 1, "job": "a.x.c", "found": [{**FOUND, "folder": "g", "new": False}]}
    )
    (cause,) = knowledge.causes.values()
    assert (cause.folder, cause.times, cause.others) == ("f", 2, {"a.x.c"})
    assert knowledge.of("a.b.c").gain >= OF_A_CAUSE
    assert list(knowledge.regions_of(["a.b.c"])) == [{"dtype": ["float16"]}]
    knowledge.take({"kind": "again", "place": "sim 8.5", "folder": "f", "fails": True})
    assert knowledge.causes
    knowledge.take({"kind": "again", "place": "sim 8.5", "folder": "f", "fails": False})
    assert not knowledge.causes
    assert knowledge.fixed == ["f"]


def test_other_targets_are_not_mixed():
    assert not take({"place": "virtual 8.5"}).jobs
