"""Components of a user's own, in one file: ten operators with their bugs, and everything that a file may get wrong."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest
import torch

import npudiff
import warm
from npudiff.draw.data import Stream
from npudiff.errors import ExitCode, UsageError

ROOT = Path(__file__).parent.parent
OPERATORS = sorted((ROOT / "docs" / "examples" / "operators").glob("*.py"))
SOFTMAX = next(path for path in OPERATORS if path.stem == "softmax")
GUIDES = {
    name: (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for name, page in (
        ("softmax.py", "own-component"), ("layer_norm.py", "own-component"), ("row_parallel.py", "ranks"),
    )
}  # fmt: skip
"""Files that a guide builds, and the guide."""

by_operator = pytest.mark.parametrize("path", OPERATORS, ids=lambda path: path.stem)


def ran(*arguments, cwd, code=ExitCode.CLEAN):
    """Run a command on the simulator; returns its document."""
    done = warm.run(*arguments, "--json", "said.json", cwd=cwd)
    said = json.loads((cwd / "said.json").read_text())
    assert done.returncode == code, done.stdout + done.stderr
    return said


@pytest.mark.slow
@by_operator
def test_what_is_right_is_clean_and_every_bug_is_found(path, tmp_path):
    said = ran("check", "--component", path, "--target", "sim", "--seed", 1, cwd=tmp_path)
    verdicts = {one["implementation"]: one["verdict"] for one in said["implementations"]}
    assert list(verdicts.values()) == ["holds", "holds"]
    said = ran("self-test", "--component", path, "--target", "sim", "--seed", 1, cwd=tmp_path)
    assert [one["found"] for one in said["mutants"]] == [True] * 3


@by_operator
def test_a_component_takes_few_lines(path):
    """Inputs, cases and the reference with its bound, without blank lines and imports."""
    text = path.read_text(encoding="utf-8")
    component = text.partition("@npudiff.implementation")[0].partition("\n@dataclass")[2]
    assert len([line for line in component.splitlines() if line.strip()]) <= 45


def test_there_are_ten():
    assert len(OPERATORS) == 10


@pytest.mark.few(1)
@pytest.mark.parametrize("name", GUIDES)
def test_the_guide_builds_components_that_are_clean_and_whose_bugs_are_found(name, tmp_path):
    blocks = re.findall(rf"```python\n# {name}\n(.*?)```", GUIDES[name], re.DOTALL)
    assert blocks
    (tmp_path / name).write_text("".join(blocks), encoding="utf-8")
    said = ran("check", "--component", name, "--target", "sim", "--seed", 1, cwd=tmp_path)
    assert all(one["verdict"] == "holds" for one in said["implementations"])
    said = ran("self-test", "--component", name, "--target", "sim", "--seed", 1, cwd=tmp_path)
    assert said["mutants"]
    assert all(one["found"] for one in said["mutants"])


@pytest.mark.slow
def test_a_finding_is_replayed_listed_and_gated(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("import npudiff, torch\n@npudiff.implementation('softmax')\ndef mine(inputs, target):\n"
                    "    return torch.softmax(inputs.x, -1) * 1.02\n")  # fmt: skip
    own = ("--component", SOFTMAX, "--impl", "mine.py")
    said = ran("check", "softmax", *own, "--target", "sim", "--seed", 1, cwd=tmp_path, code=ExitCode.FINDINGS)
    replay = said["findings"][0]["replay"]
    assert f"--component {SOFTMAX}" in replay
    again = ran("replay", ".npudiff/findings", *own, cwd=tmp_path, code=ExitCode.FINDINGS)
    assert {one["verdict"] for one in again["replays"]} == {"FAILED"}
    listed = ran("list", "--component", SOFTMAX, cwd=tmp_path)["components"]
    assert [one["name"] for one in listed] == ["softmax"]
    assert [one["meaning"] for one in listed[0]["inputs"]] == ["``[rows, width]``, bfloat16, float16 or float32."]
    gate = ("--rotating", "off", "--examples", 5, "--output", "gate")
    assert ran("gate", *own, *gate, "--target", "sim", cwd=tmp_path, code=ExitCode.FINDINGS)["gate"]["open"] is False


@pytest.mark.slow
def test_pytest_has_it_too(tmp_path):
    own = ("--npudiff-component", SOFTMAX, "--examples", "5", "--target", "sim")
    everything = ("-q", "-p", "no:cacheprovider", "-m", "", "--pyargs", "npudiff.properties")
    done = warm.run_pytest(*everything, *own, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout


PROPERTY = """
import npudiff

@npudiff.property_of("rms_norm", within={"residual": (False,), "recipe": ("gaussian",)})
def nothing_becomes_larger(subject, case):
    '''The same inputs give the same bits.'''
    inputs = subject.component.inputs(case)
    return npudiff.same_bits(subject.run(inputs), subject.run(inputs), "twice the same")

@npudiff.property_of("rms_norm")
def never(subject, case):
    '''Something that does not hold.'''
    outputs = subject.run(subject.component.inputs(case))
    return npudiff.same_bits(outputs, {name: -tensor for name, tensor in outputs.items()}, "never")
"""


@pytest.mark.slow
def test_a_property_of_a_component_that_is_there(tmp_path):
    (tmp_path / "mine.py").write_text(PROPERTY)
    arguments = ("--component", "mine.py", "--impl", "native_rms_norm", "--examples", 10, "--target", "sim")
    said = ran("check", *arguments, cwd=tmp_path, code=ExitCode.FINDINGS)
    properties = {one["property"]: one["verdict"] for one in said["implementations"][0]["properties"]}
    assert properties["nothing_becomes_larger"] == "holds"
    assert properties["never"] == "wrong value"
    again = ran("replay", ".npudiff/findings", "--component", "mine.py", cwd=tmp_path, code=ExitCode.FINDINGS)
    assert [one["verdict"] for one in again["replays"]] == ["FAILED"]


CASE = """
from dataclasses import dataclass
import npudiff, torch

@dataclass(frozen=True)
class Inputs:
    x: torch.Tensor

@dataclass(frozen=True)
class MyCase(npudiff.Case):
    rows: int = npudiff.axis("rows", range(1, 9))
    seed: int = npudiff.seed()
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "nothing in it is made by @npudiff.component or @npudiff.property_of"),
        ("def f(:", "SyntaxError"),
        (CASE + "@npudiff.component(MyCase)\ndef mine(inputs): ...", "MyCase has no method inputs()"),
        (
            CASE + "@npudiff.component(MyCase, inputs=print)\ndef rms_norm(inputs): ...",
            "another component called 'rms_norm'",
        ),
        ("import npudiff\n@npudiff.property_of('rms_nrm')\ndef f(subject, case): ...", "did you mean 'rms_norm'"),
    ],
)
def test_what_is_no_component_says_why(text, said, tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(text))
    done = warm.run("check", "--component", "mine.py", cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert said in done.stderr
    assert "--component mine.py" in done.stderr


def test_files_that_are_not_there_and_files_in_the_place_of_names_are_told(tmp_path):
    done = warm.run("check", "--component", "nowhere.py", cwd=tmp_path)
    assert (done.returncode, "--component nowhere.py: no such file" in done.stderr) == (ExitCode.USAGE, True)
    done = warm.run("check", "softmax.py", cwd=tmp_path)
    assert "--component softmax.py if it has a component" in done.stderr


def test_a_component_of_a_file_is_not_judged_without_trust(tmp_path):
    done = warm.run("check", "softmax", "--component", SOFTMAX, "--impl", SOFTMAX, "--untrusted", cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert "--untrusted judges components of npudiff" in done.stderr
    assert npudiff.component is not None
    with pytest.raises(UsageError):
        npudiff.components(["softmax"])  # nothing of this came into this process


def test_a_state_that_is_handed_on_is_bounded_by_the_length_of_its_rows_errors():
    (text,) = re.findall(r"```python\n# delta_rule.py\n(.*?)```", GUIDES["softmax.py"], re.DOTALL)
    names = {}
    exec(text, names)  # noqa: S102 - a block of the guide
    stream = Stream(3, "delta rule")
    queries, keys, values = (stream.normal((2000, 32), torch.float32) for _ in range(3))
    keys /= keys.norm(dim=1, keepdim=True)
    beta = stream.normal((2000,), torch.float32).sigmoid()
    state, outputs = torch.zeros(32, 32), []
    for q, k, v, b in zip(queries, keys, values, beta, strict=True):
        state = state + (b * (v - state @ k)).unsqueeze(1) * k
        outputs.append(state @ q)
    right = names["delta_rule"](queries, keys, values, beta)
    ratio = ((torch.stack(outputs).double() - right.value).abs() / right.error).max()
    assert 0.005 < float(ratio) < 1
    assert float(right.error.max()) < 2e-3 * float(right.value.abs().max())
    by_elements = torch.ones(32, dtype=torch.float64)
    for k, b in zip(keys.double().abs(), beta.double(), strict=True):
        by_elements = by_elements + b * (by_elements @ k) * k
    assert float(by_elements.max()) > 1e200
