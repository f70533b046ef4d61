"""Backends that a run names: a package with a small one, its implementations, and what does not fit its version."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from npudiff.errors import ExitCode, UsageError
from npudiff.model.backend import Wish, option_of, wish_of
from npudiff.run import backends

MASKS = '''
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

@npudiff.implementation("swa_mask", name="theirs", on_device=True)
def theirs(inputs, target):
    """Their mask."""
    return window_mask(inputs.kv_lengths, inputs.capacity, inputs.window)

@npudiff.implementation("swa_mask", name="newer", on_device=True, requires=lambda: "get_mask has no argument window")
def newer(inputs, target):
    raise AssertionError("it is not run")
'''


@pytest.fixture
def small(small_backend):
    """The folder of an installed package with a backend that has masks, and something that does not fit."""
    (small_backend / "swa_mask.py").write_text(MASKS)
    (small_backend / "rotary.py").write_text("from small_backend.not_in_this_version import rotate\n")
    return small_backend


def for_another_process(small):
    """Say in metadata what the fixture says in this process, and return an environment whose path has it."""
    about = small.parent / "small_backend-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: small-backend\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[npudiff.backends]\nsmall = small_backend:BACKEND\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(small.parent), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize(("text", "wish"), [("sglang", Wish("sglang")), ("sglang=a b", Wish("sglang", Path("a b")))])
def test_a_wish_is_a_name_and_perhaps_a_checkout(text, wish):
    assert wish_of(text) == wish
    assert wish_of(wish.option) == wish


@pytest.mark.parametrize("text", ["", "=x", "sglang="])
def test_a_wish_without_a_name_or_a_folder_is_refused(text):
    with pytest.raises(UsageError, match="expected NAME or NAME=CHECKOUT"):
        wish_of(text)


def test_the_option_that_repeats_a_wish_is_fit_for_a_shell():
    assert option_of("backend:sglang=a b") == "--backend 'sglang=a b'"
    assert option_of("my file.py") == "--impl 'my file.py'"


def test_its_implementations_are_run_and_what_does_not_fit_is_told(small, cli):
    result = cli("check", "swa_mask", "rotary", "--backend", "small", "--examples", "5")
    assert result.code == ExitCode.NOTHING_RAN, result.out + result.err  # of rotary
    lines = " ".join(result.out.split())
    assert "theirs" in lines
    assert "not applicable here: swa_mask.newer: get_mask has no argument window" in lines
    assert "not applicable here: rotary: not applicable to small 1.2: No module named" in lines


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("raise RuntimeError('no such device')", "no such device"),
        ("class Rope(int, object().__class__, int): pass", "duplicate base class int"),
        ("import small_backend\nsmall_backend.rope", "has no attribute 'rope'"),
    ],
)
def test_a_module_that_does_not_come_up_beside_a_version_is_left_out(small, line, why):
    (small / "rotary.py").write_text(line)
    room = backends.room_of(Wish("small"))
    assert [one.name for one in room.implementations] == ["theirs", "newer"]
    (said,) = room.left_out.items()
    assert said[0] == "rotary"
    assert said[1].startswith("not applicable to small 1.2: ")
    assert why in said[1]


CALLS = """
import npudiff
import their_masks

@npudiff.implementation("swa_mask", name="theirs", on_device=True)
def theirs(inputs, target):
    return their_masks.mask({arguments})
"""


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            "inputs.kv_lengths, 3",
            ExitCode.NOTHING_RAN,
            "could be judged: not applicable to this checkout: mask() takes 1 pos",
        ),
        ("inputs.kv_lengths", ExitCode.FINDINGS, "mask() takes 1 positional argument but 2 were given"),
        ("inputs.lengths", ExitCode.FINDINGS, "'SwaMaskInputs' object has no attribute 'lengths'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_not_applicable_and_a_mistake_is_a_finding(small, cli, arguments, code, said):
    (small.parent / "their_masks.py").write_text("def mask(kv_lengths): return mask(kv_lengths, 3)\n")
    (small / "swa_mask.py").write_text(CALLS.format(arguments=arguments))
    result = cli("check", "swa_mask", "--backend", "small", "--examples", "5")
    assert result.code == code, result.out
    assert said in result.out


@pytest.mark.slow
def test_a_finding_names_the_backend_in_the_command_that_replays_it(small, cli, tmp_path):
    (small / "swa_mask.py").write_text(MASKS.replace("inputs.window)", "(inputs.window or 10**6) + 1)"))
    result = cli("check", "swa_mask", "--backend", "small", "--seed", "1")
    assert result.code == ExitCode.FINDINGS
    (line,) = {line.strip() for line in result.out.splitlines() if "-equivalence-" in line and "replay " in line}
    assert line.endswith("--backend small")
    (folder,) = (tmp_path / ".npudiff" / "findings").glob("*equivalence*")
    assert json.loads((folder / "finding.json").read_text())["options"] == "--backend small"
    assert cli("replay", folder, "--backend", "small").code == ExitCode.FINDINGS


@pytest.mark.slow
def test_a_finding_brings_a_program_that_calls_the_backend_itself(small, cli, tmp_path):
    (small / "swa_mask.py").write_text(MASKS.replace("inputs.window)", "(inputs.window or 10**6) + 1)"))
    result = cli("check", "swa_mask", "--backend", "small", "--seed", "1")
    (folder,) = (tmp_path / ".npudiff" / "findings").glob("*equivalence*")
    assert f"python {(folder / 'backend.py').relative_to(tmp_path)}" in result.out

    environment = for_another_process(small)

    def called():
        return subprocess.run(
            [sys.executable, folder / "backend.py"], capture_output=True, text=True, check=False, cwd=tmp_path,
            env=environment, timeout=120,
        )  # fmt: skip

    wrong = called()
    assert wrong.returncode == ExitCode.FINDINGS, wrong.stderr
    assert re.search(r"swa_mask.theirs.equivalence: kv\d+ · window 1", wrong.stdout)
    assert re.search(r"mask: inf times its bound\n  .*key \d+.*actual", wrong.stdout)
    (small / "swa_mask.py").write_text(MASKS.replace("return window_mask(", "raise ValueError('mine') or window_mask("))
    raised = called()
    assert raised.returncode == 1
    assert 'swa_mask.py", line 8, in theirs' in raised.stderr
    (small / "swa_mask.py").write_text(MASKS)
    assert called().returncode == ExitCode.CLEAN

    (folder / "backend.py").write_text("print('mine')\n")
    changed = cli("replay", folder)
    assert changed.code == ExitCode.USAGE
    assert "backend.py does not match its checksum: damaged or changed" in changed.out


@pytest.mark.slow
def test_a_backend_says_one_thing_of_a_kind_once(small, tmp_path):
    """In processes of its own: handlers of loggers belong to all of one."""
    said = 'import logging\nmine, its = logging.getLogger("small.masks"), logging.getLogger("small")\n'
    said += "mine.addHandler(logging.StreamHandler())\n"
    call = 'mine.warning("not aligned: %d keys", len(inputs.kv_lengths)), its.error(f"{inputs.window} wide")'
    masks = said + MASKS.replace("    return window_mask(", f"    {call}\n    return window_mask(")
    (small / "swa_mask.py").write_text(masks)
    result = subprocess.run(
        [sys.executable, "-m", "npudiff", "check", "swa_mask", "--backend", "small", "--examples", "30"],
        cwd=tmp_path, env=for_another_process(small), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == ExitCode.CLEAN, result.stdout + result.stderr
    whole = result.stdout + result.stderr
    assert 1 <= whole.count("not aligned") <= 4  # once for each process
    assert 1 <= whole.count("wide") <= 4


def test_what_is_only_stood_in_for_is_counted_and_no_finding(small, cli):
    calls = MASKS.replace(
        "    return window_mask(", "    if inputs.window == 3: raise NotHere('no kernel')\n    return window_mask("
    )
    (small / "swa_mask.py").write_text("from small_backend import NotHere\n" + calls)
    result = cli("check", "swa_mask", "--backend", "small", "--where", "window=1..4", "--seed", "1", "--examples", "20")
    assert result.code == ExitCode.CLEAN, result.out
    (row,) = [line.split() for line in result.out.splitlines() if line.strip().startswith("theirs ")]
    assert int(row[3]) > 0


def test_listing_shows_what_a_backend_has_which_is_imported_beside_its_device(small, cli, monkeypatch):
    wanted = []
    monkeypatch.setattr("npudiff.commands.listing.default_target", lambda cann, target: wanted.append(target))
    result = cli("list", "swa_mask", "--backend", "small")
    assert "Their mask." in result.out
    assert "graph_buffer" not in result.out
    assert wanted == ["sim"]


def test_the_doctor_says_what_there_is_of_it(small, cli):
    result = cli("doctor", "--backend", "small")
    assert result.code == ExitCode.CLEAN
    lines = dict(line.split(None, 1) for line in result.out.splitlines() if not line.startswith("not applicable"))
    assert lines["small"] == f"1.2, {small}"
    assert lines["implementations"] == "1 of 1 components"
    assert "swa_mask.newer: get_mask has no argument window" in result.out
    assert "rotary: not applicable to small 1.2: No module named" in result.out


def test_an_unknown_backend_names_those_that_there_are(small, cli):
    result = cli("check", "swa_mask", "--backend", "smal")
    assert result.code == ExitCode.USAGE
    assert "unknown backend 'smal'; did you mean 'small'?" in result.err


def test_a_backend_that_is_not_here_is_one_line(small, cli, tmp_path):
    result = cli("check", "swa_mask", "--backend", f"small={tmp_path / 'gone'}")
    assert (result.code, result.err.strip().count("\n")) == (ExitCode.USAGE, 0)
    assert "nothing there" in result.err


@pytest.mark.parametrize("command", ["check", "gate"])
def test_a_backend_is_not_imported_by_a_judge_that_trusts_nobody(small, cli, command):
    result = cli(command, "swa_mask", "--backend", "small", "--untrusted")
    assert result.code == ExitCode.USAGE
    assert "a backend is imported by the judge, which trusts it" in result.err
    assert "small_backend.swa_mask" not in sys.modules


def test_it_is_imported_once_and_in_one_version(small, tmp_path):
    room = backends.room_of(Wish("small"))
    assert backends.room_of(Wish("small")) is room
    assert sys.modules["small_backend"].BOOTS == [None]
    with pytest.raises(UsageError, match="this process has imported small already"):
        backends.room_of(Wish("small", tmp_path))


def test_an_implementation_of_a_backend_may_end_its_process(small):
    assert not any(item.built_in for item in backends.room_of(Wish("small")).implementations)


@pytest.mark.slow
def test_pytest_takes_a_backend_as_well(small, tmp_path):
    """In a process of its own: the entry point is that of a distribution which is on its path."""
    arguments = ("--pyargs", "npudiff.properties.test_components", "-p", "no:cacheprovider", "--examples", "5", "-v")
    environment = for_another_process(small)
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", *arguments]
    result = subprocess.run(
        [*command, "--npudiff-backend", "small", "-k", "theirs"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "test_property_holds[swa_mask-theirs-equivalence] PASSED" in result.stdout


def test_a_known_issue_of_what_is_left_out_or_not_asked_for_is_told_and_closes_no_gate(small, cli, tmp_path):
    known = tmp_path / "known.toml"
    known.write_text(
        '[[issue]]\ncomponent = "swa_mask"\nimplementation = "newer"\nlink = "https://example.org/7"\n'
        f'where = ["an_option_of_it=1"]\nexpires = {datetime.now(timezone.utc).date() + timedelta(days=9)}\n'
    )
    others = known.read_text().replace('"swa_mask"', '"rms_norm"').replace('"newer"', '"of another component"')
    known.write_text(known.read_text() + others)
    arguments = ("--backend", "small", "--known", known, "--rotating", "off", "--examples", "5", "--workers", "1")
    result = cli("gate", "swa_mask", *arguments)
    assert result.code == ExitCode.CLEAN, result.out + result.err
    assert "not known here: get_mask has no argument window" in result.out
    assert "rms_norm.of another component where an_option_of_it=1: was not run: this run is of swa_mask" in result.out


def test_a_module_that_does_not_come_up_is_not_green_unless_an_entry_accepts_it(small, cli, tmp_path):
    module = small / "swa_masks.py"
    module.write_text("import gone_since_yesterday\n")
    arguments = ("swa_mask", "--backend", "small", "--examples", "5", "--workers", "1")
    result = cli("check", *arguments)
    assert result.code == ExitCode.NOTHING_RAN
    why = "not applicable to small 1.2: No module named 'gone_since_yesterday'"
    assert f"not applicable here: swa_masks: {why}" in result.out
    assert f"no case of swa_masks.* could be judged: {why}" in result.out

    known = tmp_path / "known.toml"
    known.write_text("")
    gate = ("gate", *arguments, "--known", known, "--rotating", "off")
    closed = cli(*gate)
    assert closed.code == ExitCode.FINDINGS
    assert "1 implementation of which no case could be judged" in closed.out
    known.write_text(
        '[[issue]]\ncomponent = "swa_masks"\nimplementation = "*"\nverdict = "not judged"\n'
        f'link = "https://e.org/7"\nexpires = {datetime.now(timezone.utc).date() + timedelta(days=9)}\n'
    )
    accepted = cli(*gate)
    assert accepted.code == ExitCode.CLEAN, accepted.out + accepted.err
    assert f"known issue swa_masks.*: not known here: {why}" in accepted.out


def test_an_entry_for_a_module_that_comes_up_has_to_go(small, cli, tmp_path):
    known = tmp_path / "known.toml"
    known.write_text(
        '[[issue]]\ncomponent = "swa_mask"\nimplementation = "*"\nverdict = "not judged"\n'
        f'link = "https://e.org/7"\nexpires = {datetime.now(timezone.utc).date() + timedelta(days=9)}\n'
    )
    arguments = ("--backend", "small", "--known", known, "--rotating", "off", "--examples", "5", "--workers", "1")
    result = cli("gate", "swa_mask", *arguments)
    assert result.code == ExitCode.FINDINGS
    assert "known issue swa_mask.*: does not fail any more: swa_mask imports: remove the entry" in result.out


def test_a_module_of_a_component_that_nobody_asked_for_may_stay_away(small, cli):
    (small / "rotary.py").write_text("import gone_since_yesterday\n")
    asked = ("check", "swa_mask", "--backend", "small", "--examples", "5", "--workers", "1")
    assert cli(*asked).code == ExitCode.CLEAN
    assert cli(asked[0], *asked[2:]).code == ExitCode.NOTHING_RAN


def test_a_module_that_opens_the_device_when_it_is_imported_is_not_let(small, monkeypatch):
    """What is forked after that gets no answer from the device."""
    opened = []
    npu = SimpleNamespace(is_initialized=lambda: False, _lazy_init=lambda: opened.append(1))
    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace(npu=npu))
    asking = "import sys\n"
    asking += (
        "try:\n    sys.modules['torch_npu'].npu._lazy_init()\nexcept RuntimeError as error:\n    SAID = str(error)\n"
    )
    (small / "swa_mask.py").write_text(asking + MASKS)
    (small / "swiglu.py").write_text("import sys\nsys.modules['torch_npu'].npu._lazy_init()\n")
    room = backends.room_of(wish_of("small"))
    assert {item.name for item in room.implementations} == {"theirs", "newer"}
    assert opened == []
    assert "a device is not opened while modules are imported" in sys.modules["small_backend.swa_mask"].SAID
    assert room.left_out["swiglu"].startswith("not applicable to small 1.2: a device is not opened")
    npu._lazy_init()
    assert opened == [1]
