"""Which names are legal, and what becomes of a text in a path."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import npudiff
from npudiff.errors import UsageError
from npudiff.files.names import MOST_CHARACTERS, check_title, check_word
from npudiff.files.writing import file_name
from npudiff.model.component import Property
from npudiff.model.constraints import Axis
from npudiff.model.implementation import Implementation
from npudiff.model.job import Budget
from npudiff.run.discovery import built_in_implementations, load_components

ABSURD = (
    "", " ", ".", "..", "../../../../tmp/x", "/etc/passwd", "a/b", "a\\b", ".hidden", "-rf", "--impl", "x.py", "a\x00b",
    "a\nb", "\x1b]0;owned\x07", "\x1b[2J", "\u202egnp", "\ud800", "x" * 5000, "x" * (MOST_CHARACTERS + 1), " x", "x ",
    "a'b", 'a"b', "$(x)", "`x`", "a;b", "a|b", "a&b", "<b>", None, 3, b"bytes", ["x"],
)  # fmt: skip


@pytest.mark.parametrize("name", ABSURD, ids=repr)
def test_absurd_names_are_refused_with_one_short_line(name):
    for check in (check_title, check_word):
        with pytest.raises(UsageError) as refused:
            check("a thing", name)
        assert "cannot be the name of a thing" in str(refused.value)
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "name", ["mine", "_x", "v1.2", "block 128 (fp8)", "量化", "a=b", "x[0]", "x" * MOST_CHARACTERS]
)
def test_names_that_people_give_are_legal(name):
    check_title("a thing", name)
    assert Implementation("swa_mask", name, lambda inputs, target: None).name == name


def test_a_word_has_no_sign_that_joins_names():
    check_word("an axis", "head dim-2")
    for name in ("a.b", "a=b", "a,b", "a:b"):
        with pytest.raises(UsageError):
            check_word("an axis", name)


def test_every_name_of_npudiff_is_legal_and_is_its_own_file_name():
    for component in load_components([]):
        assert file_name(component.name) == component.name
        assert max(map(len, component.axes)) < MOST_CHARACTERS
    for item in built_in_implementations():
        assert file_name(f"{item.component}.{item.name}") == f"{item.component}.{item.name}"


def test_names_are_checked_where_things_are_defined(toy):
    bad = "../../x"
    with pytest.raises(UsageError, match="name of an implementation"):
        npudiff.implementation("swa_mask", name=bad)(lambda inputs, target: None)
    with pytest.raises(UsageError, match="name of an implementation"):
        replace(toy.job().subject.implementation, name=bad)
    with pytest.raises(UsageError, match="name of a property"):
        Property(bad, "", lambda subject, case: None)
    with pytest.raises(UsageError, match="name of a component"):
        replace(toy.component, name=bad)
    with pytest.raises(UsageError, match="name of an output of toy"):
        replace(toy.component, outputs=("y", bad))
    with pytest.raises(UsageError, match="name of an axis of toy"):
        replace(toy.component, axes={**toy.component.axes, bad: Axis("", ())})


@settings(max_examples=300, derandomize=True, database=None)
@given(st.text(max_size=300), st.integers(20, 200))
@example("../../../../tmp/x", 200)
@example("/", 20)
@example("..", 20)
@example("\ud800", 20)
def test_any_text_is_one_plain_part_of_a_path(text, most):
    name = file_name(text, most)
    assert 0 < len(name) <= most
    assert name.isascii()
    assert name[0] not in ".-"
    assert not set(name) & set("/\\\x00 ")
    assert file_name(name, most) == name


@settings(max_examples=100, derandomize=True, database=None)
@given(st.text(max_size=30), st.text(max_size=30))
@example("a/b", "a_b")
@example("x" * 300, "x" * 301)
def test_two_texts_have_two_file_names(first, second):
    assert (file_name(first) == file_name(second)) == (first == second)


def test_memory_of_a_job_stays_below_its_folder(toy, tmp_path):
    job = toy.job()
    for place in (job.subject.implementation, job.subject.component, job.prop):
        object.__setattr__(place, "name", "../../../x")  # as if nobody had checked it
    try:
        budget = Budget(example_database=tmp_path, shared_database=tmp_path, deterministic=False)
        for folder in (budget.example_database_of(job), budget.shared_database_of(job)):
            assert folder.parent == tmp_path
            assert folder.name not in ("", ".", "..")
    finally:
        object.__setattr__(job.prop, "name", "equivalence")
