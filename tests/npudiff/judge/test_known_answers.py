"""Where something is known to be computed of which nothing is specified, no case is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import NotApplicable
from npudiff.model.constraints import Constraints
from npudiff.model.instead import Change, Instead


def test_what_is_made_of_nothing_but_nan_says_nothing(toy):
    subject = toy.job(lambda inputs, target: inputs.x).subject
    known = Instead(Constraints(), (Change.parsed("x *= nan"),))
    with pytest.raises(NotApplicable, match="nothing is specified"):
        EQUIVALENCE.check(replace(subject, instead=(known,)), toy.Case((3,)))
    halved = Instead(Constraints(), (Change.parsed("x *= 0.5"),))
    assert EQUIVALENCE.check(replace(subject, instead=(halved,)), toy.Case((3,))).holds
