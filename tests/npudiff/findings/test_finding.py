from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from npudiff.errors import UsageError
from npudiff.findings import finding as finding_module
from npudiff.findings.finding import (
    FINDING_FILE,
    POISONS,
    SCHEMA_VERSION,
    TENSOR_FILE,
    finding_of,
    findings_of,
    read_finding,
    write_finding,
)
from npudiff.model.case import dumps
from npudiff.model.job import Budget, Outcome, Poisoning
from npudiff.run.engine import run_case, run_job


@pytest.fixture
def failed(toy):
    def run(function=None, case=None, **changes):
        job = toy.job(function or toy.wrong_above(100), **changes)
        return run_case(job, case or toy.Case((1, 200, 300)))

    return run


def strictly(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_written_is_read(failed, tmp_path):
    outcome = failed()
    finding = finding_of(outcome)
    folder = write_finding(finding, outcome.failure, tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b" / finding.key
    again = read_finding(folder)
    assert again == replace(finding, command=f"npudiff replay {folder}")
    assert sorted(path.name for path in folder.iterdir()) == [FINDING_FILE, TENSOR_FILE]


def test_the_file_says_what_failed_where_and_how_to_replay_it(failed, tmp_path):
    outcome = failed()
    folder = write_finding(finding_of(outcome), outcome.failure, tmp_path)
    content = json.loads((folder / FINDING_FILE).read_text())
    assert content["schema_version"] == SCHEMA_VERSION == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", content["created"])
    assert [content[name] for name in ("component", "implementation", "target", "cann", "property_name")] == [
        "toy", "mine", "here", "0", "equivalence"]  # fmt: skip
    assert content["verdict"] == "wrong value"
    assert content["case"] == {"numbers": [1, 200, 300], "kind": "plain"}
    assert content["command"] == f"npudiff replay {folder}"
    assert set(content["environment"]) == {"npudiff", "python", "torch", "hypothesis", "machine"}
    assert content["environment"]["torch"] == torch.__version__


def test_the_detail_holds_the_evidence(failed):
    detail = finding_of(failed()).detail
    assert detail["line"] == "1 200 300"
    assert detail["worst_ratio"] == 600
    assert detail["where"] == {"place": 2, "actual": 300.0, "expected": 600.0, "bound": 0.5}
    assert detail["pattern"] == ["2 of 3 elements are wrong", "only at place 1, 2"]
    assert {verdict["criterion"] for verdict in detail["published_criteria"]} == {
        "CANN single benchmark", "CANN mixed tolerance", "cosine"}  # fmt: skip


def test_tensors_are_kept_with_their_checksum(failed, tmp_path):
    outcome = failed()
    folder = write_finding(finding_of(outcome), outcome.failure, tmp_path)
    kept = load_file(folder / TENSOR_FILE)
    assert {name: value.tolist() for name, value in kept.items()} == {
        "y.actual": [2, 200, 300], "y.value": [2, 400, 600], "y.bound": [0.5, 0.5, 0.5]}  # fmt: skip
    digest = hashlib.sha256((folder / TENSOR_FILE).read_bytes()).hexdigest()
    assert json.loads((folder / FINDING_FILE).read_text())["tensors_sha256"] == digest


def test_tensors_beyond_the_cap_are_left_out(failed, tmp_path, monkeypatch):
    outcome = failed()
    monkeypatch.setattr(finding_module, "MAX_TENSORS_KEPT", 12 + 24)
    folder = write_finding(finding_of(outcome), outcome.failure, tmp_path)
    assert set(load_file(folder / TENSOR_FILE)) == {"y.actual", "y.value"}
    assert read_finding(folder)


def test_a_later_write_without_tensors_leaves_no_old_ones(failed, tmp_path, monkeypatch):
    outcome = failed()
    finding = finding_of(outcome)
    write_finding(finding, outcome.failure, tmp_path)
    monkeypatch.setattr(finding_module, "MAX_TENSORS_KEPT", 0)
    folder = write_finding(finding, outcome.failure, tmp_path)
    assert [path.name for path in folder.iterdir()] == [FINDING_FILE]
    assert read_finding(folder)


def nan(inputs, target):
    return inputs.x * math.nan


def none(inputs, target):
    return None


@pytest.mark.parametrize("function", [nan, none])
def test_every_kind_of_finding_is_plain_json(failed, tmp_path, function):
    outcome = failed(function)
    folder = write_finding(finding_of(outcome), outcome.failure, tmp_path)
    assert strictly((folder / FINDING_FILE).read_text())["verdict"] in ("wrong value", "exception")
    assert read_finding(folder)


def test_an_output_of_a_wrong_shape_is_described_without_its_place(failed, tmp_path):
    outcome = failed(lambda inputs, target: inputs.x[:1])
    finding = finding_of(outcome)
    assert finding.detail["problem"] == "shape [1], expected [3]"
    assert "where" not in finding.detail
    assert read_finding(write_finding(finding, outcome.failure, tmp_path))


def test_an_exception_is_kept_as_text_of_bounded_length(failed):
    def function(inputs, target):
        raise RuntimeError("x" * 10_000)

    finding = finding_of(failed(function))
    assert finding.verdict == "exception"
    assert finding.detail["error"].startswith("RuntimeError: xxx")
    assert len(finding.detail["error"]) == 2000


def test_the_case_as_drawn_is_kept_beside_the_smallest(toy):
    outcome = run_job(toy.job(toy.wrong_above(100)), Budget(seed=1))
    finding = finding_of(outcome)
    assert finding.case == {"numbers": [101], "kind": "plain"}
    first = " ".join(str(number) for number in outcome.first_failure.case.numbers)
    assert finding.detail["first"]["line"] == first != "101"
    assert finding.detail["examples_to_finding"] == outcome.cases


def test_a_case_that_is_right_by_itself_is_told_as_what_spoils_it(failed):
    """One finding, and not two of which the first is flaky."""
    outcome = failed()
    victim = dumps(outcome.failure.case)
    spoiled = replace(outcome, alone=(0, 3), poisonings=[Poisoning(victim, victim, "wrong value")])
    ((finding, failure),) = findings_of(spoiled)
    assert (finding.verdict, failure, spoiled.findings) == (POISONS, None, 1)
    both = replace(spoiled, alone=(1, 3))
    assert [one.verdict for one, _ in findings_of(both)] == ["wrong value", POISONS]
    assert both.findings == 2
    assert replace(outcome, alone=(0, 3)).findings == 1


def test_what_holds_is_no_finding(toy):
    with pytest.raises(ValueError, match="toy.mine.equivalence has no failure"):  # noqa: RUF043 - dots
        finding_of(Outcome(toy.job()))


def test_the_same_finding_has_the_same_name_and_another_case_another(failed, toy):
    key = finding_of(failed()).key
    assert re.fullmatch(r"toy-mine-equivalence-[0-9a-f]{10}", key)
    assert finding_of(failed()).key == key
    assert finding_of(failed(case=toy.Case((1, 200, 301)))).key != key
    assert replace(finding_of(failed()), cann="9").key != key


@pytest.mark.parametrize("name", ["../../x", "..", "/etc/passwd", "a\x1b[2J", "a\nb", "", "x" * 500, "a b"])
def test_a_folder_name_is_safe_whatever_the_names_are(failed, tmp_path, name):
    outcome = failed()
    finding = replace(finding_of(outcome), component=name, implementation=name, property_name=name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{1,200}", finding.key)
    folder = write_finding(finding, outcome.failure, tmp_path / "root")
    assert folder.parent == tmp_path / "root"
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def written(failed, tmp_path):
    outcome = failed()
    return write_finding(finding_of(outcome), outcome.failure, tmp_path / "findings")


def test_fields_that_a_later_version_may_add_are_left_alone(failed, tmp_path):
    folder = written(failed, tmp_path)
    content = json.loads((folder / FINDING_FILE).read_text())
    (folder / FINDING_FILE).write_text(json.dumps({**content, "more": [1]}))
    assert read_finding(folder).component == "toy"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema_version": 99}, "written by a newer npudiff (schema 99, this one reads up to 1): upgrade"),
        ({"schema_version": "1"}, "no schema_version: not a finding"),
        ({"schema_version": None}, "no schema_version: not a finding"),
        ({"schema_version": -1}, "no schema_version: not a finding"),
        ({"schema_version": True}, "no schema_version: not a finding"),
        ({"schema_version": 1.0}, "no schema_version: not a finding"),
        ({"case": []}, "case must be dict, got list"),
        ({"component": 3}, "component must be str, got int"),
        ({"environment": None}, "environment must be dict, got NoneType"),
        ({"tensors_sha256": 5}, "tensors_sha256 must be text"),
        ({"tensors_sha256": "0" * 64}, "does not match its checksum: damaged or changed"),
    ],
)
def test_a_field_that_does_not_fit_is_named(failed, tmp_path, change, expected):
    folder = written(failed, tmp_path)
    content = json.loads((folder / FINDING_FILE).read_text())
    (folder / FINDING_FILE).write_text(json.dumps({**content, **change}))
    with pytest.raises(UsageError) as caught:
        read_finding(folder)
    assert str(caught.value).startswith(str(folder))
    assert expected in str(caught.value)


def test_a_defect_in_the_description_costs_no_finding(failed, monkeypatch):
    def broken(*arguments):
        raise ValueError("no such stride")

    outcome = failed()
    monkeypatch.setattr("npudiff.findings.finding.explain_misplaced", broken)
    detail = finding_of(outcome).detail
    assert detail["pattern"] == ["npudiff could not describe it, please report: ValueError: no such stride"]
    assert detail["worst_ratio"] > 1
