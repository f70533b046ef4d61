"""The script as somebody has it with torch and nothing else, and what a finding from elsewhere cannot do with it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from npudiff.errors import ExitCode, UsageError
from npudiff.findings.finding import REPRODUCE_TENSORS, SCRIPT_FILE, finding_of, read_finding
from npudiff.findings.reproduce import reproduction, standalone
from npudiff.show.finding import finding_lines


def wrong(inputs, target):
    return inputs.x + 1


def test_a_wrong_result_is_wrong_without_npudiff(kept, alone):
    one = kept(wrong)
    done = alone(one.folder, "--device", "cpu")
    assert done.returncode == 1, done.stderr
    expected = (
        "y: WRONG: worst error / bound is 598 at [2]: got 301.0, expected 600.0 within 0.5; 2 of 3 elements are wrong\n"
    )
    assert (done.stdout, done.stderr) == (expected, "")


WITHOUT_THE_COMPILER = """
import sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == "torch._dynamo":
            raise AssertionError("torch's compiler was imported, which takes two seconds")

sys.meta_path.insert(0, Refuses())
from npudiff.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_script_is_made_without_the_compiler_of_torch(tmp_path):
    options = ("--impl", "mask_left_context_512", "--target", "sim", "--examples", "30", "--workers", "1")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_COMPILER, "check", "swa_mask", *options], cwd=tmp_path,
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.FINDINGS, done.stdout + done.stderr
    for folder in (tmp_path / ".npudiff" / "findings").iterdir():
        assert (folder / SCRIPT_FILE).is_file(), (folder / "finding.json").read_text()


COMPILED = """
import npudiff, torch

def gate(states):
    left, right = states.float().chunk(2, dim=-1)
    return torch.nn.functional.silu(left) * right * 1.01

gate = torch.compile(gate, backend="eager")

@npudiff.implementation("swiglu", name="mine", on_device=True)
def mine(inputs, target):
    return {"output": gate(inputs.states).to(inputs.states.dtype)}
"""


@pytest.mark.slow
def test_a_kernel_that_is_compiled_has_a_script_too(cli, kernel, alone, tmp_path):
    result = cli("check", "swiglu", "--impl", kernel(COMPILED), "--target", "sim", "--examples", "20", "--workers", "1")
    assert result.code == ExitCode.FINDINGS
    (folder,) = (tmp_path / ".npudiff" / "findings").glob("*equivalence*")
    assert alone(folder, "--device", "cpu").returncode == 1
    assert alone(folder).stdout.endswith("; all calls are torch's own: --device cpu makes them here\n")


@pytest.mark.slow
def test_without_a_card_it_says_so_in_a_line(kept, alone):
    done = alone(kept(wrong).folder)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("cannot run here: CannotRun: torch_npu is missing") or "missing" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.slow
def test_an_operator_that_nobody_has_registered_is_named(calls_of, alone, tmp_path):
    with torch.library._scoped_library("npudiff_gone", "DEF") as library:
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: x * 2, "CPU")
        script = calls_of(lambda inputs, target: torch.ops.npudiff_gone.double(inputs.x))
    (tmp_path / SCRIPT_FILE).write_text(script.text)
    (tmp_path / REPRODUCE_TENSORS).write_bytes(script.tensors)
    done = alone(tmp_path, "--device", "cpu")
    assert done.returncode == 2
    assert "nothing has registered npudiff_gone::double.default; --import MODULE imports what does\n" in done.stdout
    assert alone(tmp_path, "--device", "cpu", "--import", "no_such_module").returncode == 2


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0{}", b"\x05\0\0\0\0\0\0\0[1,2]"])
def test_a_damaged_file_of_tensors_is_said_to_be(kept, here, alone, content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    try:
        assert standalone.read(path) == {}
    except (standalone.CannotRun, ValueError, AttributeError):
        assert content != b"\x02\0\0\0\0\0\0\0{}"


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (2, 1), (0, 5)])
def test_tensors_beyond_their_file_are_not_read(tmp_path, first, last):
    header = json.dumps({"x": {"dtype": "U8", "shape": [4], "data_offsets": [first, last]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(standalone.CannotRun, match="goes beyond its end"):
        standalone.read(path)


def test_what_safetensors_has_written_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    memories = {"x": torch.arange(7, dtype=torch.uint8), "empty": torch.empty(0, dtype=torch.uint8)}
    path.write_bytes(save(memories, metadata={"a": "b"}))
    assert {name: memory.tolist() for name, memory in standalone.read(path).items()} == {
        "x": list(range(7)), "empty": []}  # fmt: skip


HOSTILE = (
    'x"""\nimport os; os.system("touch hacked")\n', "a\rprint(1)\n#", "\u2028print(1)", "coding: utf-7\n", "\\", "'''",
    "\x00",
    "a\x1b[2J", "\u202ex", "{0}%s",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_elsewhere_is_a_comment_or_a_string(toy, calls_of, text):
    from npudiff.run.engine import run_case

    def function(inputs, target):
        return {"y": inputs.x + 1}

    outcome = run_case(toy.job(function), toy.Case((1, 200)))
    finding = replace(
        finding_of(outcome), component=text, implementation=text, property_name=text, target=text, cann=text
    )
    finding = replace(finding, detail={**finding.detail, "line": text, "error": text}, environment={"torch": text})
    script = reproduction(outcome, finding, outcome.failure)
    assert not script.why_not
    plain = reproduction(outcome, finding_of(outcome), outcome.failure)
    bare = [ast.dump(node) for node in ast.parse(plain.text.encode()).body]
    assert [ast.dump(node) for node in ast.parse(script.text.encode()).body] == bare
    assert all(line.isprintable() for line in script.text.split("\n"))
    assert "coding" not in "".join(script.text.splitlines()[:2])


def test_an_error_from_elsewhere_is_a_string(kept):
    class HostileError(RuntimeError):
        pass

    def broken(x):
        raise HostileError("'\"\n\\ + __import__('os').abort() #\u2028")

    with torch.library._scoped_library("npudiff_hostile", "DEF") as library:
        library.define("f(Tensor x) -> Tensor")
        library.impl("f", broken, "CPU")
        one = kept(lambda inputs, target: torch.ops.npudiff_hostile.f(inputs.x))
    tree = ast.parse((one.folder / SCRIPT_FILE).read_bytes())
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "main"]
    assert isinstance(call.args[-1], ast.Constant)
    assert "__import__" in call.args[-1].value


def test_labels_from_inputs_are_names(toy, calls_of, lines):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Inputs:
        x: torch.Tensor
        kind: object

    def inputs(case):
        numbers = torch.tensor(case.numbers, dtype=torch.float32)
        names = ["import os\n", "class", "torch", "run", "1", "DEVICE", "", "float", "ä"]
        return Inputs(numbers, {name: numbers + place for place, name in enumerate(names)})

    def function(inputs, target):
        y = inputs.x * 2
        for one in inputs.kind.values():
            y = y + 0 * one
        return y

    script = calls_of(function, inputs=inputs)
    loaded = [line.partition(" = ")[0].strip() for line in lines(script).splitlines() if " = run.load(" in line]
    assert all(name.isidentifier() for name in loaded)
    assert len(set(loaded)) == len(loaded) == 12  # x, nine others, what is expected and its bound
    ast.parse(script.text)


def test_an_operator_of_any_name_can_be_called(calls_of, here, lines):
    text = lines(calls_of(lambda inputs, target: inputs.x + torch.zeros(3).random_(0, 2) * 0))
    assert "run.check(" in text
    with torch.library._scoped_library("npudiff_words", "DEF") as library:
        library.define("f.from(Tensor lambda) -> Tensor")
        library.impl("f.from", lambda x: x * 2, "CPU")
        script = calls_of(lambda inputs, target: getattr(torch.ops.npudiff_words.f, "from")(inputs.x))
        assert "getattr(torch.ops.npudiff_words.f, 'from')(x)" in lines(script)
        assert not here(script).wrong


def test_the_lines_of_a_finding_name_the_script(kept, tmp_path):
    one = kept(wrong)
    assert dict(finding_lines(one.finding, one.folder))["script"] == f"python {one.folder / SCRIPT_FILE}"
    assert f"<code>python {one.folder / SCRIPT_FILE}</code>" in (one.folder / "finding.html").read_text()


def test_the_script_and_its_tensors_have_checksums(kept):
    one = kept(wrong)
    content = json.loads((one.folder / "finding.json").read_text())
    for name, field in ((SCRIPT_FILE, "script_sha256"), (REPRODUCE_TENSORS, "reproduce_sha256")):
        path = one.folder / name
        whole = path.read_bytes()
        assert content[field] == hashlib.sha256(whole).hexdigest()
        path.write_bytes(whole + b" ")
        with pytest.raises(UsageError, match=f"{name} does not match its checksum: damaged or changed"):
            read_finding(one.folder)
        path.unlink()
        assert read_finding(one.folder)  # it is for others: what is needed to replay is elsewhere
        path.symlink_to("/dev/zero")
        with pytest.raises(UsageError, match="is missing, or not a plain file"):
            read_finding(one.folder)
        path.unlink()
        with path.open("wb") as file:
            file.truncate(2**40)
        with pytest.raises(UsageError, match="has 1099511627776 bytes, at most"):
            read_finding(one.folder)
        path.write_bytes(whole)
    assert read_finding(one.folder)


def test_an_older_finding_has_none(kept):
    one = kept(wrong)
    content = json.loads((one.folder / "finding.json").read_text())
    for name in ("script_sha256", "reproduce_sha256"):
        del content[name]
    (one.folder / "finding.json").write_text(json.dumps(content))
    (one.folder / SCRIPT_FILE).unlink()
    (one.folder / REPRODUCE_TENSORS).unlink()
    assert read_finding(one.folder)


def test_a_later_finding_without_a_script_leaves_no_old_one(kept, monkeypatch, tmp_path):
    one = kept(wrong)
    outside = tmp_path / "outside.py"
    outside.write_text("kept")
    (one.folder / SCRIPT_FILE).unlink()
    (one.folder / SCRIPT_FILE).symlink_to(outside)
    kept(wrong)
    assert outside.read_text() == "kept"
    monkeypatch.setattr("npudiff.findings.reproduce.MAX_REPRODUCE_TENSORS", 1)
    again = kept(wrong)
    assert again.folder == one.folder
    assert "1 MiB" in again.why
    assert not (one.folder / SCRIPT_FILE).exists()
    assert not (one.folder / REPRODUCE_TENSORS).exists()


def test_a_script_is_never_executed_by_npudiff(cli, hostile, tmp_path):
    mark = tmp_path / "hacked"
    text = f"open({str(mark)!r}, 'w')\n"
    folder = hostile(script_sha256=hashlib.sha256(text.encode()).hexdigest())
    (folder / SCRIPT_FILE).write_text(text)
    assert cli("replay", folder).code == ExitCode.FINDINGS
    assert not mark.exists()
