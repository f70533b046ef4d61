"""The other ways of a backend: where there is none, nothing is said."""

from __future__ import annotations

import pytest

from npudiff.judge.others import WAYS_AGREE
from npudiff.model.component import NotApplicable


def test_without_another_way_it_says_nothing(toy):
    subject = toy.job().subject
    with pytest.raises(NotApplicable, match="no other way of the backend takes the case"):
        WAYS_AGREE.check(subject, toy.Case(3))
