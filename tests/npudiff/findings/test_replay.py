from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from npudiff.errors import ExitCode
from npudiff.findings import replay
from npudiff.findings.finding import AFTER_OTHERS, FINDING_FILE, POISONS
from npudiff.findings.replay import finding_folders
from npudiff.model.faults import Kind

MASK_CASE = {"kv_lengths": [2], "window": 1, "spare": 0, "dtype": "int32", "column": False}


@pytest.fixture
def found(cli, kernel, tmp_path):
    """The folder of a finding of a user's wrong kernel."""
    cli("check", "swa_mask", "--impl", kernel("wrong"), "--target", "sim", "--case", json.dumps(MASK_CASE))
    (folder,) = (tmp_path / ".npudiff" / "findings").iterdir()
    return folder


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_one_error_line(result, folder):
    assert result.code == ExitCode.USAGE
    assert result.out.startswith("ERROR  ")
    assert result.out.count("\n") == 1
    assert str(folder) in result.out
    assert result.out[:-1].isprintable()
    assert len(result.out) < 2000
    assert result.err == ""


def test_a_finding_fails_until_it_is_fixed(cli, kernel, found):
    path = kernel("wrong")
    failed = cli("replay", found, "--impl", path)
    assert failed.code == ExitCode.FINDINGS
    assert failed.out == "FAILED swa_mask.mine.equivalence: kv2 · window 1 · capacity 2 · int32\n"
    kernel("right")
    fixed = cli("replay", found, "--impl", path)
    assert fixed.code == ExitCode.CLEAN
    assert fixed.out.startswith("FIXED  swa_mask.mine.equivalence: kv2 · window 1 ")
    again = cli("replay", found)
    assert_one_error_line(again, found)
    assert "unknown implementation 'mine'" in again.out
    assert "give its file with --impl" in again.out


FORMER = {
    "schema_version": 1,
    "created": "2026-11-20T08:00:00Z",
    "component": "swa_mask",
    "implementation": "mask_without_tail",
    "target": "sim",
    "cann": "8.5",
    "property_name": "equivalence",
    "verdict": "wrong value",
    "case": {**MASK_CASE, "spare": 1},
    "detail": {},
    "environment": {"npudiff": "0.1.0"},
    "options": "--impl device.mutants.swa_mask",
    "command": "npudiff replay old --impl device.mutants.swa_mask",
    "tensors_sha256": None,
}
"""A finding that was written when ``device`` was a package of its own."""


def test_a_finding_from_before_the_packages_were_one_replays_and_its_option_is_answered(cli, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / FINDING_FILE).write_text(json.dumps(FORMER))
    replayed = cli("replay", tmp_path / "old")
    assert (replayed.code, replayed.out[:46]) == (ExitCode.FINDINGS, "FAILED swa_mask.mask_without_tail.equivalence:")
    as_written = cli("replay", tmp_path / "old", "--impl", "device.mutants.swa_mask")
    assert_one_error_line(as_written, tmp_path / "old")
    assert "--impl device.mutants.swa_mask: this module is npudiff.device.mutants.swa_mask now" in as_written.out
    assert cli("replay", tmp_path / "old", "--impl", "npudiff.device.mutants.swa_mask").out == replayed.out


def test_what_failed_after_unknown_cases_only_is_not_called_fixed(cli, kernel, found):
    content = json.loads((found / FINDING_FILE).read_text())
    (found / FINDING_FILE).write_text(json.dumps({**content, "verdict": AFTER_OTHERS}))
    path = kernel("right")
    result = cli("replay", found, "--impl", path)
    assert result.code == ExitCode.USAGE
    assert result.out.startswith("ERROR  swa_mask.mine.equivalence: kv2 ")
    assert "cannot be replayed: it holds by itself" in result.out
    kernel("wrong")
    assert cli("replay", found, "--impl", path).code == ExitCode.FINDINGS


CANNS = """
import pathlib
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

@npudiff.implementation("swa_mask", name="mine")
def mine(inputs, target):
    with pathlib.Path({log!r}).open("a") as file:
        print(target.cann, file=file)
    return window_mask(inputs.kv_lengths, inputs.capacity, inputs.window)
"""


def test_a_poisoning_is_replayed_in_a_process_of_its_own_even_if_it_is_built_in(cli, hostile, monkeypatch):
    folder = hostile()
    content = json.loads((folder / FINDING_FILE).read_text())
    changed = {**content, "verdict": POISONS, "detail": {"victim": content["case"]}}
    (folder / FINDING_FILE).write_text(json.dumps(changed))
    isolated = []

    def run_cases(job, cases, isolation=None):
        isolated.append((len(cases), isolation is not None))
        return replay.run_case(job, cases[0], isolation)

    monkeypatch.setattr(replay, "run_cases", run_cases)
    assert cli("replay", folder).code == ExitCode.FINDINGS
    assert isolated == [(2, True)]


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("options", "cann"),
    [
        ((), "9.0"),
        (("--cann", "8.5"), "8.5"),
        (("--target", "sim"), "8.5"),
        (("--target", "sim", "--cann", "9.0"), "9.0"),
    ],
)
def test_a_finding_replays_under_the_cann_that_it_was_found_with(cli, kernel, found, tmp_path, options, cann):
    content = json.loads((found / FINDING_FILE).read_text())
    (found / FINDING_FILE).write_text(json.dumps({**content, "cann": "9.0"}))
    path = kernel(CANNS.format(log=str(tmp_path / "log")))
    assert cli("replay", found, "--impl", path, *options).code == ExitCode.CLEAN
    assert set((tmp_path / "log").read_text().split()) == {cann}


def test_replaying_changes_no_file(cli, hostile, tmp_path):
    folder = hostile()
    before = tree(tmp_path)
    assert cli("replay", folder).code == ExitCode.FINDINGS
    assert tree(tmp_path) == before


def test_a_users_file_goes_before_a_built_in_implementation_of_the_same_name(cli, kernel, hostile):
    folder, path = hostile(), kernel("right")
    path.write_text(path.read_text().replace('"mine"', '"mask_left_context_512"'))
    assert cli("replay", folder).code == ExitCode.FINDINGS
    assert cli("replay", folder, "--impl", path).code == ExitCode.CLEAN


def test_an_implementation_that_raises_now_has_not_fixed_it(cli, kernel, found):
    path = kernel("right")
    path.write_text(path.read_text().replace("return window_mask(", "raise RuntimeError("))
    assert cli("replay", found, "--impl", path).code == ExitCode.FINDINGS


def test_an_implementation_that_no_longer_supports_the_case_has_not_fixed_it(cli, kernel, found):
    path = kernel("right")
    path.write_text(path.read_text().replace('"mine"', '"mine", supports={"window": (7,)}'))
    result = cli("replay", found, "--impl", path)
    assert_one_error_line(result, "swa_mask.mine.equivalence")
    assert "not applicable: window 1 is not in {7}" in result.out


@pytest.mark.slow
def test_many_findings_are_replayed_and_the_worst_decides(cli, kernel, found, hostile, tmp_path):
    folder = hostile()
    (tmp_path / "empty").mkdir()
    path = kernel("right")
    assert cli("replay", found, folder, "--impl", path).code == ExitCode.FINDINGS
    assert cli("replay", found, tmp_path / "empty", "--impl", path).code == ExitCode.USAGE
    result = cli("replay", folder.parent, tmp_path / "empty", "--impl", path)
    assert result.code == ExitCode.FINDINGS
    assert sorted(line.split()[0] for line in result.out.splitlines()) == ["ERROR", "FAILED", "FIXED"]


def test_a_users_file_is_executed_once_for_many_findings(cli, kernel, found, tmp_path):
    shutil.copytree(found, found.with_name("copy"))
    log = tmp_path / "log"
    path = kernel("right")
    path.write_text(
        f"import pathlib\nwith pathlib.Path({str(log)!r}).open('a') as f: f.write('x')\n" + path.read_text()
    )
    assert cli("replay", found.parent, "--impl", path).code == ExitCode.CLEAN
    assert log.read_text() == "x"


def test_paths_name_a_folder_a_file_or_a_folder_of_folders(found):
    assert finding_folders([found]) == [found]
    assert finding_folders([found / FINDING_FILE]) == [found]
    assert finding_folders([found.parent]) == [found]
    missing = Path("nowhere")
    assert finding_folders([missing, found.parent.parent]) == [missing, found.parent.parent]


def test_the_target_is_that_of_the_finding_unless_another_is_given(cli, hostile):
    folder = hostile(cann="9.0")
    assert cli("replay", folder).code == ExitCode.FINDINGS
    assert cli("replay", folder, "--cann", "8.5").code == ExitCode.FINDINGS
    assert_one_error_line(cli("replay", folder, "--cann", "7"), folder)
    assert cli("replay", hostile(target="elsewhere"), "--target", "sim").code == ExitCode.FINDINGS


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_what_is_no_finding_folder_is_one_line(cli, tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert_one_error_line(cli("replay", tmp_path / name), name)


VICTIM = {**MASK_CASE, "kv_lengths": [3]}

POISONING = """
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

seen = []

@npudiff.implementation("swa_mask", name="mine")
def swa_mask(inputs, target):
    seen.append(inputs.capacity)
    mask = window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
    return ~mask if len(seen) > 1 else mask
"""
"""A kernel whose first case is right and spoils the next one."""


@pytest.fixture
def poisoning(found):
    """Turn the finding into one of a case that poisons; returns a function of the victim."""

    def write(victim=VICTIM, verdict=POISONS):
        content = json.loads((found / FINDING_FILE).read_text())
        content = {**content, "verdict": verdict, "detail": {} if victim is None else {"victim": victim}}
        (found / FINDING_FILE).write_text(json.dumps(content))
        return found

    return write


@pytest.mark.few(1)
@pytest.mark.parametrize("flags", [(), ("--isolate",), ("--no-isolate",)])
def test_a_case_that_poisons_is_replayed_before_its_victim_and_never_here(cli, kernel, poisoning, flags):
    path = kernel(POISONING)
    result = cli("replay", poisoning(), "--impl", path, *flags)
    assert (result.code, result.out.split()[0]) == (ExitCode.FINDINGS, "FAILED")
    kernel("right")
    assert cli("replay", poisoning(), "--impl", path, *flags).code == ExitCode.CLEAN


def test_where_nothing_is_isolated_a_poisoning_is_an_error_and_a_crash_may_be_replayed_here(
    cli, kernel, poisoning, monkeypatch
):
    monkeypatch.setattr("npudiff.findings.replay.can_isolate", lambda: False)
    path = kernel("right")
    for flags in ((), ("--isolate",), ("--no-isolate",)):
        result = cli("replay", poisoning(), "--impl", path, *flags)
        assert_one_error_line(result, poisoning())
        assert result.out.endswith(": --isolate needs Linux\n")
    died = poisoning(verdict=Kind.DIED.value)
    result = cli("replay", died, "--impl", path)
    assert_one_error_line(result, died)
    assert result.out.endswith("--isolate needs Linux; --no-isolate runs the case in this process\n")
    assert cli("replay", died, "--impl", path, "--no-isolate").code == ExitCode.CLEAN


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("victim", "said"),
    [
        ({**MASK_CASE, "kv_lengths": [10**12]}, "kv_length must lie in 0..16777216"),
        ({**MASK_CASE, "kv_lengths": []}, "batch must lie in 1..4096, got 0"),
        ({"kv_lengths": "x"}, "kv_lengths"),
        (None, "expected an object, got NoneType"),
    ],
)
def test_an_illegal_victim_is_refused_before_anything_is_run(cli, kernel, poisoning, tmp_path, victim, said):
    path = kernel("right")
    path.write_text(path.read_text().replace("return ", f"open({str(tmp_path / 'ran')!r}, 'w'); return "))
    result = cli("replay", poisoning(victim), "--impl", path)
    assert_one_error_line(result, poisoning(victim))
    assert "the victim is damaged: " in result.out
    assert said in result.out
    assert not (tmp_path / "ran").exists()
