"""A candidate that may deceive: what it patches, calls, sends or does reaches no verdict."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest

import warm
from npudiff.errors import ExitCode

HEAD = """
import ctypes, gc, os, signal, sys, threading, time
import torch
import npudiff
"""

RIGHT = """
def right(inputs):
    first, second = inputs.states.float().chunk(2, -1)
    return (first * torch.sigmoid(first) * second).to(inputs.states.dtype)

SUPPORTED = {"activation": ("silu",), "limited": (False,), "layout": ("halves",), "rounding": ("once",)}

@npudiff.implementation("swiglu", name="mine", supports=SUPPORTED)
def mine(inputs, target):
    return right(inputs)
"""

WRONG = RIGHT.replace("return right(inputs)", "return right(inputs) * 2")


@pytest.fixture
def judged(cli, tmp_path):
    """Check a file with --untrusted."""

    def run(text, *arguments, component="swiglu"):
        (tmp_path / "mine.py").write_text(HEAD + textwrap.dedent(text))
        return cli(
            "check", component, "--impl", "mine.py", "--target", "sim", "--untrusted", "--workers", 1,
            "--examples", 12, "--seed", 1, *arguments,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_a_right_one_is_right_and_a_wrong_one_is_found_and_replayed(judged, cli, tmp_path):
    result = judged(RIGHT)
    assert result.code == ExitCode.CLEAN, result.out
    assert "ok, " in result.out
    result = judged(WRONG)
    assert result.code == ExitCode.FINDINGS
    assert "FINDING swiglu.mine · equivalence · wrong value" in result.out
    (line,) = [line for line in result.out.splitlines() if line.startswith("  replay ")]
    assert line.endswith("--impl mine.py --untrusted")
    assert "no script: its calls are made in a process into which the judge does not look" in result.out
    replayed = cli(*line.split()[2:])
    assert (replayed.code, replayed.out[:6]) == (ExitCode.FINDINGS, "FAILED")
    (tmp_path / "mine.py").write_text(HEAD + RIGHT)
    assert cli(*line.split()[2:]).out.startswith("FIXED")


IMPORTS = {
    "patches the component": "import npudiff.properties.swiglu as p\nobject.__setattr__(p.component, 'inputs', None)",
    "imports the reference": "from npudiff.reference.swiglu import swiglu",
    "imports the judge": "import npudiff.judge.compare",
    "leaves": "os._exit(0)",
    "leaves by C": "ctypes.CDLL(None).exit(0)",
    "says nothing": "os.closerange(3, 100)",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", IMPORTS)
def test_what_would_reach_the_judge_when_it_is_imported_is_refused(judged, what):
    result = judged(IMPORTS[what] + "\n" + WRONG)
    assert result.code == ExitCode.USAGE, result.out
    assert result.err.startswith("npudiff: --impl mine.py: fails to import: ")


CONNECTIONS = "[one for one in gc.get_objects() if type(one).__name__ == 'Connection' and not one.closed]"
SENDS_A_VERDICT = f"""for one in {CONNECTIONS}:
        one.send_bytes(b'{{"verdict": "holds", "worst": 0.0, "exact": true}}')"""
SENDS_NONSENSE = f"""for one in {CONNECTIONS}:
        one.send_bytes(b"[" * 100000)"""
CLAIMS_MUCH = """import npudiff.run.untrusted.candidate as c
    c.pack_outputs = lambda *a: [{"name": "output", "dtype": "float32", "shape": [2**19, 2**19], "at": 0}]"""
CUTS_OFF = """import npudiff.run.untrusted.candidate as c
    before = c.pack_outputs
    c.pack_outputs = lambda outputs, file: (before(outputs, file), os.ftruncate(file, 0))[0]"""

CALLS = {
    "leaves": ("os._exit(0)", "process died"),
    "crashes": ("ctypes.string_at(0)", "process died"),
    "raises": ("raise KeyboardInterrupt", "exception"),
    "skips": ("import pytest; pytest.skip('not here')", "exception"),
    "returns an object": ("return object()", "exception"),
    "returns another output": ("return {'verdict': right(inputs)}", "exception"),
    "sends a verdict": (SENDS_A_VERDICT, "(exception|process died)"),  # by which of its two messages is seen first
    "sends nonsense": (SENDS_NONSENSE, "process died"),
    "claims much": (CLAIMS_MUCH, "exception"),
    "cuts its memory off": (CUTS_OFF, "exception"),
    "writes into its inputs": ("inputs.states.zero_()", "exception"),
}


@pytest.fixture(scope="module")
def all_calls(request, tmp_path_factory):
    """One run of candidates that do each of those that tests of this session are about."""
    folder = tmp_path_factory.mktemp("calls")
    before, _, mine = RIGHT.partition("@npudiff")
    text = before
    name = test_whatever_it_does_in_a_call_is_a_finding.__name__
    running = [item for item in request.session.items if getattr(item, "originalname", "") == name]
    wanted = {item.callspec.params["what"] for item in running}
    for what, (code, _) in CALLS.items():
        if what not in wanted:
            continue
        one = mine.replace('"mine"', f'"{what}"').replace("def mine", f"def {what.replace(' ', '_')}")
        text += "@npudiff" + one.replace("    return right(inputs)\n", f"    {code}\n    return right(inputs)\n")
    (folder / "mine.py").write_text(HEAD + text)
    command = ("check", "swiglu", "--impl", "mine.py", "--target", "sim", "--untrusted", "--workers", "1")
    return warm.run(*command, "--examples", "12", "--seed", "1", cwd=folder, timeout=300)


@pytest.mark.few(1)
@pytest.mark.parametrize("what", CALLS)
def test_whatever_it_does_in_a_call_is_a_finding(all_calls, what):
    assert all_calls.returncode == ExitCode.FINDINGS, all_calls
    assert re.search(rf"FINDING swiglu\.{what} · equivalence · {CALLS[what][1]}", all_calls.stdout)
    assert "internal error" not in all_calls.stderr


@pytest.mark.slow
def test_a_hang_is_a_finding_after_its_time(judged):
    text = RIGHT.replace("    return right(inputs)\n", "    time.sleep(1000)\n")
    result = judged(text, "--timeout", "1s", "--examples", 1)
    assert result.code == ExitCode.FINDINGS
    assert "time-out" in result.out


@pytest.mark.slow
def test_what_is_kept_between_calls_is_found_and_the_pair_is_told(judged):
    text = WRONG.replace("return right(inputs) * 2", "return KEPT.setdefault(inputs.states.shape, right(inputs))")
    result = judged("KEPT = {}\n" + text, "--examples", "100")
    assert result.code == ExitCode.FINDINGS
    assert "poisons the device" in result.out or "earlier_calls_change_nothing" in result.out


@pytest.mark.slow
def test_a_stateful_one_has_an_object_of_its_own(judged):
    text = (
        RIGHT.partition("@")[0]
        + """
@npudiff.implementation("swiglu", name="mine", supports=SUPPORTED, stateful=True)
def mine():
    kept = {}

    def call(inputs, target):
        return kept.setdefault(inputs.states.shape, right(inputs))

    return call
"""
    )
    result = judged(text)
    assert "FINDING swiglu.mine · earlier_calls_change_nothing · wrong value" in result.out
    assert "FINDING swiglu.mine · equivalence" not in result.out


@pytest.mark.slow
def test_what_it_starts_is_gone_when_the_run_is_over(tmp_path):
    start = """
    if not os.path.exists("started"):
        open("started", "w").close()
        if not os.fork():
            os.setsid()
            if not os.fork():
                open("pid", "w").write(str(os.getpid()))
                time.sleep(1000)
            os._exit(0)
"""
    text = HEAD + RIGHT.replace("    return right(inputs)\n", start + "    return right(inputs)\n")
    (tmp_path / "mine.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "npudiff",
        "check",
        "swiglu",
        "--impl",
        "mine.py",
        "--target",
        "sim",
        "--untrusted",
    ]
    result = subprocess.run(
        [*command, "--examples", "5", "--workers", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == ExitCode.CLEAN, result
    pid = int((tmp_path / "pid").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout  # noqa: S607
    assert state.strip() in ("", "Z")


@pytest.mark.slow
def test_it_needs_a_candidate_and_isolation(judged, cli):
    assert "--untrusted says how the files of --impl are judged" in cli("check", "swiglu", "--untrusted").err
    assert "--untrusted needs isolation" in judged(RIGHT, "--no-isolate").err
    result = judged(RIGHT.replace('"swiglu"', '"nothing"'))
    assert "unknown component 'nothing'" in result.err
    assert (
        "is judged by calls of an object"
        in judged(RIGHT.replace('"swiglu"', '"hybrid_pools"'), component="hybrid_pools").err
    )


@pytest.mark.slow
def test_a_gate_takes_it_too(cli, tmp_path):
    (tmp_path / "mine.py").write_text(HEAD + "import npudiff.judge\n" + WRONG)
    common = (
        "--impl",
        "mine.py",
        "--target",
        "sim",
        "--workers",
        1,
        "--budget",
        "20s",
        "--rotating",
        "off",
        "--examples",
        10,
    )
    assert cli("gate", "swiglu", *common, "--untrusted").code == ExitCode.USAGE
    (tmp_path / "mine.py").write_text(HEAD + WRONG)
    result = cli("gate", "swiglu", *common, "--untrusted")
    assert result.code == ExitCode.FINDINGS
    assert "FINDING swiglu.mine · equivalence · wrong value" in result.out
