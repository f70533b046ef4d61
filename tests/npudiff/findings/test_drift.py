"""A drift as a finding: in words, in its folder, on the page, in JUnit and in a gate; and what a replay says of it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from xml.etree import ElementTree as ET

import pytest

from npudiff.errors import ExitCode

CUT = '''
import torch
import npudiff
from npudiff.reference.swiglu import swiglu as expected

@npudiff.implementation("swiglu", supports={{"dtype": ("bfloat16",), "rounding": ("stages",), "limited": (False,)}})
def cut(inputs, target):
    """What is right, rounded {how}."""
    value = expected(inputs)["output"].value
    near = value.bfloat16()
    {then}
    return near
'''
CUTTING = """beyond = near.double().abs() > value.abs()
    near = torch.where(beyond, (near.view(torch.int16) - 1).view(near.dtype), near)"""
TOWARD_ZERO = CUT.format(how="toward zero", then=CUTTING)
NEAREST = CUT.format(how="to nearest", then="pass")


@pytest.fixture
def check(cli, kernel, tmp_path):
    """Check the kernel; returns the outcome, and the folder of its only finding."""

    def run(*arguments, text=TOWARD_ZERO):
        path = kernel(text)
        result = cli("check", "swiglu", "--impl", path, "--target", "sim", "--seed", 1, "--no-isolate", "--workers", 1,
                     *arguments)  # fmt: skip
        folder = next((tmp_path / ".npudiff" / "findings").glob("*"), None)
        return result, folder, path

    return run


def change(folder, **changes):
    content = json.loads((folder / "finding.json").read_text())
    content["detail"] |= changes
    (folder / "finding.json").write_text(json.dumps(content))


def test_truncation_within_every_bound_is_a_finding(check, tmp_path):
    result, folder, _ = check("--junit", "results.xml")
    assert result.code == ExitCode.FINDINGS, result.out
    assert "FINDING swiglu.cut · equivalence · drift" in result.out
    assert "output: every element is within its bound, and too short by 0." in result.out
    assert "of the bound in the mean, where 0.016 is the most; over" in result.out
    assert "chance     less than 1 in 10^" in result.out
    assert result.out.count("  shown by   ") == 3
    assert "no script: it is seen in many cases together, and not in the calls of one" in result.out
    assert "found at" not in result.out
    content = json.loads((folder / "finding.json").read_text())
    assert content["verdict"] == "drift"
    detail = content["detail"]
    assert detail["drift"]["direction"] == "gain"
    assert detail["drift"]["size"] < -0.1
    assert detail["drift"]["score"] >= 6
    assert len(detail["remembered"]) == detail["drift"]["cases"] > 80
    assert "too short by" in (folder / "finding.html").read_text(encoding="utf-8")
    (failure,) = ET.parse(tmp_path / "results.xml").iter("failure")  # noqa: S314 - written here
    assert ": equivalence: drift on " in failure.get("message")
    assert "too short by" in failure.text
    (record,) = (tmp_path / ".npudiff" / "runs").glob("*.json")
    jobs = {job["property_name"]: job for job in json.loads(record.read_text())["jobs"]}
    assert jobs["equivalence"]["verdict"] == "drift"
    assert jobs["equivalence"]["held"] == jobs["equivalence"]["cases"] == 100


@pytest.mark.slow
def test_it_is_on_the_page_of_the_run(check, cli, tmp_path):
    check()
    assert cli("report", ".npudiff").code == ExitCode.CLEAN
    page = (tmp_path / ".npudiff" / "report.html").read_text(encoding="utf-8")
    assert "too short by" in page
    assert "1 finding" in page


@pytest.mark.slow
def test_rounding_to_nearest_is_none(check):
    result, folder, _ = check(text=NEAREST)
    assert result.code == ExitCode.CLEAN, result.out
    assert folder is None


@pytest.mark.slow
def test_a_replay_says_failed_until_it_is_fixed(check, cli, kernel):
    _, folder, path = check()
    failed = cli("replay", folder, "--impl", path)
    assert failed.code == ExitCode.FINDINGS
    assert failed.out.startswith("FAILED swiglu.cut.equivalence: output, gain, over ")
    kernel(NEAREST)
    fixed = cli("replay", folder, "--impl", path)
    assert fixed.code == ExitCode.CLEAN
    assert fixed.out.startswith("FIXED  swiglu.cut.equivalence: output, gain, over ")


@pytest.mark.slow
def test_a_replay_of_one_that_is_wrong_now(check, cli, kernel):
    _, folder, path = check()
    kernel(TOWARD_ZERO.replace("- 1)", "- 9)"))
    assert cli("replay", folder, "--impl", path).code == ExitCode.FINDINGS


DAMAGED = (
    {"drift": None},
    {"drift": {"direction": 3}},
    {"remembered": None},
    {"remembered": []},
    {"remembered": [7]},
    {"remembered": ["{}"]},
    {"remembered": ["["]},
    {"output": 5},
    {"output": "elsewhere"},
)


@pytest.mark.slow
def test_damaged_ones_are_an_error_in_one_line(check, cli):
    _, folder, path = check()
    whole = (folder / "finding.json").read_text()
    for changes in DAMAGED:
        (folder / "finding.json").write_text(whole)
        change(folder, **changes)
        result = cli("replay", folder, "--impl", path)
        assert result.code == ExitCode.USAGE, changes
        assert result.out.startswith("ERROR  "), changes
        assert result.out.count("\n") == 1, changes
        assert result.err == "", changes


KNOWN = """
[[issue]]
component = "swiglu"
implementation = "cut"
property = "equivalence"
verdict = "{verdict}"
link = "https://example.com/issues/7"
expires = {day}
where = {where}
"""


@pytest.mark.few(1)
@pytest.mark.parametrize(("verdict", "code"), [("drift", ExitCode.CLEAN), ("exception", ExitCode.FINDINGS)])
def test_a_gate_knows_it(cli, kernel, tmp_path, verdict, code):
    day = datetime.now(tz=timezone.utc).date() + timedelta(days=30)
    (tmp_path / "known_issues.toml").write_text(KNOWN.format(verdict=verdict, day=day, where="[]"))
    result = cli("gate", "swiglu", "--impl", kernel(TOWARD_ZERO), "--target", "sim", "--known", "known_issues.toml",
                 "--budget", "60s", "--rotating", "off", "--workers", 1, "--no-isolate")  # fmt: skip
    assert result.code == code, result.out + result.err


HALF_NORM = """
import torch
import npudiff
from npudiff.reference.rms_norm import rms_norm as expected

@npudiff.implementation("rms_norm", supports={"dtype": ("float16",)})
def half(inputs, target):
    \"\"\"Squares beyond float16 are infinite, and the row is 0.\"\"\"
    output = expected(inputs)["output"]
    states = inputs.hidden if inputs.residual is None else inputs.hidden + inputs.residual
    lost = (states.abs() > 255).any(dim=-1, keepdim=True)
    return output.value.to(output.dtype).masked_fill(lost, 0.0)
"""


@pytest.mark.slow
def test_the_case_that_is_off_furthest_is_told_beside_the_smallest(cli, kernel):
    result = cli("check", "rms_norm", "--impl", kernel(HALF_NORM), "--target", "sim", "--seed", 1, "--no-isolate",
                 "--workers", 1)  # fmt: skip
    assert result.code == ExitCode.FINDINGS
    (smallest,) = (line for line in result.out.splitlines() if line.startswith("  worst "))
    (furthest,) = (line for line in result.out.splitlines() if line.startswith("  furthest "))
    assert " times the bound in " in furthest
    assert ratio_of(furthest) >= ratio_of(smallest) > 1


def ratio_of(line):
    """The number before "times the bound"."""
    return float(line.partition(" times the bound")[0].rpartition(" ")[2])


@pytest.mark.slow
def test_a_drift_that_is_shown_by_a_case_which_cannot_be_is_damaged(check, cli):
    _, folder, path = check()
    legal = json.loads((folder / "finding.json").read_text())["detail"]["remembered"]
    case = {**json.loads(legal[0]), "tokens": -1}
    change(folder, remembered=[*legal, json.dumps(case)])
    result = cli("replay", folder, "--impl", path)
    assert result.code == ExitCode.USAGE
    assert "a case that shows the drift is damaged" in result.out
