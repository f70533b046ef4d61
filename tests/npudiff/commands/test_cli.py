from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from npudiff import __version__
from npudiff.device.ascend import swa_mask_eager
from npudiff.errors import ExitCode
from npudiff.run import discovery
from npudiff.run.discovery import load_component

QUICK = ("--target", "sim", "--examples", "10", "--seed", "1")


@pytest.fixture
def patched_mask(monkeypatch):
    """Change the mask component for one run."""
    original = discovery.load_component

    def patch(**changes):
        monkeypatch.setattr(discovery, "load_component", lambda name: replace(original(name), **changes))

    return patch


def masked(text):
    """Hide times, versions and folders, and blanks at line ends."""
    text = re.sub(r"\b\d+\.\d s\b( on \d+ workers)?", "T s", text)
    text = re.sub(r"(exact|differs|\d\.\d\d| -)( +)\d+\.\d ", r"\1\2T.T ", text)
    text = re.sub(r"torch \S+", "torch V", text.replace(__version__, "V"))
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"-[0-9a-f]{10}\b", "-DIGEST", text)


CLEAN = """\
npudiff V · target sim, CANN 9.0 · torch V · profile ci, seed 1
operators are simulated on the CPU: nothing here ran on an NPU
one CANN is looked at, 9.0 (others: --cann 8.5, 9.1, pessimistic); no SoC is told apart
swa_mask

  implementation   cases   query length 1   n/a   error/bound   job s   result
 ────────────────────────────────────────────────────────────────────────────────────────
  eager               16             100%     0         exact     T.T   ok, 7 properties

16 cases in T s · 1 implementation · 0 findings
"""

FOUND = """\
npudiff V · target sim, CANN 8.5 · torch V · profile dev, seed 1
operators are simulated on the CPU: nothing here ran on an NPU
one CANN is looked at, 8.5 (others: --cann 9.0, 9.1, pessimistic); no SoC is told apart
swa_mask

  implementation      cases   query length 1   n/a   error/bound   job s   result
 ────────────────────────────────────────────────────────────────────────────────────
  mask_without_tail       1             100%     0       differs     T.T   1 finding


FINDING swa_mask.mask_without_tail · equivalence · wrong value
  case       kv2 kv4 · window 3 · capacity 5 · int32
  alone      failed 1 of 1 times in a process of its own
  worst      mask: differs where equality is asked for: got False, expected True, at request 0, kv length 2, key 2, \
distance to query -1
  pattern    4 of 10 elements are wrong; only at key 2, 3, 4; only at distance to query -3, -2, -1
  found      at case 1
  replay     npudiff replay .npudiff/findings/swa_mask-mask_without_tail-equivalence-DIGEST
  script     python .npudiff/findings/swa_mask-mask_without_tail-equivalence-DIGEST/reproduce.py
  picture    .npudiff/findings/swa_mask-mask_without_tail-equivalence-DIGEST/finding.html
1 case in T s · 1 implementation · 1 finding
"""


def test_a_clean_run_says_what_ran_and_ends_with_0(cli):
    result = cli("check", "swa_mask", "--impl", "eager", "--target", "sim", "--cann", "9.0", "--examples", "10",
                 "--seed", "1", "--hypothesis-profile", "ci", "--where", "batch=2", "--where", "window=4")  # fmt: skip
    assert masked(result.out) == CLEAN
    assert result.err == ""
    assert result.code == ExitCode.CLEAN == 0


def test_a_finding_is_shown_whole_and_ends_with_1(cli):
    result = cli("check", "swa_mask", "--impl", "mask_without_tail", "--target", "sim", "--seed", "1",
                 "--case", '{"kv_lengths": [2, 4], "window": 3, "spare": 1}')  # fmt: skip
    assert masked(result.out) == FOUND
    assert result.code == ExitCode.FINDINGS == 1


def test_the_line_that_replays_a_finding_replays_it(cli):
    out = cli("check", "swa_mask", "--impl", "mask_without_tail", *QUICK).out
    (line,) = re.findall(r"npudiff (replay .*)", out)
    result = cli(*line.split())
    assert result.code == ExitCode.FINDINGS
    assert result.out.startswith("FAILED swa_mask.mask_without_tail.equivalence: kv0 · window 1 ")


def test_a_mutant_of_each_component_shows_that_a_check_can_fail(cli):
    result = cli("check", "swa_mask", "scale_pack", *QUICK)
    assert result.code == ExitCode.CLEAN
    assert "2 of 2 mutants found" in result.out
    assert "0 findings" in result.out


@pytest.mark.slow
def test_all_mutants_are_found_by_the_self_test_and_nothing_else_runs(cli):
    result = cli("self-test", "swa_mask", *QUICK[:2], "--seed", "0")
    assert result.code == ExitCode.CLEAN
    assert "6 of 6 mutants found" in result.out
    assert "0 implementations" in result.out
    assert "eager" not in result.out


def test_a_mutant_that_the_self_test_misses_ends_with_1(cli, monkeypatch):
    harmless = replace(swa_mask_eager, name="harmless", wrong="nothing", graph=False)
    monkeypatch.setattr("npudiff.run.discovery.built_in_implementations", lambda: [swa_mask_eager, harmless])
    result = cli("self-test", "swa_mask", "--target", "sim", "--seed", "1")
    assert re.search(r"swa_mask\.harmless +MISSED +not in 100 cases", result.out)
    assert result.code == ExitCode.FINDINGS


@pytest.mark.slow
def test_results_are_written_as_junit_too(cli, tmp_path):
    path = tmp_path / "reports" / "npudiff.xml"
    result = cli("check", "swa_mask", "--impl", "eager", "--impl", "mask_minus_one", *QUICK, "--junit", path)
    assert result.code == ExitCode.FINDINGS
    whole = ET.parse(path).getroot()  # noqa: S314 - it was made here
    tests = {(test.get("classname"), test.get("name")): test for test in whole.iter("testcase")}
    assert len(tests) == int(whole.get("tests")) == 13
    assert tests["npudiff.swa_mask.eager", "equivalence"].find("failure") is None
    failed = tests["npudiff.swa_mask.mask_minus_one", "equivalence"]
    assert failed.find("failure").get("message").startswith("swa_mask.mask_minus_one: equivalence: wrong value on ")
    assert failed.get("file") == "npudiff/device/mutants/swa_mask.py"


@pytest.mark.slow
def test_junit_says_what_else_fails_a_run(cli, monkeypatch, tmp_path):
    harmless = replace(swa_mask_eager, name="harmless", wrong="nothing", graph=False)
    monkeypatch.setattr("npudiff.run.discovery.built_in_implementations", lambda: [swa_mask_eager, harmless])
    path = tmp_path / "npudiff.xml"
    assert cli("check", "swa_mask", *QUICK, "--junit", path).code == ExitCode.FINDINGS
    (failure,) = ET.parse(path).getroot().iter("failure")  # noqa: S314 - it was made here
    assert failure.get("message").startswith("swa_mask.harmless.equivalence is wrong on purpose")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("npudiff.run.workers.run_job", interrupted)
    assert cli("check", "swa_mask", "--workers", "1", *QUICK, "--junit", path).code == ExitCode.INTERRUPTED
    (failure,) = ET.parse(path).getroot().iter("failure")  # noqa: S314 - it was made here
    assert failure.get("message") == "ended early: KeyboardInterrupt"


def test_the_self_test_takes_no_option_that_it_would_ignore(cli):
    assert cli("self-test", "swa_mask", "--shared", ".").code == ExitCode.USAGE


def test_the_old_name_of_an_option_is_refused_with_the_new_one(cli):
    result = cli("check", "swa_mask", "--profile", "step-3.5-flash")
    assert result.code == ExitCode.USAGE
    assert result.err == "npudiff check: --profile is called --model now; see npudiff check --help\n"


@pytest.mark.slow
def test_a_missed_mutant_ends_with_1(cli, monkeypatch):
    harmless = replace(swa_mask_eager, name="harmless", wrong="nothing", graph=False)
    monkeypatch.setattr("npudiff.run.discovery.built_in_implementations", lambda: [swa_mask_eager, harmless])
    result = cli("check", "swa_mask", "--target", "sim", "--seed", "1")
    assert re.search(r"swa_mask\.harmless +MISSED +not in 100 cases", result.out)
    assert result.code == ExitCode.FINDINGS


@pytest.mark.slow
@pytest.mark.parametrize("narrowed", [("--where", "window=4"), ("--model", "step-3.5-flash"), ("--examples", "5")])
def test_a_mutant_that_a_narrowed_run_does_not_show_is_no_failure(cli, narrowed):
    """mask_minus_one is wrong without a window only, mask_left_context_512 only where the window is not 512."""
    result = cli("check", "swa_mask", "--target", "sim", "--seed", "1", *narrowed)
    assert "MISSED" not in result.out
    assert result.code == ExitCode.CLEAN


@pytest.mark.slow
@pytest.mark.parametrize(
    ("component", "implementation"), [("sliding_attention", "fia_extend_tnd"), ("swa_mask", "eager")]
)
def test_every_profile_of_a_correct_implementation_is_clean(cli, component, implementation):
    """Of one implementation: production sizes cost the simulator much."""
    options = ("--impl", implementation, "--target", "sim", "--examples", "4", "--seed", "1")
    for name in load_component(component).profiles:
        result = cli("check", component, "--model", name, *options)
        assert result.code == ExitCode.CLEAN, (name, result.out)


@pytest.mark.slow
def test_the_line_that_replays_a_users_finding_names_the_file(cli, kernel):
    path = kernel("wrong")
    out = cli("check", "swa_mask", "--impl", path, *QUICK).out
    line = re.search(r"npudiff (replay .*)", out).group(1)
    assert line.endswith(f"--impl {path}")
    assert cli(*line.split()).code == ExitCode.FINDINGS


def test_an_implementation_that_writes_into_its_inputs_is_a_finding(cli, kernel):
    path = kernel("right")
    path.write_text(path.read_text().replace("    return", "    inputs.kv_lengths.add_(1)\n    return", 1))
    result = cli("check", "swa_mask", "--impl", path, *QUICK)
    assert "InputsChanged: the implementation wrote into its inputs: kv_lengths" in result.out
    assert result.code == ExitCode.FINDINGS


@pytest.mark.slow
def test_a_number_with_a_point_can_be_asked_for(cli):
    result = cli("check", "sliding_attention", "--impl", "torch_native", *QUICK, "--where", "scale=0.5")
    assert result.code == ExitCode.CLEAN


def test_verbose_shows_every_property_and_where_the_cases_were(cli):
    result = cli("check", "swa_mask", "--impl", "eager", *QUICK, "-v")
    for text in ("  order_does_not_matter", "  equivalence", "cases by region: query length 1 100%"):
        assert text in result.out


def test_a_users_file_is_all_it_takes(cli, kernel):
    result = cli("check", "swa_mask", "--impl", kernel("right"), *QUICK)
    assert result.code == ExitCode.CLEAN
    assert re.search(r"mine +15 .* ok, 6 properties", result.out)
    assert cli("check", "swa_mask", "--impl", kernel("wrong"), *QUICK, "--where", "window=4").code == ExitCode.FINDINGS


@pytest.mark.slow
def test_interruption_ends_with_2_and_keeps_what_was_found(cli, kernel):
    cli_file = (
        kernel("wrong").read_text()
        + """
@npudiff.implementation("swa_mask", name="stopped")
def stopped(inputs, target):
    raise KeyboardInterrupt
"""
    )
    arguments = ("check", "swa_mask", "--impl", kernel(cli_file), *QUICK, "--where", "window=4")
    result = cli(
        *arguments, "--no-isolate", "--workers", 1
    )  # in a process of its own it is the kernel's, and a finding
    assert result.code == ExitCode.INTERRUPTED == 2
    assert result.err.endswith("npudiff: interrupted\n")
    assert "FINDING swa_mask.mine" in result.out
    result = cli(*arguments)
    assert result.code == ExitCode.FINDINGS
    assert "raised     KeyboardInterrupt" in result.out


def test_a_defect_of_the_reference_ends_with_3_and_a_traceback(cli, patched_mask):
    def reference(inputs):
        raise LookupError("my own defect")

    patched_mask(reference=reference)
    result = cli("check", "swa_mask", "--impl", "eager", *QUICK)
    assert result.code == ExitCode.INTERNAL == 3
    assert "Traceback" in result.err
    assert "LookupError: my own defect" in result.err
    assert result.err.endswith("npudiff: internal error; please report it with the traceback above\n")


@pytest.mark.slow
def test_a_defect_of_the_reference_does_not_lose_what_was_found_before(cli, kernel, patched_mask):
    original = discovery.load_component("swa_mask").reference

    def reference(inputs):
        if inputs.window == 5:
            raise LookupError
        return original(inputs)

    patched_mask(reference=reference)
    one = kernel("wrong").read_text().replace('"mine"', '"mine", supports={"window": (4,)}')
    two = kernel("right").read_text().replace('"mine"', '"second", supports={"window": (5,)}')
    result = cli("check", "swa_mask", "--impl", kernel(one, "one.py"), "--impl", kernel(two, "two.py"), *QUICK)
    assert result.code == ExitCode.INTERNAL
    assert "FINDING swa_mask.mine" in result.out


def test_a_file_in_a_run_is_executed_once(cli, kernel, tmp_path):
    log = tmp_path / "log"
    path = kernel(f"import pathlib\nwith pathlib.Path({str(log)!r}).open('a') as f: f.write('x')\n")
    path.write_text(path.read_text() + kernel("right", "other.py").read_text())
    assert cli("check", "swa_mask", "--impl", path, *QUICK).code == ExitCode.CLEAN
    assert log.read_text() == "x"


@pytest.mark.slow
def test_where_and_profile_narrow_what_is_drawn(cli):
    common = ("check", "swa_mask", "--impl", "mask_left_context_512", *QUICK)
    assert cli(*common, "--where", "window=512").code == ExitCode.CLEAN
    assert cli(*common, "--model", "step-3.5-flash", "--where", "window=512").code == ExitCode.CLEAN
    assert cli(*common, "--model", "gpt-oss-120b", "--where", "window=128", "--where", "kv_length=200..600").code == 1


def test_a_budget_of_time_is_kept(cli):
    started = time.perf_counter()
    assert cli("check", "swa_mask", "--impl", "eager", "--target", "sim", "--budget", "0.5s").code == ExitCode.CLEAN
    assert 0.4 < time.perf_counter() - started < 5


@pytest.mark.slow
def test_the_same_seed_prints_the_same(cli):
    runs = [cli("check", "swa_mask", "--impl", "mask_minus_one", "--target", "sim", "--seed", "3").out for _ in "ab"]
    assert masked(runs[0]) == masked(runs[1])


@pytest.mark.slow
def test_the_cann_profile_is_used(cli):
    sizes = {"window": 4, "page_size": 128, "head_dim": 128, "value_head_dim": 128, "recipe": "needle"}
    case = json.dumps({"requests": [{"query": 1, "kv": 40}], **sizes})
    common = ("check", "sliding_attention", "--impl", "fia_decode_tnd", "--target", "sim", "--case", case)
    assert cli(*common, "--cann", "8.5").code == ExitCode.CLEAN
    assert cli(*common, "--cann", "pessimistic").code == ExitCode.FINDINGS


def test_findings_go_where_they_are_asked_to(cli, tmp_path):
    cli("check", "swa_mask", "--impl", "mask_without_tail", *QUICK, "--output", tmp_path / "out")
    assert len(list((tmp_path / "out" / "findings").iterdir())) == 1
    assert not (tmp_path / ".npudiff").exists()


@pytest.mark.slow
def test_ci_leaves_no_memory_and_dev_does(cli, tmp_path):
    common = ("check", "swa_mask", "--impl", "mask_without_tail", "--target", "sim", "--examples", "5")
    cli(*common, "--hypothesis-profile", "ci", "--output", tmp_path / "ci")
    assert sorted(path.name for path in (tmp_path / "ci").iterdir()) == ["findings", "runs"]
    cli(*common, "--output", tmp_path / "dev")
    again = cli(*common, "--output", tmp_path / "dev")
    assert "at case 1 (cases that failed before are tried first)" in again.out


def test_list_shows_what_there_is(cli):
    result = cli("list")
    assert result.code == ExitCode.CLEAN
    for text in ("sliding_attention: ", "swa_mask: ", "fia_decode_tnd", "mask_minus_one", "targets: npu, sim"):
        assert text in result.out
    full = cli("list", "swa_mask").out
    for text in (
        "order_does_not_matter",
        "kv_length",
        "gpt-oss-120b, mimo-v2-flash, step-3.5-flash",
        "SWA-03 https://",
    ):
        assert text in full


def test_list_shows_a_users_file(cli, kernel):
    assert re.search(r"mine +My kernel\.", cli("list", "swa_mask", "--impl", kernel("right")).out)


def test_markup_in_names_is_printed_as_it_is(cli, kernel):
    path = kernel("right")
    path.write_text(path.read_text().replace('name="mine"', 'name="mine[red]"'))
    result = cli("check", "swa_mask", "--impl", path, *QUICK)
    assert result.code == ExitCode.CLEAN
    assert "mine[red]" in result.out
