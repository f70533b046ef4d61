"""What a gate tells: SARIF by its schema, JUnit, workflow commands, the summary; whatever texts a finding has."""

from __future__ import annotations

import functools
import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from npudiff.device import ascend
from npudiff.findings.finding import Finding
from npudiff.gate import github
from npudiff.gate.github import summary, workflow_commands
from npudiff.gate.known import tomllib
from npudiff.gate.known_issue_template import draft
from npudiff.gate.problems import problems_of
from npudiff.gate.result import GateResult, Part, ReportedFinding
from npudiff.gate.sarif import MOST_RESULTS, sarif
from npudiff.run.plan import Request, make_plan
from npudiff.show.junit import junit
from npudiff.show.problems import Level, Problem
from npudiff.show.source_location import SourceLocation, source_location_of
from npudiff.text import clipped, printable

SCHEMA = json.loads((Path(__file__).parents[2] / "data" / "sarif-schema-2.1.0.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())
ROOT = Path(__file__).parents[3]


PLAN = make_plan(Request(components=("swa_mask",), target="sim"))


@pytest.fixture
def result():
    return GateResult(PLAN, "2026", 60.0, ended="")


def finding(**changes):
    said = {
        "component": "swa_mask",
        "implementation": "eager",
        "target": "sim",
        "cann": "8.5",
        "property_name": "equivalence",
        "verdict": "wrong value",
        "case": {},
        "detail": {"line": "kv2", "examples_to_finding": 3},
        "environment": {},
    }
    return Finding(**{**said, **changes})


def xml_of(result, problems):
    return junit(result.plan.jobs, (outcome for _, outcome in result.outcomes), problems, ROOT, result.seconds)


def told(result, finding, folder=Path("folder")):
    result.findings = [ReportedFinding(finding, folder, Part.FIXED.value)]
    return problems_of(result, ROOT)


def test_the_log_fits_the_schema_and_names_file_line_rule_and_replay(result):
    log = json.loads(sarif(result, told(result, finding())))
    VALIDATOR.validate(log)
    (run,) = log["runs"]
    (one,) = run["results"]
    place = one["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "device/ascend/swa_mask.py", "uriBaseId": "%SRCROOT%"}
    line = (ROOT / "device/ascend/swa_mask.py").read_text().splitlines()[place["region"]["startLine"] - 1]
    assert line == '@implementation("swa_mask", name="eager", on_device=True, graph=True)'
    assert run["tool"]["driver"]["rules"][one["ruleIndex"]]["id"] == one["ruleId"] == "swa_mask/equivalence"
    assert one["message"]["text"].startswith("swa_mask.eager: equivalence: wrong value on kv2\n")
    assert "npudiff replay folder" in one["message"]["text"]


def test_the_schema_refuses_what_it_should():
    """A schema that takes everything would say nothing."""
    for wrong in ({"version": "2.1.0"}, {"version": "2.0", "runs": []}, {"version": "2.1.0", "runs": [{"x": 1}]}):
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate(wrong)


def test_the_fingerprint_is_of_the_bug_and_not_of_the_case(result):
    def fingerprint(**changes):
        (problem,) = told(result, finding(**changes))
        return problem.fingerprint

    assert fingerprint() == fingerprint(case={"other": 1}, detail={"line": "kv9"})
    others = [fingerprint(**{name: "other"}) for name in ("implementation", "property_name", "verdict", "target")]
    assert len({fingerprint(), *others}) == 5


TEXTS = st.text(
    alphabet=st.one_of(st.sampled_from("`|<>&%:,\n\r\"'\\]\x00\x1b\ud800"), st.characters(codec=None)), max_size=40
)


@settings(max_examples=40)
@given(TEXTS, TEXTS, TEXTS)
@example("\ud800", "\ud800", "\ud800")
def test_whatever_texts_a_finding_has_every_format_stays_whole(name, line, error):
    result = GateResult(PLAN, "2026", 60.0, notes=[line], ended="")
    problem_finding = finding(implementation=name, verdict=error, detail={"line": line, "error": error})
    problems = told(result, problem_finding)
    VALIDATOR.validate(json.loads(sarif(result, problems)))
    sarif(result, problems).encode("utf-8")
    whole = ET.fromstring(xml_of(result, problems))  # noqa: S314 - it was made here
    assert len(whole.findall(".//failure")) == 1
    commands = list(workflow_commands(problems))
    assert len(commands) == 1
    assert commands[0].startswith("::error ")
    assert "\n" not in commands[0]
    assert "\r" not in commands[0]
    text = summary(result, problems)
    text.encode("utf-8")
    for one in tomllib.loads(draft([problem_finding]).replace("# expires = YEAR-MONTH-DAY", "expires = 2027-01-31"))[
        "issue"
    ]:
        assert one["verdict"] == printable(error)
    body = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    (title,) = re.findall(r"<summary>(.*?)</summary>", body)
    assert html.unescape(title)[2:] == clipped(problems[0].title)
    body = re.sub(r"\\.", "", body.replace(title, ""))  # markdown's escapes; the title stands in HTML
    assert re.findall(r"<[^>]*>", body) == ["<details>", "<summary>", "</summary>", "</details>"]


def problem(number, level=Level.ERROR):
    return Problem(
        level, "swa_mask/equivalence", f"problem {number}", (("case", "x" * 100),), SourceLocation("a.py", 3)
    )


def test_no_more_is_told_than_is_kept(result, monkeypatch):
    many = [problem(number) for number in range(MOST_RESULTS + 7)]
    commands = list(workflow_commands([*many[:13], problem(99, Level.WARNING)]))
    assert len(commands) == 11
    assert commands[9] == "::error title=npudiff::and 4 others; see the job's summary"
    assert commands[10].startswith("::warning file=a.py,line=3,title=npudiff::problem 99%0A")
    assert len(json.loads(sarif(result, many))["runs"][0]["results"]) == MOST_RESULTS
    text = summary(result, many)
    assert text.count("<details>") == github.MOST_SHOWN
    assert "And 4957 others." in text
    monkeypatch.setattr(github, "MOST_SUMMARY", 3000)
    short = summary(result, many)
    assert len(short.encode()) < 3200
    assert short.endswith("The rest is left out, since it is too long for a summary.\n")


def test_a_report_in_junit_has_a_test_per_property_and_counts_them(result):
    whole = ET.fromstring(xml_of(result, told(result, finding())))  # noqa: S314 - it was made here
    tests = whole.findall("./testsuite[@name='swa_mask']/testcase")
    assert len(tests) == len(PLAN.jobs) == int(whole.get("tests"))
    assert whole.get("failures") == "1"
    assert whole.get("skipped") == str(len(tests) - 1)  # nothing ran
    (failed,) = whole.findall(".//failure/..")
    assert (failed.get("classname"), failed.get("name")) == ("npudiff.swa_mask.eager", "equivalence")
    assert failed.get("file") == "device/ascend/swa_mask.py"
    assert "npudiff replay" in failed.find("failure").text


@pytest.mark.slow
def test_a_step_of_github_gets_annotations_and_a_summary(gate, monkeypatch, tmp_path, repository):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    (tmp_path / "step.md").write_text("before\n")
    result = gate()
    commands = [line for line in result.out.splitlines() if line.startswith("::")]
    assert commands
    line = (tmp_path / "mine.py").read_text().splitlines().index('@npudiff.implementation("swa_mask", name="bad")') + 1
    assert all(text.startswith(f"::error file=mine.py,line={line},title=npudiff::swa_mask.bad: ") for text in commands)
    assert (tmp_path / "step.md").read_text() == "before\n" + result.summary
    VALIDATOR.validate(result.sarif)


def test_where_a_function_is_written_is_found_through_decorators():
    def inner(inputs, target):
        return inputs

    @functools.wraps(inner)
    def outer(inputs, target):
        return inner(inputs, target)

    here = Path(__file__).resolve().relative_to(ROOT).as_posix()
    for function in (inner, outer, functools.partial(outer, target=None)):
        place = source_location_of(SimpleNamespace(function=function), ROOT)
        assert (place.path, place.line) == (here, inner.__code__.co_firstlineno)
    installed = source_location_of(ascend.swa_mask_eager, ROOT / "npudiff")
    assert installed.line == source_location_of(ascend.swa_mask_eager, ROOT).line
    assert installed.path == "npudiff/device/ascend/swa_mask.py"
    assert source_location_of(SimpleNamespace(function=len), ROOT) is None
