"""Findings by cause: which are one, which are not, and which of them is told in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from npudiff.findings.causes import by_cause, contradicted
from npudiff.findings.finding import Finding
from npudiff.findings.log import LoggedFinding


def found(implementation="mine", prop="equivalence", verdict="wrong value", line="the case", options="", **detail):
    case = detail.pop("case", {"window": 1, "flag": "0"})
    finding = Finding(
        "swa_mask", implementation, "sim", "8.5", prop, verdict, case, {"line": line, **detail}, {}, options
    )
    return LoggedFinding(finding, Path(f"{implementation}-{prop}-{line}"), "")


BACKEND = "--backend small"
DOCUMENTED = "the documentation, as the reference has it"
SAME, HOLDS, FAILS = "fails in the same way", "holds", "fails otherwise"


def groups(*findings):
    return [[findings.index(one) for one in group] for group in by_cause(findings)]


def test_a_relation_of_what_is_wrong_is_told_under_it_and_equivalence_comes_first():
    assert groups(found(prop="repeats", line="other"), found(), found(prop="order", line="third")) == [[1, 0, 2]]


def test_a_relation_alone_is_a_finding_and_two_on_the_same_case_are_one():
    assert groups(found(prop="repeats"), found(prop="order"), found(prop="third", line="other")) == [[0, 1], [2]]


def test_implementations_of_a_file_have_causes_of_their_own():
    assert groups(found("one"), found("two")) == [[0], [1]]
    raised = {"verdict": "exception", "error": "ValueError: no"}
    assert groups(found("one", **raised), found("two", **raised)) == [[0], [1]]


def test_what_the_relations_of_a_wrong_kernel_raise_is_told_under_it():
    assert groups(found(), found(prop="repeats", verdict="exception", error="KeyError: 'x'")) == [[0, 1]]


def test_what_comes_and_goes_where_a_call_poisons_later_ones_is_told_under_that():
    flaky = found(verdict="time-out", error="time-out: no answer within 2 s", flaky=True)
    poisons = found(verdict="poisons the device", line="other", error="process died: exit code 1")
    assert groups(flaky, poisons) == [[1, 0]]
    steady = found(verdict="time-out", error="time-out: no answer within 2 s", flaky=False)
    assert groups(steady, poisons) == [[0], [1]]
    other = found("other", verdict="poisons the device", line="other", error="process died: exit code 1")
    assert groups(flaky, other) == [[0], [1]]


def test_where_a_process_dies_of_a_write_beyond_a_tensor_the_write_is_told():
    died = found(verdict="process died", error="process died: SIGABRT")
    wrote = found(prop="stays_within_its_memory", verdict="exception", line="other", error="WroteOutside: 2 bytes")
    assert groups(died, wrote) == [[1, 0]]
    died_there = found(prop="stays_within_its_memory", verdict="process died", line="other", error="process died: 6")
    assert groups(died, died_there) == [[0, 1]]


def test_of_a_backend_another_exception_is_another_cause_and_numbers_in_it_are_those_of_a_case():
    raised = [
        found(prop=prop, verdict="exception", error=error, options=BACKEND)
        for prop, error in (("equivalence", "E: dim 64"), ("repeats", "E: dim 256"), ("order", "KeyError: 'x'"))
    ]
    assert groups(found(options=BACKEND), *raised) == [[0], [1, 2], [3]]


def test_functions_of_a_backend_with_one_exception_are_one():
    raised = {"verdict": "rejected call", "error": "E: no", "options": BACKEND}
    assert groups(found("one", **raised), found("two", **raised)) == [[0, 1]]


def test_functions_of_two_checkouts_and_two_verdicts_of_one_text_are_not_one():
    raised = {"verdict": "rejected call", "error": "E: no"}
    one, other = found("one", **raised, options=BACKEND), found("two", **raised, options=f"{BACKEND}=elsewhere")
    assert groups(one, other) == [[0], [1]]
    assert groups(one, found("two", verdict="exception", error="E: no", options=BACKEND)) == [[0], [1]]


@pytest.mark.parametrize(("told", "expected"), [(SAME, [[0, 1]]), (FAILS, [[0], [1]]), (HOLDS, [[0], [1]])])
def test_functions_of_a_backend_that_are_wrong_in_the_same_way_are_one(told, expected):
    assert groups(found("one", options=BACKEND, others={"two": told}), found("two", options=BACKEND)) == expected


def test_where_two_defects_overlap_a_case_of_both_does_not_make_them_one():
    one = found("one", options=BACKEND, others={"two": SAME}, region=["flag=0"], case={"flag": "0", "pool": "own"})
    two = found("two", options=BACKEND, region=["pool=own"], case={"flag": "1", "pool": "own"})
    assert groups(one, two) == [[0], [1]]
    two = found("two", options=BACKEND, region=["pool=own", "flag=0,2"], case={"flag": "0", "pool": "own"})
    assert groups(one, two) == [[0, 1]]


def test_a_relation_that_sees_two_causes_belongs_to_the_first_and_joins_none():
    causes = [found(options=BACKEND, region=["flag=0"]), found(options=BACKEND, line="other", region=["flag=1"])]
    assert groups(*causes, found(prop="repeats", options=BACKEND, line="third")) == [[0, 2], [1]]


def test_that_ways_do_not_agree_is_told_under_the_one_that_is_wrong():
    wrong = found("one", options=BACKEND)
    other = found("two", prop="ways_of_the_backend_agree", options=BACKEND, line="other", others={"one": FAILS})
    assert groups(wrong, other) == [[0, 1]]


@pytest.mark.parametrize(
    ("prop", "others", "said"),
    [
        ("equivalence", {"plain": HOLDS}, [DOCUMENTED, "its native path plain, which holds here"]),
        ("equivalence", {"graph": HOLDS, "eager": HOLDS}, [DOCUMENTED, "itself: graph, eager hold here"]),
        ("equivalence", {"graph": SAME}, [DOCUMENTED]),
        ("repeats", {"graph": FAILS}, ["itself"]),
        ("repeats", "not a table", []),
    ],
)  # fmt: skip
def test_what_a_finding_contradicts(prop, others, said):
    assert contradicted(found(prop=prop, others=others, native=["plain"]).finding) == said


@pytest.mark.parametrize(("value", "expected"), [("", [[0, 1]]), ("1..x", [[0, 1]]), ("else", [[0], [1]])])
def test_the_value_of_an_option_may_be_any_text(value, expected):
    region = [f"flag={'1..x' if value == 'else' else value}"]
    one = found("one", options=BACKEND, others={"two": SAME}, region=region, case={"flag": value})
    assert groups(one, found("two", options=BACKEND, region=region, case={"flag": value})) == expected
