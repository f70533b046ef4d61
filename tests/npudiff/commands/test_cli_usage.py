"""What ends in one line, and the command as a process of its own."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys

import pytest

from npudiff import TargetUnavailable, __version__
from npudiff.commands.arguments import build_parser
from npudiff.commands.check import case_timeout, request_of
from npudiff.errors import ExitCode
from npudiff.run.discovery import component_names

QUICK = ("--target", "sim", "--examples", "5", "--seed", "1")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("check", "nope"), "npudiff: unknown component 'nope'; known: "),
        (("check", "swa_mask", "--impl", "nope"), "npudiff: unknown implementation 'nope'; known: "),
        (("check", "swa_mask", "--impl", "no.py"), "npudiff: --impl no.py: no such file"),
        (("check", "swa_mask", "--target", "gpu"), "npudiff: unknown target 'gpu'; known: npu, sim"),
        (
            ("check", "--target", "sim", "--cann", "7"),
            "npudiff: unknown CANN profile '7'; known: 8.5, 9.0, 9.1, pessimist",
        ),
        (
            ("check", "swa_mask", "--model", "x"),
            "npudiff: unknown model 'x'; known: deepseek-v3, gpt-oss-120b, mimo-v2-flash, qwen3-30b-a3b, step-3.5",
        ),
        (
            ("check", "swa_mask", "--hypothesis-profile", "x"),
            "npudiff: unknown hypothesis profile 'x'; known: ci, dev,",
        ),
        (("check", "swa_mask", "--where", "size=1"), "npudiff: --where: unknown axis 'size'; known: batch, capacity, "),
        (("check", "swa_mask", "--where", "batch"), "npudiff: --where 'batch': expected AXIS=VALUE[,VALUE...] or "),
        (("check", "swa_mask", "--where", "batch=0"), "npudiff: --where: batch is one of 1..4096, got 0"),
        (("check", "swa_mask", "--examples", "0"), "npudiff check: argument --examples: expected a positive number, "),
        (("check", "swa_mask", "--examples", "x"), "npudiff check: argument --examples: expected a positive number, "),
        (("check", "swa_mask", "--examples", "\u00b2"), "npudiff check: argument --examples: "),
        (("check", "swa_mask", "--budget", "5x"), "npudiff check: argument --budget: expected a duration such as 60s "),
        (("check", "swa_mask", "--budget", "0"), "npudiff check: argument --budget: expected a duration such as 60s "),
        (
            ("check", "swa_mask", "--budget", "nan"),
            "npudiff check: argument --budget: expected a duration such as 60s ",
        ),
        (("check", "swa_mask", "--budget", "1", "--examples", "1"), "npudiff check: argument --examples: not allowed "),
        (("check", "swa_mask", "--seed", "x"), "npudiff check: argument --seed: invalid int value: 'x'"),
        (("check", "swa_mask", "--case", "{"), "npudiff: --case: not JSON: "),
        (("check", "swa_mask", "--case", "{}"), "npudiff: --case: missing 'kv_lengths'"),
        (
            ("check", "swa_mask", "--case", '{"kv_length": [1]}'),
            "npudiff: --case: unknown field 'kv_length'; did you mean 'kv_lengths'? known: column, dtype, kv_lengths, ",
        ),
        (("check", "swa_mask", "--case", '{"kv_lengths": []}'), "npudiff: --case: batch must lie in 1..4096, got 0"),
        (("check", "--case", "{}"), "npudiff: --case needs exactly one component, got "),
        (("list", "nope"), "npudiff: unknown component 'nope'; known: "),
        (("list", "--impl", "nope"), "npudiff: unknown implementation 'nope'; known: "),
        ((), "npudiff: the following arguments are required: COMMAND; see npudiff --help"),
        (("nope",), "npudiff: argument COMMAND: invalid choice: 'nope'"),
        (("check", "--nope"), "npudiff: unrecognized arguments: --nope; see npudiff --help"),
        (("chek",), "npudiff: argument COMMAND: invalid choice: 'chek'"),
        (
            ("check", "--exmples", "5"),
            "npudiff check: unrecognized arguments: --exmples; did you mean '--examples'? see npudiff check --help\n",
        ),
        (("check", "--Seed=5"), "npudiff check: unrecognized arguments: --Seed=5; did you mean '--seed'? see npudiff "),
        (("check", "rms_nrm"), "npudiff: unknown component 'rms_nrm'; did you mean 'rms_norm'? known: cache_gather, "),
        (
            ("check", "RMS-norm"),
            "npudiff: unknown component 'RMS-norm'; did you mean 'rms_norm'? known: cache_gather, ",
        ),
        (("check", "--target", "simm"), "npudiff: unknown target 'simm'; did you mean 'sim'? known: npu, sim, virtual"),
        (
            ("check", "--target", "sim", "--cann", "pesimistic"),
            "npudiff: unknown CANN profile 'pesimistic'; did you mean 'pessimistic'? known: 8.5, 9.0, 9.1, pessimistic",
        ),
        (
            ("check", "--hypothesis-profile", "nigthly"),
            "npudiff: unknown hypothesis profile 'nigthly'; did you mean 'nightly'? known: ci, dev, nightly",
        ),
        (
            ("check", "swa_mask", "--impl", "swa_mask.egaer"),
            "npudiff: unknown implementation 'swa_mask.egaer'; did you mean 'swa_mask.eager'? known: swa_mask.eager",
        ),
        (
            ("check", "swa_mask", "--where", "widow=1"),
            "npudiff: --where: unknown axis 'widow'; did you mean 'window'? known: batch, capacity, ",
        ),
        (
            ("check", "swa_mask", "--where", "lengths_dtype=int_32"),
            "npudiff: --where: lengths_dtype is one of {int32, int64}, got 'int_32'; did you mean 'int32'?",
        ),
        (
            ("score", "swa_mask", "--method", "fixed-shape"),
            "npudiff: unknown method 'fixed-shape'; did you mean 'fixed shapes'? known: ",
        ),
        (("replay",), "npudiff replay: the following arguments are required: PATH; see npudiff replay --help"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_ends_with_6(cli, arguments, expected):
    result = cli(*arguments)
    assert result.code == ExitCode.USAGE == 4
    assert result.out == ""
    assert result.err.startswith(expected)
    assert result.err.count("\n") == 1


def test_the_nearest_choice_is_named(cli):
    assert cli("chek").err.endswith("; did you mean 'check'? see npudiff --help\n")
    assert cli("gate", "--rotating", "fail").err.endswith("; did you mean 'fails'? see npudiff gate --help\n")
    assert cli("nope").err.endswith("; see npudiff --help\n")
    assert "did you mean" not in cli("nope").err


def test_a_device_that_is_not_there_is_one_line_and_ends_with_6(cli, monkeypatch):
    def load_target(name, cann):
        raise TargetUnavailable("torch_npu sees no NPU")

    monkeypatch.setattr("npudiff.run.plan.load_target", load_target)
    result = cli("check", "swa_mask", "--target", "npu")
    assert (result.code, result.err) == (ExitCode.DEVICE_LOST, "npudiff: torch_npu sees no NPU\n")


def test_nothing_that_ran_ends_with_5(cli, kernel):
    path = kernel("right")
    path.write_text(path.read_text().replace('name="mine"', 'name="mine", supports={"window": (4,)}'))
    result = cli("check", "swa_mask", "--impl", path, "--target", "sim", "--case", '{"kv_lengths": [1], "window": 5}')
    assert result.code == ExitCode.NOTHING_RAN == 5
    assert "not applicable" in result.out


LEAVES = "import npudiff, sys\n@npudiff.implementation('swa_mask', name='q')\ndef f(inputs, target): sys.exit(0)\n"


@pytest.mark.parametrize("quits", ["import sys; sys.exit(0)", LEAVES])
def test_a_users_file_that_leaves_the_process_is_never_clean(cli, kernel, quits):
    assert cli("check", "swa_mask", "--impl", kernel(quits), *QUICK).code != ExitCode.CLEAN


def test_a_range_that_no_case_can_fill_is_a_usage_error(cli):
    result = cli("check", "swa_mask", "--impl", "eager", *QUICK, "--where", "batch=5000..1" + "0" * 30)
    assert result.code == ExitCode.USAGE


def test_a_huge_upper_end_does_not_stop_the_run(cli):
    result = cli("check", "swa_mask", "--impl", "eager", *QUICK, "--where", "batch=100..1" + "0" * 30)
    assert result.code in (ExitCode.CLEAN, ExitCode.USAGE)


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


MAIN = "import sys; from npudiff.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
def test_the_command_ends_with_the_exit_code_in_a_process_of_its_own():
    result = python(MAIN, "check", "nope")
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr.startswith("npudiff: unknown component 'nope'; known: ")
    assert result.stderr.endswith(", ".join(component_names()[-4:]) + "\n")


def test_help_and_version_import_nothing_heavy():
    heavy = ("torch", "hypothesis", "rich", "numpy", "safetensors")
    code = (
        "import sys, json\nfrom npudiff.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as e: code = e.code\n"
        f"print(json.dumps([code, [name for name in {heavy} if name in sys.modules]]))"
    )
    for option in ("--help", "--version"):
        result = python(code, option)
        assert json.loads(result.stdout.splitlines()[-1]) == [0, []]
    assert result.stdout.splitlines()[0] == f"npudiff {__version__}"


def test_help_is_fast(record_property):
    """Of a processor: what else runs beside these tests takes no part in it."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python(MAIN, "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    record_property("median_seconds", statistics.median(times))
    print(f"npudiff --help: median {statistics.median(times):.3f} s")
    assert statistics.median(times) < 0.4


@pytest.mark.slow
def test_a_reader_that_went_away_is_no_finding():
    closed = "import os; reading, writing = os.pipe(); os.close(reading); os.dup2(writing, 1); "
    result = python(closed + MAIN, "list", "swa_mask")
    assert result.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("given", "budget", "seconds"),
    [
        (None, None, 60),
        *((None, budget, seconds) for budget, seconds in ((1800, 60), (600, 60), (300, 30), (20, 5))),
        *((2, 20, 2), (90, 20, 90), (90, None, 90)),
    ],
)
def test_a_case_that_hangs_leaves_time_for_the_rest_of_a_run(given, budget, seconds):
    assert case_timeout(given, budget) == seconds


@pytest.mark.parametrize(("command", "seconds"), [(["check", "--budget", "80s"], 8), (["check"], 60), (["gate"], 60)])
def test_the_time_of_a_case_follows_from_that_of_the_run_and_leaves_time(command, seconds):
    options = build_parser().parse_args(command)
    assert request_of(options, options.budget).timeout == seconds
