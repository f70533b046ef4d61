"""The other ways of a backend: where there is none, nothing is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npudiff.judge.others import WAYS_AGREE, others_of
from npudiff.model.component import NotApplicable
from npudiff.model.constraints import parse_where


def test_without_another_way_it_says_nothing(toy):
    subject = toy.job().subject
    with pytest.raises(NotApplicable, match="no other way of the backend takes the case"):
        WAYS_AGREE.check(subject, toy.Case((3,)))


def test_a_way_that_does_not_support_the_case_is_none(toy):
    subject = toy.job().subject
    item = subject.implementation
    small = replace(item, name="small", constraints=parse_where(["count=1"]))
    subject = replace(subject, implementation=replace(item, others=(small,)))
    assert [way.implementation.name for way, _ in others_of(subject, toy.Case((3,)))] == ["small"]
    assert list(others_of(subject, toy.Case((3, 4)))) == []
