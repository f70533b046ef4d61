"""Documents: what ``--json`` writes, of every command and of every end, in the form that the schema describes."""

from __future__ import annotations

import json

import jsonschema
import pytest

import warm
from npudiff.show.document import DocumentFile, document, finite, schema

WRONG = """
import os
import npudiff
from npudiff.device.ascend import int4_pack

@npudiff.implementation("int4_pack")
def doubled(inputs, target):
    print("a kernel that talks")
    os.write(1, b"and one that writes\\n")
    return int4_pack.shifted(int4_pack.signed(inputs), range(8)) * 2
"""
DIES = """
import os
import npudiff

@npudiff.implementation("int4_pack")
def leaving(inputs, target):
    os._exit(0)
"""


def ran(tmp_path, *arguments, code):
    """Run a command with its document on standard output; returns the document, which is all that stands there."""
    done = warm.run(*arguments, "--json", "-", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    said = json.loads(done.stdout)
    jsonschema.validate(said, schema())
    assert said["exit_code"] == code
    assert said["command"] == arguments[0]
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels")
    (path / "wrong.py").write_text(WRONG)
    (path / "dies.py").write_text(DIES)
    return path


@pytest.fixture(scope="module")
def checked(folder):
    return ran(folder, "check", "int4_pack", "--impl", "wrong.py", "--examples", 5, "--seed", 1, code=1)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.slow
def test_a_check_says_all_that_the_console_says_and_nothing_else_is_on_standard_output(checked, folder):
    assert checked["verdict"] == "findings"
    assert checked["problem"] == ""
    assert checked["target"]["name"] == "sim"
    assert checked["run"]["seed"] == "1"
    assert checked["run"]["ended"] == "complete"
    (item,) = checked["implementations"]
    assert (item["component"], item["implementation"], item["verdict"]) == ("int4_pack", "doubled", "findings")
    assert item["compared"] == ["words"]
    assert {one["property"]: one["verdict"] for one in item["properties"]}["equivalence"] == "wrong value"
    first = checked["findings"][0]
    assert first["case"]["columns"] == 8
    assert first["detail"]["where"]
    assert first["text"].startswith("int4_pack.doubled · equivalence · wrong value\n  case")
    assert (folder / first["folder"] / "finding.json").exists()
    assert {one["cause"] for one in checked["findings"]} == {0}


@pytest.mark.slow
def test_findings_are_replayed(checked, folder):
    said = ran(folder, "replay", ".npudiff/findings", "--impl", "wrong.py", code=1)
    assert {one["verdict"] for one in said["replays"]} == {"FAILED"}
    assert len(said["replays"]) == len(checked["findings"])
    said = ran(folder, "replay", "nowhere", code=4)
    assert [one["verdict"] for one in said["replays"]] == ["ERROR"]


@pytest.mark.slow
def test_a_gate_says_what_closes_it(folder):
    say = ["--impl", "wrong.py", "--examples", 5, "--rotating", "off", "--output", "gate"]
    said = ran(folder, "gate", "int4_pack", *say, code=1)
    assert said["gate"]["open"] is False
    assert said["gate"]["verdict"].startswith("closed: ")
    assert {one["part"] for one in said["findings"]} == {"the same cases every time"}
    assert all((folder / name).exists() for name in said["gate"]["files"])


def test_a_listing_has_the_contract(folder):
    said = ran(folder, "list", "rms_norm", "int4_pack", code=0)
    assert [one["name"] for one in said["components"]] == ["rms_norm", "int4_pack"]
    inputs = {one["name"]: one["meaning"] for one in said["components"][0]["inputs"]}
    assert inputs["weight"] == "``[hidden_size]``, of the same dtype."
    assert "sim" in said["targets"]


@pytest.mark.slow
def test_the_machine_and_a_score(folder):
    said = ran(folder, "doctor", "--target", "sim", code=0)
    assert said["targets"] == [{"target": "sim", "works": True, "said": said["targets"][0]["said"]}]
    (component,) = ran(folder, "list", "int4_pack", code=0)["components"]
    mutant = next(one["name"] for one in component["implementations"] if one["wrong"])
    say = ["--mutant", mutant, "--method", "npudiff", "--seeds", 1, "--examples", 20, "--output", "score"]
    said = ran(folder, "score", "int4_pack", *say, code=0)
    assert said["score"]["found"] == {"npudiff": {f"int4_pack.{mutant}": [1, 1]}}


@pytest.mark.slow
def test_mutants_are_in_the_document_of_a_self_test(folder):
    said = ran(folder, "self-test", "int4_pack", code=0)
    assert said["implementations"] == []
    assert all(one["found"] for one in said["mutants"])


def test_what_cannot_be_done_is_told_in_a_document_too(folder):
    said = ran(folder, "check", "int4_pck", code=4)
    assert said["verdict"] == "usage error"
    assert "did you mean 'int4_pack'" in said["problem"]


@pytest.mark.slow
def test_a_kernel_that_ends_its_process_leaves_a_document(folder):
    said = ran(folder, "check", "int4_pack", "--impl", "dies.py", "--examples", 2, code=1)
    assert said["findings"][0]["verdict"] == "process died"
    # Here the whole run ends: the guardian tells what is left to tell.
    said = ran(
        folder, "check", "int4_pack", "--impl", "dies.py", "--examples", 2, "--no-isolate", "--workers", 1, code=3
    )
    assert said["verdict"] == "internal error"
    assert "ended before its last verdict" in said["problem"]
    assert "findings" not in said


def test_a_file_is_written_and_one_that_cannot_be_is_no_clean_run(folder):
    done = warm.run("list", "int4_pack", "--json", "said.json", cwd=folder)
    assert "int4_pack: " in done.stdout
    jsonschema.validate(json.loads((folder / "said.json").read_text()), schema())
    (folder / "taken").mkdir()
    done = warm.run("list", "int4_pack", "--json", "taken", cwd=folder)
    assert done.returncode == 4
    assert "--json taken: " in done.stderr


def test_content_that_raises_costs_no_verdict(tmp_path):
    file = DocumentFile(str(tmp_path / "said.json"))
    file.content = lambda: {}["missing"]
    assert file.write("check", 1, "interrupted") == 1
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["problem"] == "interrupted; what was seen cannot be told: KeyError: 'missing'"


def test_numbers_that_json_does_not_have_are_text():
    assert finite({"a": (float("inf"), 1.5), "b": [float("nan"), {"c": -float("inf")}]}) == {
        "a": ["inf", 1.5],
        "b": ["nan", {"c": "-inf"}],
    }
    assert document("list", 0, "", {"components": []})["verdict"] == "clean"
