"""What is known to be computed instead: how it is written, and what it makes of inputs."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import pytest
import torch

from npudiff.errors import UsageError
from npudiff.model.constraints import Constraints
from npudiff.model.instead import Change, Instead, known_answers


class Kind(enum.Enum):
    PLAIN = "plain"
    STEPS = "steps"


@dataclass(frozen=True)
class Inner:
    limit: float | None
    offset: torch.Tensor | None
    kind: Kind = Kind.STEPS


@dataclass(frozen=True)
class Inputs:
    window: int | None
    sorted: bool
    inner: Inner


GIVEN = Inputs(3, True, Inner(7.0, torch.tensor([1.0, -2.0])))


@pytest.mark.parametrize(
    ("text", "written", "value"),
    [
        ("window += 1", "window += 1", lambda inputs: inputs.window == 4),
        (" window-=2 ", "window -= 2", lambda inputs: inputs.window == 1),
        ("window=none", "window = none", lambda inputs: inputs.window is None),
        ("sorted = false", "sorted = false", lambda inputs: inputs.sorted is False),
        ("inner.limit = 1.5", "inner.limit = 1.5", lambda inputs: inputs.inner.limit == 1.5),
        ("inner.offset *= -1", "inner.offset *= -1", lambda inputs: inputs.inner.offset.tolist() == [-1.0, 2.0]),
        ("inner.kind = plain", "inner.kind = plain", lambda inputs: inputs.inner.kind is Kind.PLAIN),
    ],
)
def test_a_change_says_how_it_is_written_and_changes_one_field(text, written, value):
    change = Change.parsed(text)
    assert str(change) == written
    assert value(change.of(GIVEN))
    assert Change.parsed(written) == change
    assert GIVEN.window == 3


def test_what_holds_nothing_stays_as_it_is_where_something_is_added():
    nothing = Inputs(None, True, GIVEN.inner)
    assert Change.parsed("window += 1").of(nothing).window is None
    assert Change.parsed("window = 5").of(nothing).window == 5


@pytest.mark.parametrize(
    "text",
    ["", "window", "window == 1", "= 1", "Window = 1", "window += none", "window *= true", "a..b = 1", "window +="],
)
def test_what_is_no_change_is_refused(text):
    with pytest.raises(UsageError):
        Change.parsed(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("windows = 1", "unknown field of Inputs 'windows'; did you mean 'window'?"),
        ("inner.limits = 1", "unknown field of Inner 'limits'"),
        ("window.more = 1", "unknown field of int 'more'"),
        ("inner += 1", "unsupported operand"),
        ("inner.kind = other", "not a valid Kind"),
    ],
)
def test_a_change_of_what_is_not_there_says_so(text, said):
    with pytest.raises(UsageError, match=said.replace("?", r"\?")):
        Change.parsed(text).of(GIVEN)


def test_all_that_is_known_comes_first_and_then_less_of_it():
    known = [Instead(Constraints(), (Change.parsed("window += 1"),), "https://example.org/1"),
             Instead(Constraints(), (Change.parsed("sorted = false"),), "")]  # fmt: skip
    found = [(changed.window, changed.sorted, how) for changed, how in known_answers(known, GIVEN)]
    assert found == [
        (4, False, "window += 1 (https://example.org/1); sorted = false"),
        (4, True, "window += 1 (https://example.org/1)"),
        (3, False, "sorted = false"),
    ]
