"""What others have found: which cases come first, and what is not read."""

from __future__ import annotations

import json
import os

import pytest

from npudiff.errors import UsageError
from npudiff.files.reading import MOST_BYTES
from npudiff.findings import shared as shared_module
from npudiff.findings.shared import read_shared
from shortest import shortest


@pytest.fixture
def theirs(cli, tmp_path):
    cli("check", "swa_mask", "--impl", "mask_left_context_512", "--target", "sim", "--seed", "1", "--output", "theirs")
    (tmp_path / "theirs" / "examples" / "job" / "key").mkdir(parents=True)
    (tmp_path / "theirs" / "examples" / "job" / "key" / "one").write_bytes(b"bytes")
    return tmp_path / "theirs"


@pytest.fixture
def jobs():
    from npudiff.run.plan import Request, make_plan

    return make_plan(Request(components=("swa_mask",), implementations=("mask_left_context_512",), target="sim")).jobs


@pytest.mark.slow
def test_cases_of_findings_are_those_of_their_jobs(theirs, jobs):
    shared = read_shared(theirs, jobs)
    assert set(shared.cases) == {
        "swa_mask.mask_left_context_512.equivalence",
        "swa_mask.mask_left_context_512.wide_window_equals_none",
    }
    assert all(len(cases) == 1 for cases in shared.cases.values())
    assert shared.examples == theirs / "examples"
    assert read_shared(theirs, jobs[:1]).cases.keys() == {jobs[0].name}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["link", "folder link", "pipe", "large", "link to all"])
def test_examples_with_anything_strange_among_them_are_not_read(theirs, jobs, tmp_path, kind):
    place = theirs / "examples" / "job" / "key" / "strange"
    if kind == "link":
        place.symlink_to("/dev/zero")
    elif kind == "folder link":
        place.symlink_to(tmp_path, target_is_directory=True)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "large":
        place.write_bytes(bytes(MOST_BYTES + 1))
    else:
        (theirs / "examples").rename(tmp_path / "elsewhere")
        (theirs / "examples").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    shared = read_shared(theirs, jobs)
    assert shared.examples is None
    assert len(shared.unread) == 1
    assert "not read 1: " in shared.line
    assert shared.cases


def test_a_folder_that_is_not_there_is_refused(jobs, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        read_shared(tmp_path / "nowhere", jobs)


@pytest.fixture
def many(theirs):
    """Copies of a finding."""
    (found, *_) = (theirs / "findings").glob("*-equivalence-*")
    content = json.loads((found / "finding.json").read_text())
    for number in range(20):
        copy = theirs / "findings" / f"copy{number}"
        copy.mkdir()
        content["case"]["spare"] = number
        (copy / "finding.json").write_text(json.dumps({**content, "tensors_sha256": None}))
    return theirs


@pytest.mark.slow
def test_cases_are_remembered_up_to_their_characters_in_all(many, jobs, monkeypatch):
    name = "swa_mask.mask_left_context_512.equivalence"
    assert len(read_shared(many, jobs).cases[name]) >= 20
    monkeypatch.setattr(shared_module, "MOST_OF_CASES", 500)
    shared = read_shared(many, jobs)
    assert 0 < sum(map(len, shared.cases.get(name, ()))) <= 500
    assert "more than 500 characters of cases in all" in shared.unread[-1]


@pytest.mark.slow
def test_only_the_newest_findings_are_read(many, jobs, monkeypatch):
    monkeypatch.setattr(shared_module, "MOST_READ", 3)
    for number in range(20):
        os.utime(many / "findings" / f"copy{number}" / "finding.json", (number, 2_000_000_000 + number))
    (cases,) = read_shared(many, jobs).cases.values()
    assert [json.loads(case)["spare"] for case in cases] == [19, 18, 17]


@pytest.mark.slow
def test_what_is_large_beside_a_case_is_not_read(many, jobs):
    """Of a finding that is shared only its case is wanted: sparse files of many gigabytes take no time."""
    for number in range(20):
        with (many / "findings" / f"copy{number}" / "tensors.safetensors").open("wb") as file:
            file.truncate(2**26)
        path = many / "findings" / f"copy{number}" / "finding.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "tensors_sha256": "0" * 64}))
    assert not read_shared(many, jobs).unread
    assert shortest(lambda: read_shared(many, jobs), enough=2) <= 2


@pytest.mark.slow
def test_a_folder_with_anything_in_it_is_read_as_far_as_it_makes_sense(many, jobs, tmp_path):
    findings = many / "findings"
    for number, target in enumerate(["/dev/zero", tmp_path, "nowhere", "."]):
        (findings / f"link{number}").symlink_to(target)
        (findings / f"inside{number}").mkdir()
        (findings / f"inside{number}" / "finding.json").symlink_to(target)
    (findings / "pipe").mkdir()
    os.mkfifo(findings / "pipe" / "finding.json")
    (findings / "folder" / "finding.json").mkdir(parents=True)
    (findings / "file").write_text("x")
    assert read_shared(many, jobs).unread == ()
