"""Other people's tests beside what is known of them: what counts as a surprise, and what the table keeps."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import conformance
from benchmarks.conformance import Result, Runner, files_of, recorded, suites_of, surprises, told

PASSED, FAILED, SKIPPED = Result("passed"), Result("failed", "Mismatch"), Result("skipped", "310P only")
FILE = Path("test/test_custom_ops/test_npu_swiglu.py")
KNOWN = {"test_a": "passed", "test_b": {"fails": "Mismatch", "whose": "theirs: the golden rounds twice"}}


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "op_plugin/ops").mkdir(parents=True)
    tests = tmp_path / "test/test_custom_ops"
    tests.mkdir(parents=True)
    call = "torch_npu.{name}(torch.ones(2, 4, device='npu'))"
    text = "import torch\nimport torch_npu\n\n\ndef test_it():\n    assert {call}[0].shape\n"
    for name in ("npu_swiglu", "npu_of_the_year_3000"):
        (tests / f"test_{name}.py").write_text(text.format(call=call.format(name=name)))
    return tmp_path


def test_a_failure_that_is_known_is_no_surprise():
    assert not list(surprises("f.py", {"test_a": PASSED, "test_b": FAILED}, KNOWN))
    assert not list(surprises("f.py", {"test_a": PASSED, "test_b": PASSED}, KNOWN))


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"test_a": FAILED, "test_b": FAILED}, "f.py::test_a fails: Mismatch"),
        ({"test_a": SKIPPED, "test_b": FAILED}, "f.py::test_a is skipped, and passed before: 310P only"),
        ({"test_b": FAILED}, "f.py::test_a did not run"),
        ({"test_a": PASSED, "test_b": FAILED, "test_c": FAILED}, "f.py::test_c fails: Mismatch"),
    ],
)
def test_what_was_not_so_before_is_a_surprise(results, said):
    assert list(surprises("f.py", results, KNOWN)) == [said]


def test_the_table_keeps_what_is_said_of_a_failure_while_it_fails():
    assert recorded({"test_a": FAILED, "test_b": FAILED}, KNOWN) == {
        "test_a": {"fails": "Mismatch", "whose": "not looked at"},
        "test_b": KNOWN["test_b"],
    }
    new = {"test_a": {"fails": "something else", "whose": "not looked at"}}
    assert recorded({"test_a": FAILED}, new) == {"test_a": {"fails": "Mismatch", "whose": "not looked at"}}
    assert recorded({"test_b": PASSED, "test_c": SKIPPED}, KNOWN) == {"test_b": "passed", "test_c": "skipped"}


def test_counts_say_whose_failures_are_and_why_most_is_skipped():
    text = told({"test_a": PASSED, "test_b": FAILED, "test_c": SKIPPED}, KNOWN)
    wanted = "1 passed 1 failed 1 skipped; known: 1 theirs: the golden rounds twice; skipped: 310P only"
    assert " ".join(text.split()) == wanted


def test_a_checkout_is_known_by_its_folders_and_files_by_their_operators(checkout, tmp_path):
    suites = suites_of(checkout)
    assert [suite.name for suite in suites] == ["op-plugin", "op-plugin, parked", "op-plugin, documents"]
    assert [[file.name for file in files_of(suite, checkout)] for suite in suites] == [["test_npu_swiglu.py"], [], []]
    assert not suites_of(tmp_path / "test")


def test_parked_tests_and_documents_have_suites_of_their_own(checkout):
    tests = checkout / "test/test_custom_ops/test_npu_swiglu.py"
    tests.write_text(tests.read_text().replace("def test_it", "@unittest.skip('not now')\ndef test_it"))
    documents = checkout / "docs/zh/custom_APIs/torch_npu"
    documents.mkdir(parents=True)
    (documents / "a.md").write_text("```python\ntorch_npu.npu_swiglu(x)\n```\n")
    (documents / "b.md").write_text("```python\ntorch_npu.npu_swiglu(Tensor x, int dim=-1) -> Tensor\n```\n")
    found = [[file.name for file in files_of(suite, checkout)] for suite in suites_of(checkout)]
    assert found == [["test_npu_swiglu.py"], ["test_npu_swiglu.py"], ["a.md"]]


@pytest.mark.virtual
def test_a_file_that_takes_too_long_keeps_what_it_has_done(checkout):
    (suite, *_) = suites_of(checkout)
    file = FILE
    with (checkout / file).open("a") as text:
        text.write("\n\ndef test_long():\n    import time\n\n    time.sleep(600)\n")
    with Runner(suite, checkout, ()) as runner:
        results = runner.run(file, 30)
    assert results["test_npu_swiglu::test_it"] == PASSED
    assert results[file.name] == Result("failed", "no end after 30 s")


@pytest.mark.virtual
def test_their_tests_run_on_the_virtual_npu_and_a_process_that_ends_is_a_failure(checkout, monkeypatch, capsys):
    (suite, *_) = suites_of(checkout)
    (file,) = files_of(suite, checkout)
    with Runner(suite, checkout, ()) as runner:
        assert runner.run(file, 300) == {"test_npu_swiglu::test_it": PASSED}
        with (checkout / file).open("a") as text:
            text.write("\n\ndef test_end():\n    import os\n\n    os._exit(0)\n")
        (ended,) = runner.run(file, 300).values()
    assert ended.outcome == "failed"
    monkeypatch.setattr(conformance, "TABLE", checkout / "table.json")
    monkeypatch.setattr(sys, "argv", ["conformance", str(checkout)])
    assert conformance.main() == 1
    assert "test_npu_swiglu.py fails" in capsys.readouterr().out


def test_a_file_that_cannot_be_imported_says_why(tmp_path):
    (tmp_path / "test_it.py").write_text("import of_the_year_3000\n")
    options = ["-q", "-p", "no:npudiff", "-p", "no:cacheprovider", f"--junitxml={tmp_path / 'junit.xml'}"]
    subprocess.run([sys.executable, "-m", "pytest", *options, "test_it.py"], cwd=tmp_path, check=False)
    (result,) = dict(conformance._results(tmp_path / "junit.xml")).values()
    wanted = "collection failure: ModuleNotFoundError: No module named 'of_the_year_3000'"
    assert result == Result("failed", wanted)


@pytest.mark.virtual
def test_a_suite_whose_environment_lacks_something_is_a_surprise_and_others_run(checkout, monkeypatch, capsys):
    without = dataclasses.replace(conformance.SUITES[0], name="without", imports=("torch_npu_of_the_year_3000",))
    monkeypatch.setattr(conformance, "SUITES", (without, conformance.SUITES[0]))
    monkeypatch.setattr(conformance, "TABLE", checkout / "table.json")
    monkeypatch.setattr(sys, "argv", ["conformance", str(checkout), "--update"])
    assert conformance.main() == 1
    told = capsys.readouterr().out
    assert "without: npudiff virtual ended with 1" in told
    assert "test_npu_swiglu.py                                     1 passed" in told
    assert list(json.loads((checkout / "table.json").read_text())["op-plugin"]["files"]) == [str(FILE)]


def test_a_test_that_was_interrupted_is_none(tmp_path):
    report = tmp_path / "junit.xml"
    report.write_text(
        '<testsuites><testcase classname="t.T" name="test"/><testcase classname="" name=""/></testsuites>'
    )
    assert dict(conformance._results(report)) == {"T::test": PASSED}
