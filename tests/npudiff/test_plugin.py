"""The plugin in pytest runs of their own, as its users have them."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys

import pytest

import warm
from npudiff.plugin import wants_device
from npudiff.show.run_page.read import read_record

COMPONENTS = ("--pyargs", "npudiff.properties.test_components")


@pytest.fixture
def run(tmp_path):
    """Run pytest in an empty folder; returns its result."""

    def call(*arguments):
        own = ("-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".")
        return warm.run_pytest(*own, *arguments, cwd=tmp_path, timeout=300)

    return call


def outcome(result):
    return {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", result.stdout)}


def test_a_users_file_gets_a_test_per_property(run, kernel):
    result = run(*COMPONENTS, "--impl", kernel("right"), "--examples", "5", "-v")
    assert result.returncode == 0, result.stdout
    own = ("order_does_not_matter", "capacity_does_not_matter", "wide_window_equals_none")
    for name in ("equivalence", *own, "earlier_calls_change_nothing", "stays_within_its_memory"):
        assert f"test_property_holds[swa_mask-mine-{name}] PASSED" in result.stdout
    assert outcome(result)["passed"] == 6
    assert re.search(
        r"^npudiff: 10 cases on sim, CANN 8\.5; 0 draws not applicable; worst error/bound 0\.00$",
        result.stdout,
        re.MULTILINE,
    )


@pytest.mark.slow
def test_a_finding_fails_its_test_with_its_text_and_a_folder_that_replays(run, cli, kernel, tmp_path):
    path = kernel("wrong")
    result = run(*COMPONENTS, "--impl", path, "--hypothesis-profile", "ci", "-k", "equivalence", "-n", "2")
    assert result.returncode == 1
    assert outcome(result)["failed"] == 1
    assert "swa_mask.mine: equivalence: wrong value" in result.stdout
    assert re.search(r"^case +kv2 · window 1 · capacity 2 · int32$", result.stdout, re.MULTILINE)
    assert re.search(r"^npudiff: \d+ cases on sim, CANN 8\.5; ", result.stdout, re.MULTILINE)
    # Where CI is set, pytest prints the whole text once more in its summary.
    (line,) = set(re.findall(r"^replay +npudiff (replay .*)$", result.stdout, re.MULTILINE))
    (folder,) = (tmp_path / ".npudiff" / "findings").iterdir()
    assert line == f"replay {folder} --impl {path}"
    assert json.loads((folder / "finding.json").read_text())["case"]["kv_lengths"] == [2]
    assert cli(*line.split(), "--impl", path).code == 1
    assert not (tmp_path / ".npudiff" / "examples").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_run_leaves_one_record_for_the_page_of_runs(run, cli, kernel, tmp_path, processes):
    result = run(
        *COMPONENTS, "--impl", kernel("wrong"), "--examples", "20", "--hypothesis-profile", "ci", "-n", processes
    )
    assert result.returncode == 1
    (path,) = (tmp_path / ".npudiff" / "runs").iterdir()
    record = read_record(path)
    assert (record.command, record.ended, record.target, record.profile) == ("pytest", "complete", "sim", "ci")
    jobs = {job.property_name: job for job in record.jobs}
    assert len(jobs) == len(record.jobs) == 6
    assert jobs["equivalence"].verdict == "wrong value"
    assert {finding.folder for finding in record.findings} == {
        path.name for path in (tmp_path / ".npudiff" / "findings").iterdir()
    }
    assert record.seconds > 0
    assert cli("report").code == 0
    assert "swa_mask" in (tmp_path / ".npudiff" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_dev_remembers_failures_between_runs(run, kernel, tmp_path):
    for _ in range(2):
        result = run(*COMPONENTS, "--impl", kernel("wrong"), "-k", "equivalence", "--npudiff-output", "out")
    assert (tmp_path / "out" / "examples" / "swa_mask.mine.equivalence").is_dir()
    assert "(cases that failed before are tried first)" in result.stdout


@pytest.mark.slow
def test_every_job_is_marked_npu(run, kernel):
    result = run(*COMPONENTS, "--impl", kernel("right"), "-m", "not npu", "--collect-only", "-q")
    assert "test_property_holds[" not in result.stdout
    assert re.search(r"\b6 deselected\b|\(6 deselected\)|6/\d", result.stdout), result.stdout


def test_npu_without_a_device_is_one_line_and_ends_with_4(run):
    result = run(*COMPONENTS, "-m", "npu")
    assert result.returncode == 4
    assert result.stderr.strip().count("\n") == 0
    assert result.stderr.startswith("ERROR: -m npu needs a device, and there is none: torch_npu ")
    assert "passed" not in result.stdout


def test_npu_with_the_simulator_is_refused(run):
    result = run(*COMPONENTS, "-m", "npu", "--target", "sim")
    assert result.returncode == 4
    assert result.stderr.strip() == (
        "ERROR: -m npu asks for a device, and --target sim is a simulator: leave out one of them"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--impl", "nope"), "unknown implementation 'nope'; known: "),
        (("--target", "gpu"), "unknown target 'gpu'; known: npu, sim"),
        (("--target", "sim", "--cann", "7"), "unknown CANN profile '7'; known: 8.5, 9.0, 9.1, pessimistic"),
        (("--target", "gpu", "-m", "npu"), "unknown target 'gpu'; known: npu, sim"),
    ],
)
def test_an_unknown_name_is_one_line_and_ends_with_4(run, arguments, expected):
    result = run(*COMPONENTS, *arguments)
    assert result.returncode == 4
    assert expected in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert "plugin.py" not in result.stdout


@pytest.mark.parametrize("examples", ["0", "-5"])
def test_a_number_of_examples_that_is_none_is_refused(run, kernel, examples):
    assert run(*COMPONENTS, "--impl", kernel("right"), "--examples", examples).returncode == 4


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["dev", pytest.param("nightly", marks=pytest.mark.slow)])
def test_hypothesis_takes_the_names_of_the_profiles(run, kernel, profile):
    path = kernel("right")
    path.write_text(path.read_text().replace('"mine"', '"mine", supports={"kv_length": range(9)}'))
    result = run(*COMPONENTS, "--impl", path, "--hypothesis-profile", profile, "-k", "capacity")
    assert result.returncode == 0, result.stdout
    cases = int(re.search(r"^npudiff: (\d+) cases", result.stdout, re.MULTILINE).group(1))
    assert cases == {"dev": 10, "nightly": 200}[profile]


def test_a_run_that_does_not_use_npudiff_is_left_alone(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test_it():\n    assert not {'torch', 'numpy', 'npudiff.run.engine'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "test_it.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "npudiff:" not in result.stdout


@pytest.mark.slow
def test_a_users_own_test_can_take_the_jobs(run, kernel, tmp_path):
    (tmp_path / "test_it.py").write_text(
        "def test_it(npudiff_job, npudiff_runner):\n"
        "    outcome = npudiff_runner.run(npudiff_job)\n"
        "    assert outcome.failure is None and outcome.cases\n"
    )
    result = run("test_it.py", "--impl", kernel("right"), "--examples", "3", "-k", "equivalence")
    assert result.returncode == 0, result.stdout
    assert outcome(result)["passed"] == 1


@pytest.mark.parametrize("expression", ["npu", "npu and not slow", "not slow and npu", "npu or slow", "(npu)"])
def test_an_expression_that_selects_npu_wants_a_device(expression):
    assert wants_device(expression)


@pytest.mark.parametrize("expression", ["", "slow", "not npu", "slow and not npu", "not (npu)", "npudiff", "not_npu"])
def test_an_expression_that_does_not_select_npu_wants_none(expression):
    assert not wants_device(expression)


@pytest.mark.slow
def test_importing_the_plugin_is_cheap(record_property):
    code = (
        "import pytest, sys, time\nstarted = time.process_time()\nimport npudiff.plugin\n"
        "seconds = time.process_time() - started\n"  # others of this machine may be busy
        "print(seconds, {'torch', 'hypothesis', 'numpy', 'rich', 'safetensors'} & set(sys.modules) or '')"
    )
    times = []
    for _ in range(5):
        seconds, _, heavy = subprocess.check_output([sys.executable, "-c", code], text=True).strip().partition(" ")
        assert not heavy
        times.append(float(seconds))
    record_property("median_seconds", statistics.median(times))
    print(f"import npudiff.plugin: median {statistics.median(times) * 1000:.1f} ms")
    assert statistics.median(times) <= 0.060


@pytest.mark.slow
@pytest.mark.parametrize(
    ("top", "code", "said"),
    [
        ("os._exit(0)", pytest.ExitCode.USAGE_ERROR, "SystemExit: os._exit(0)"),
        (
            "ctypes.CDLL(None).exit(0)",
            pytest.ExitCode.INTERNAL_ERROR,
            "ended before its last verdict, with exit code 0",
        ),
        (
            "os.kill(os.getpid(), 11)",
            pytest.ExitCode.INTERNAL_ERROR,
            "ended before its last verdict, with signal SIGSEGV",
        ),
        ("threading.Timer(0.5, lambda: os._exit(0)).start()", pytest.ExitCode.INTERNAL_ERROR, "with exit code 0"),
    ],
)
def test_a_file_that_ends_pytest_does_not_make_it_green(run, kernel, top, code, said):
    path = kernel("right")
    path.write_text(f"import ctypes, os, threading\n{top}\n{path.read_text()}")
    result = run(*COMPONENTS, "--impl", path, "--examples", "200")
    assert result.returncode == code, result.stderr
    assert said in result.stderr


@pytest.mark.slow
def test_a_program_that_calls_pytest_goes_on_once(kernel, tmp_path):
    program = tmp_path / "program.py"
    arguments = [*COMPONENTS, "--impl", str(kernel("right")), "--examples", "2", "-p", "no:cacheprovider", "-q"]
    program.write_text(f"import pytest\nprint('code', int(pytest.main({arguments!r})))\n")
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert result.stdout.count("code 0") == 1, result.stdout
