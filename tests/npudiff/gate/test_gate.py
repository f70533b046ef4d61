"""The gate through the command line: what opens it, what closes it, and what it leaves behind."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from npudiff.errors import DeviceLost, ExitCode
from npudiff.gate import run as gate_run
from npudiff.run import workers
from npudiff.show.run_page.read import read_records


def test_a_finding_closes_the_gate(gate, tmp_path):
    result = gate()
    assert result.code == ExitCode.FINDINGS
    assert "FINDING swa_mask.bad · equivalence · wrong value" in result.out
    assert "part       the same cases every time" in result.out
    assert re.search(r"gate closed: \d findings?$", result.out.strip())
    assert {path.name.split("-")[1] for path in (tmp_path / ".npudiff" / "findings").iterdir()} == {"bad"}


@pytest.mark.slow
def test_two_gates_run_the_same_cases(gate):
    def cases():
        result = gate(examples=30)
        return re.findall(r"^\s+(?:good|bad).*$", result.out, re.MULTILINE)[0].split()[:3], result.sarif["runs"][0]

    first, second = cases(), cases()
    assert first == second


def test_a_known_issue_opens_it_and_hides_nothing_else(gate, known, tmp_path):
    known(("bad", 'where = ["window=3"]'))
    result = gate()
    assert result.code == ExitCode.CLEAN
    assert "note     known issue swa_mask.bad where window=3: still fails" in result.out
    assert "gate open" in result.out
    ((kept,), _) = read_records([tmp_path / ".npudiff"])
    (issue,) = kept.record.known
    assert (issue.name, issue.state, issue.closes) == ("swa_mask.bad where window=3", "still fails", False)
    assert {job.implementation for job in kept.record.jobs if job.without == (issue.name,)} == {"bad"}
    assert (kept.record.gate, kept.record.scope) == ("open", ())
    (noted,) = result.sarif["runs"][0]["results"]
    assert noted["level"] == "note"
    assert noted["suppressions"] == [
        {"kind": "external", "status": "accepted", "justification": "https://example.org/issues/7"}
    ]
    known(("bad", 'where = ["window=4"]'))
    result = gate()
    assert result.code == ExitCode.FINDINGS
    assert "FINDING swa_mask.bad · equivalence" in result.out
    assert "error    known issue swa_mask.bad where window=4: does not fail any more" in result.out


@pytest.mark.slow
def test_an_issue_of_a_whole_implementation_runs_it_only_to_see_that_it_still_fails(gate, known):
    known(("bad", ""))
    result = gate()
    assert result.code == ExitCode.CLEAN
    assert "| swa\\_mask | bad | 0 | - | not run, 1 known issue |" in result.summary
    assert "FINDING" not in result.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("issue", "said"),
    [
        (("good", ""), "does not fail any more: "),
        (("gone", ""), "matches nothing: this run has no such implementation"),
        (("bad", 'verdict = "time-out"\nwhere = ["window=3"]'), "hold, but for wrong value: remove the entry"),
    ],
)
def test_an_issue_that_says_nothing_true_closes_it(gate, known, issue, said):
    known(issue, ("bad", ""))
    result = gate()
    assert result.code == ExitCode.FINDINGS
    (line,) = [line for line in result.out.splitlines() if line.startswith("error ")]
    assert said in line
    errors = [one for one in result.sarif["runs"][0]["results"] if one["level"] == "error"]
    (told,) = [one for one in errors if one["ruleId"] == "known-issue"]
    other = "time-out" in issue[1]
    assert ("part       cases of a known issue" in result.out) == other
    assert len(errors) == 1 + other
    assert told["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "known_issues.toml"
    assert told["locations"][0]["physicalLocation"]["region"]["startLine"] == 2


@pytest.mark.slow
def test_findings_are_drafted_as_entries_that_open_the_gate_once_they_are_complete(gate, soon, tmp_path):
    gate()
    draft = (tmp_path / ".npudiff" / "known_issues.draft.toml").read_text()
    path = tmp_path / "known_issues.toml"
    path.write_text(draft)
    assert "missing: link, expires" in gate().err
    path.write_text(draft.replace("# expires = YEAR-MONTH-DAY", f'expires = "{soon}"'))
    assert "expires must be a day without quotes, such as 2027-01-31, got" in gate().err
    path.write_text(draft.replace("# expires = YEAR-MONTH-DAY", f"expires = {soon}"))
    assert "missing: link" in gate().err
    path.write_text(path.read_text().replace('link = ""', 'link = "https://example.org/7"'))
    assert gate().code == ExitCode.CLEAN


def test_an_expired_issue_closes_it_and_hides_nothing(gate, known, soon, tmp_path):
    known(("bad", ""))
    path = tmp_path / "known_issues.toml"
    path.write_text(path.read_text().replace(soon, "2026-01-31"))
    result = gate()
    assert result.code == ExitCode.FINDINGS
    assert "error    known issue swa_mask.bad: has expired: on 2026-01-31" in result.out
    assert "FINDING swa_mask.bad" in result.out


CASE = """case = '{"kv_lengths": [2], "window": 3, "spare": 3, "dtype": "int32", "column": false}'"""


@pytest.mark.slow
def test_a_case_of_an_issue_is_run_first(gate, known):
    known(("bad", ""))
    assert gate(examples=1).code == ExitCode.FINDINGS  # one case is too few to see that it still fails
    known(("bad", CASE))
    assert gate(examples=1).code == ExitCode.CLEAN
    known(("good", CASE), ("bad", CASE))
    assert "swa_mask.good: does not fail any more" in gate(examples=1).out


INSTEAD = """case = '{"kv_lengths": [2], "window": 1, "spare": 3, "dtype": "int32", "column": false}'
instead = ["window += 1"]"""

WIDE = """

@npudiff.implementation("swa_mask", name="{name}")
def {name}(inputs, target):
    mask = window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window and inputs.window + 1)
    return {answer}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("mask", ExitCode.CLEAN),
        ("mask if len(inputs.kv_lengths) < 2 else right(inputs, target)", ExitCode.CLEAN),
        ("mask if inputs.capacity < 5 else ~mask", ExitCode.FINDINGS),
        ("right(inputs, target)", ExitCode.FINDINGS),
    ],
    ids=["as it is known", "right in some cases", "wrong otherwise in some", "mended"],
)
def test_where_it_is_known_what_is_computed_another_answer_is_a_finding(gate, known, tmp_path, answer, code):
    path = tmp_path / "mine.py"
    path.write_text(path.read_text() + WIDE.format(name="wide", answer=answer))
    known(("bad", ""), ("wide", INSTEAD))
    result = gate()
    assert result.code == code
    told = re.findall(r"FINDING swa_mask.wide · (\w+)", result.out)
    assert told == (["equivalence"] if "~mask" in answer else [])
    if told:
        assert "what is known to be computed here: window += 1 (https://example.org/issues/7)" in result.out
    assert ("swa_mask.wide: does not fail any more" in result.out) == answer.startswith("right")


@pytest.mark.slow
def test_a_finding_beside_what_is_known_is_replayed_beside_it(gate, known, tmp_path, cli):
    path = tmp_path / "mine.py"
    kernels = path.read_text()
    path.write_text(kernels + WIDE.format(name="wide", answer="mask if inputs.capacity < 5 else ~mask"))
    known(("bad", ""), ("wide", INSTEAD))
    gate()
    folders = [one for one in (tmp_path / ".npudiff" / "findings").iterdir() if "wide-equivalence" in one.name]
    assert len(folders) == 1
    replayed = []
    for answer in ("~mask", "mask", "right(inputs, target)"):
        path.write_text(kernels + WIDE.format(name="wide", answer=answer))
        result = cli("replay", str(folders[0]), "--impl", str(path))
        replayed.append((result.code, result.out.split()[0]))
    assert replayed == [(ExitCode.FINDINGS, "FAILED"), (ExitCode.CLEAN, "FIXED"), (ExitCode.CLEAN, "FIXED")]


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "damaged", ["{}", '[{"instead": "window += 1"}]', '[{"instead": [1]}]', '[{"instead": ["x"]}]']
)
def test_a_damaged_finding_is_not_replayed_beside_what_is_not_known(gate, tmp_path, cli, damaged):
    gate()
    (folder,) = (tmp_path / ".npudiff" / "findings").iterdir()
    content = json.loads((folder / "finding.json").read_text())
    content["detail"]["known_answers"] = json.loads(damaged)
    (folder / "finding.json").write_text(json.dumps(content))
    result = cli("replay", str(folder), "--impl", str(tmp_path / "mine.py"))
    assert (result.code, result.out.split()[0]) == (ExitCode.USAGE, "ERROR")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('instead = ["window += 1"]', "instead needs a case"),
        (INSTEAD.replace("+= 1", "plus 1"), "instead: a change of inputs is written as"),
        (INSTEAD.replace("window +=", "windows +="), "instead: windows += 1: unknown field"),
        ('property = "none_such"', "unknown property 'none_such'"),
        ('where = ["windows=3"]', "unknown axis 'windows'"),
        ('where = ["window=-3"]', "window is one of"),
        ("case = '{'", "case: not JSON"),
        (CASE.replace("3,", "-3,"), "case: "),
        (CASE + '\nwhere = ["window=4"]', "case: no part of it lies within 'where'"),
    ],
)
def test_an_issue_that_cannot_be_is_refused_before_anything_runs(gate, known, more, said):
    known(("bad", more))
    result = gate()
    assert result.code == ExitCode.USAGE
    assert result.err.startswith("npudiff: known_issues.toml:2: ")
    assert said in result.err


@pytest.mark.slow
@pytest.mark.parametrize("more", ['target = ["npu"]', 'cann = "<8"', 'torch_npu = ">=2.6"', 'soc = "Ascend*"'])
def test_an_issue_of_another_machine_hides_nothing_and_need_not_fail(gate, known, more):
    known(("bad", more), ("good", more))
    result = gate()
    assert "FINDING swa_mask.bad" in result.out
    assert "error " not in result.out
    assert result.out.count("not known here") == 2


def test_an_issue_that_comes_and_goes_may_be_quiet(gate, known):
    known(("good", "intermittent = true"), ("bad", ""))
    result = gate()
    assert result.code == ExitCode.CLEAN
    assert "note     known issue swa_mask.good: did not fail this time, and comes and goes" in result.out


@pytest.mark.slow
def test_issues_of_components_that_are_not_run_are_left_alone(gate, known, tmp_path):
    known(("bad", ""), ("elsewhere", ""))
    path = tmp_path / "known_issues.toml"
    head, _, tail = path.read_text().rpartition("swa_mask")
    path.write_text(f"{head}rms_norm{tail}")
    assert "rms_norm.elsewhere: matches nothing" in gate().out
    result = gate("swa_mask")
    assert result.code == ExitCode.CLEAN
    assert "rms_norm.elsewhere: was not run" in result.out


def test_the_rotating_part_draws_other_cases_and_repeats_them_by_name(gate, known, monkeypatch):
    known(("bad", CASE))  # so that every job runs in both turns
    monkeypatch.setattr(gate_run, "_turns", lambda: iter((1, 2)))
    seeds, ran = {"one": [], "one again": [], "two": []}, []
    original = workers.run_job

    def run_job(job, budget, progress):
        ran.append((job.name, budget.fallback_seed))
        return original(job, budget)

    monkeypatch.setattr(workers, "run_job", run_job)
    for name in seeds:
        ran.clear()
        assert gate("--no-isolate", "--rotation", name.split()[0], rotating="fails", examples=5).code == ExitCode.CLEAN
        seeds[name] = [drawn for drawn in ran if drawn[1] is not None]
    assert seeds["one"] == seeds["one again"]
    assert len(set(seeds["one"])) == len(seeds["one"]) == 12
    assert not set(seeds["one"]) & set(seeds["two"])


@pytest.fixture
def only_rotating(monkeypatch):
    """A gate whose fixed part runs nothing, and whose rotating part has two turns."""
    monkeypatch.setattr(gate_run._Gate, "_fixed", lambda self: None)
    monkeypatch.setattr(gate_run, "_turns", lambda: iter((1, 2)))


@pytest.mark.slow
@pytest.mark.usefixtures("only_rotating")
def test_a_finding_of_the_rotating_part_closes_it_unless_it_is_told_only(gate):
    result = gate("--rotation", "x", rotating="fails", examples=100)
    assert result.code == ExitCode.FINDINGS
    assert "part       rotating" in result.out
    told = gate("--rotation", "x", rotating="warns", examples=100)
    assert told.code == ExitCode.CLEAN
    assert "part       rotating, told only" in told.out
    assert {one["level"] for one in told.sarif["runs"][0]["results"]} == {"warning"}
    assert gate("--rotation", "x", rotating="off").code == ExitCode.NOTHING_RAN


@pytest.mark.slow
@pytest.mark.usefixtures("only_rotating")
def test_what_failed_is_remembered_and_a_colleague_finds_it_with_that(gate, tmp_path):
    gate("--rotation", "x", rotating="fails", examples=100)
    (tmp_path / ".npudiff").rename(tmp_path / "theirs")
    assert gate("--rotation", "y", rotating="fails", examples=1).code == ExitCode.CLEAN  # one case is too few
    shutil.rmtree(tmp_path / "theirs" / "findings")
    result = gate("--rotation", "y", "--shared", "theirs", rotating="fails", examples=1)
    assert result.code == ExitCode.FINDINGS
    assert "part       rotating\n" in result.out


@pytest.mark.slow
def test_the_finding_of_a_colleague_comes_first(gate, cli, tmp_path):
    assert gate(examples=100).code == ExitCode.FINDINGS
    (tmp_path / ".npudiff").rename(tmp_path / "theirs")
    (tmp_path / "theirs" / "journal").rmdir()
    result = gate("--shared", "theirs", examples=1, rotating="warns", budget="3s")
    assert "part       what others found, told only" in result.out
    assert re.search(r"found +at case 1\b", result.out)
    result = gate("--shared", "theirs", examples=1, rotating="fails", budget="3s")
    assert result.code == ExitCode.FINDINGS
    assert "part       what others found\n" in result.out
    assert not (tmp_path / "theirs" / "journal").exists()
    assert gate("--shared", "nowhere").err == "npudiff: --shared nowhere: no such folder\n"


def test_a_gate_that_has_too_little_time_is_closed(gate):
    result = gate("--budget", "0.001s")
    assert result.code == ExitCode.FINDINGS
    assert "was not run to its end: there was no time" in result.out
    assert "jobs for which there was no time" in result.summary


def test_a_lost_device_ends_it_with_6_and_is_told_everywhere(gate, monkeypatch):
    def lost(job, budget, progress):
        raise DeviceLost("sim: no known answer")

    monkeypatch.setattr(workers, "run_job", lost)
    result = gate("--no-isolate")
    assert result.code == ExitCode.DEVICE_LOST
    assert result.summary.startswith("## npudiff gate: device lost, nothing counts: sim: no known answer")
    (invocation,) = result.sarif["runs"][0]["invocations"]
    assert (invocation["executionSuccessful"], invocation["exitCode"]) == (False, 6)
    said = [one["message"]["text"] for one in invocation["toolExecutionNotifications"]]
    assert said[0] == "device lost: sim: no known answer"
    assert all("was not run to its end" in text for text in said[1:])
    assert 'type="device-lost"' in result.junit


def test_an_interrupt_leaves_what_was_seen(gate, monkeypatch, tmp_path):
    original, ran = workers.run_job, []

    def run_job(job, budget, progress):
        ran.append(job)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return original(job, budget)

    monkeypatch.setattr(workers, "run_job", run_job)
    result = gate("--no-isolate")
    assert result.code == ExitCode.INTERRUPTED
    assert "was not run to its end" in result.summary
    assert result.summary.startswith("## npudiff gate: ended early: KeyboardInterrupt\n")
    assert 'type="ended-early"' in result.junit
    assert result.sarif["runs"][0]["invocations"][0]["exitCode"] == ExitCode.INTERRUPTED
    assert not result.sarif["runs"][0]["invocations"][0]["executionSuccessful"]
    assert json.loads((tmp_path / ".npudiff" / "npudiff.sarif").read_text())["version"] == "2.1.0"


def test_usage_errors_are_one_line(gate, tmp_path):
    assert gate("--known", "nothing.toml").err.startswith("npudiff: nothing.toml: cannot be read")
    assert gate("--touches", "a=swa_mask").err.endswith("needs --since\n")
    assert gate("--budget", "soon").code == ExitCode.USAGE


CRASHES = """

import os


@npudiff.implementation("swa_mask", name="crashes")
def crashes(inputs, target):
    if inputs.window == 3:
        os._exit(9)
    return right(inputs, target)
"""


@pytest.mark.slow
def test_a_crash_closes_it_and_the_others_run(gate, known, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(path.read_text() + CRASHES)
    result = gate("--isolate")
    assert result.code == ExitCode.FINDINGS
    assert "FINDING swa_mask.crashes · equivalence · process died" in result.out
    assert "FINDING swa_mask.bad · equivalence · wrong value" in result.out
    assert re.search(r"good +\d+ .* ok, 6 properties", result.out)
    known(("bad", ""), ("crashes", 'verdict = "process died"\nwhere = ["window=3"]'))
    assert gate("--isolate").code == ExitCode.CLEAN
    known(("bad", ""), ("crashes", 'verdict = "time-out"\nwhere = ["window=3"]'))
    assert "hold, but for process died" in gate("--isolate").out


@pytest.mark.slow
def test_a_relation_does_not_run_what_is_known_either(gate, known, tmp_path):
    """Without exclusions its other run would have a window of 3, and a colleague's case shows it every time."""
    known(("bad", 'where = ["window=3"]'))
    gate("--rotation", "x", examples=1)
    folder = next(iter((tmp_path / ".npudiff").glob("known/*equivalence*")))
    theirs = tmp_path / "theirs" / "findings" / "one"
    shutil.copytree(folder, theirs)
    case = {"kv_lengths": [3], "window": 2, "spare": 0, "dtype": "int32", "column": False}
    finding = json.loads((theirs / "finding.json").read_text())
    for prop in ("equivalence", "wide_window_equals_none"):
        changed = {**finding, "property_name": prop, "case": case, "tensors_sha256": None}
        (theirs / "finding.json").write_text(json.dumps(changed))
        assert gate("--shared", "theirs", examples=1, rotating="fails", budget="2s").code == ExitCode.CLEAN
    (tmp_path / "known_issues.toml").unlink()
    result = gate("--shared", "theirs", examples=1, rotating="fails", budget="2s")
    assert "FINDING swa_mask.bad · wide_window_equals_none" in result.out
    assert "part       what others found\n" in result.out


HANGS = """
import time

import npudiff
from npudiff.device.ascend.swa_mask import window_mask


@npudiff.implementation("swa_mask", name="hangs")
def hangs(inputs, target):
    while inputs.window is not None:
        time.sleep(0.1)
    return window_mask(inputs.kv_lengths, inputs.capacity, inputs.window)
"""


@pytest.mark.slow
def test_a_kernel_that_hangs_does_not_use_up_much_more_than_the_time_of_a_gate(gate, tmp_path):
    (tmp_path / "mine.py").write_text(HANGS, encoding="utf-8")
    result = gate(budget="50s", rotating="fails")
    assert result.code == ExitCode.FINDINGS
    assert "time-out: no answer within 5 s" in result.out
    assert float(re.search(r"cases in ([0-9.]+) s", result.out)[1]) < 75  # the last job was begun in time


NOTHING_HERE = """

@npudiff.implementation("swa_mask", name="elsewhere", supports={"lengths_dtype": ("int32",)})
def elsewhere(inputs, target):
    raise AssertionError("its cases are left out")
"""


@pytest.fixture
def not_here(gate, tmp_path):
    """An implementation whose cases all meet what is not here, beside those that are judged."""
    from npudiff.model.component import NotApplicable, Subject

    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + NOTHING_HERE)
    begin = Subject.begin

    def left_out(subject, inputs):
        if subject.implementation.name == "elsewhere":
            raise NotApplicable("torch.ops.npu.npu_nothing is not there")
        return begin(subject, inputs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Subject, "begin", left_out)
        yield patched


@pytest.mark.slow
def test_an_implementation_of_which_nothing_is_judged_closes_the_gate(gate, known, not_here):
    known(("bad", ""))
    result = gate("--no-isolate")
    assert result.code == ExitCode.FINDINGS
    assert "gate closed: 1 implementation of which no case could be judged" in result.out
    assert "no case of swa_mask.elsewhere could be judged: torch.ops.npu.npu_nothing is not there" in result.out
    assert "could be judged" in json.dumps(result.sarif)


@pytest.mark.slow
def test_a_known_issue_accepts_that_nothing_can_be_judged_until_something_can(gate, known, not_here):
    known(("bad", ""), ("elsewhere", 'verdict = "not judged"'))
    assert gate("--no-isolate").code == ExitCode.CLEAN
    not_here.undo()
    result = gate("--no-isolate")
    assert result.code == ExitCode.FINDINGS
    assert "swa_mask.elsewhere" in result.out
