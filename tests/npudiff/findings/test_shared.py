"""What others have found: which cases come first, and what is not read."""

from __future__ import annotations

import os

import pytest

from npudiff.errors import UsageError
from npudiff.files.reading import MOST_BYTES
from npudiff.findings.shared import read_shared


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


def test_cases_of_findings_are_those_of_their_jobs(theirs, jobs):
    shared = read_shared(theirs, jobs)
    assert set(shared.cases) == {
        "swa_mask.mask_left_context_512.equivalence",
        "swa_mask.mask_left_context_512.wide_window_equals_none",
    }
    assert all(len(cases) == 1 for cases in shared.cases.values())
    assert shared.examples == theirs / "examples"
    assert read_shared(theirs, jobs[:1]).cases.keys() == {jobs[0].name}


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
