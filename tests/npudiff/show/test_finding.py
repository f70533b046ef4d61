from __future__ import annotations

from pathlib import Path

from npudiff.findings.finding import Finding, finding_of
from npudiff.model.job import Budget
from npudiff.run.engine import run_case, run_job
from npudiff.show.finding import finding_lines

FOLDER = Path("findings") / "it"


def failed(toy, function, case, **changes):
    result = run_case(toy.job(function, **changes), case)
    return dict(finding_lines(finding_of(result), FOLDER))


def test_a_wrong_value_is_said_with_its_place_and_pattern(toy):
    lines = failed(toy, toy.wrong_above(100), toy.Case((1, 200, 300, 2)))
    assert lines == {
        "case": "1 200 300 2",
        "worst": "y: error is 600 times the bound: got 300, expected 600 within 0.5, at place 2",
        "pattern": "2 of 4 elements are wrong; only at place 1, 2",
        "published": lines["published"],
        "found": "at case 1",
        "replay": f"npudiff replay {FOLDER}",
    }
    assert lines["published"].startswith("CANN single benchmark fails (mean relative error 0.25 of 0.00012, ")


def test_an_exception_is_said_with_its_type(toy):
    def function(inputs, target):
        raise RuntimeError("507035")

    assert failed(toy, function, toy.Case((1,)))["raised"] == "RuntimeError: 507035"


def test_a_wrong_shape_is_said(toy):
    lines = failed(toy, lambda inputs, target: inputs.x[:1], toy.Case((1, 2)))
    assert lines["output"] == "y: shape [1], expected [2]"


def test_a_relation_says_what_it_compared(toy):
    calls = []

    def function(inputs, target):
        calls.append(1)
        return inputs.x + len(calls)

    assert failed(toy, function, toy.Case((1,)), prop=toy.REPEATS)["compared"] == "twice"


def test_the_case_as_drawn_is_shown_beside_the_smallest(toy):
    result = run_job(toy.job(toy.wrong_above(100)), Budget(seed=1))
    lines = dict(finding_lines(finding_of(result), FOLDER))
    assert lines["case"] == "101"
    drawn = " ".join(str(number) for number in result.first_failure.case.numbers)
    assert lines["found"] == f"at case {result.cases}, as {drawn}"


def test_a_flaky_finding_says_so(toy):
    calls = []

    def function(inputs, target):
        calls.append(1)
        return toy.double(inputs) + (10 if len(calls) == 3 else 0)

    result = run_job(toy.job(function), Budget(seed=1))
    assert dict(finding_lines(finding_of(result), FOLDER))["flaky"] == "failed 0 of 3 times when it was repeated"


def test_a_gain_is_said_in_percent_with_its_row():
    detail = {"line": "a case", "output": "y", "worst_ratio": 2.5, "examples_to_finding": 3,
              "gain": {"token": 4, "head": 0, "error": -0.0101, "most": 0.004, "wrong": 7, "rows": 8},
              "where": {"token": 1, "actual": 1.0, "expected": 1.0, "bound": 0.5}}  # fmt: skip
    finding = Finding("c", "i", "sim", "8.5", "equivalence", "wrong value", {}, detail, {})
    lines = dict(finding_lines(finding, FOLDER))
    assert lines["gain"] == (
        "y: every element is within its bound, but all of a row are off together: 7 of 8 rows too long or too short,"
        " the worst 1 % shorter where 0.4 % is the most, at token 4, head 0"
    )
    assert "worst" not in lines
