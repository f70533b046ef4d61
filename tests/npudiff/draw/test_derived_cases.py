from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from npudiff.draw.derived_cases import grown, longer, same_size, shrunk
from npudiff.model.constraints import SEEDS


@dataclass(frozen=True)
class Part:
    """A request with a name and two lengths."""

    name: str
    query: int
    kv: int


@dataclass(frozen=True)
class Sized:
    """A case whose size is not its first field."""

    kind: str
    flag: bool
    size: object
    other: int = 5
    seed: int = 7


@pytest.fixture
def subject(toy):
    """A component that refuses nothing."""
    return toy.job(values=lambda case: {}, check_case=lambda case: None).subject


def sizes(subject, size):
    found = [find(subject, Sized("any", True, size)) for find in (shrunk, same_size, grown)]
    assert all((case.kind, case.flag, case.other) == ("any", True, 5) for case in found if case is not None)
    return [None if case is None else case.size for case in found]


def test_rows_are_halved_and_doubled(subject):
    assert sizes(subject, 8) == [4, 8, 16]
    assert sizes(subject, 7) == [3, 7, 14]


def test_a_batch_loses_half_of_its_requests_or_has_one_more(subject):
    one, two, three = Part("a", 1, 8), Part("b", 2, 9), Part("c", 1, 4)
    changed = (replace(one, kv=4), replace(two, kv=4), replace(three, kv=2))
    assert sizes(subject, (one, two, three)) == [(one,), changed, (one, two, three, one)]


def test_all_requests_get_longer_than_the_longest_by_one_length_or_the_other(subject):
    one, two = Part("a", 1, 8), Part("b", 2, 4)
    found = [case.size for case in longer(subject, Sized("any", True, (one, two)))]
    lengths = ((replace(one, kv=9), replace(two, kv=9)), (replace(one, query=3), replace(two, query=3)))
    assert found == list(lengths)
    assert longer(subject, Sized("any", True, 8)) == longer(subject, Sized("any", True, ())) == []


def test_as_long_as_the_longest_where_no_longer_one_can_be_built(toy):
    def at_most_eight(case):
        if max(case.size) > 8:
            raise ValueError("too long")

    subject = toy.job(values=lambda case: {}, check_case=at_most_eight).subject
    assert [case.size for case in longer(subject, Sized("any", True, (8, 4)))] == [(8, 8)]


def test_a_single_request_gets_shorter(subject):
    assert sizes(subject, (Part("a", 1, 8),)) == [(Part("a", 1, 4),), (Part("a", 1, 4),), (Part("a", 1, 8),) * 2]


def test_a_length_that_does_not_get_shorter_leaves_it_to_another(subject):
    assert sizes(subject, (Part("a", 6, 0),))[1] == (Part("a", 3, 0),)


def test_parts_may_be_numbers(subject):
    assert sizes(subject, (4, 6)) == [(4,), (2, 3), (4, 6, 4)]


def test_the_data_are_others(subject):
    case = Sized("any", True, 8, seed=SEEDS - 2)
    assert len({find(subject, case).seed for find in (shrunk, same_size, grown)} | {case.seed}) == 4
    assert all(0 <= find(subject, case).seed < SEEDS for find in (shrunk, same_size, grown))


def test_what_cannot_be_built_is_left_out_for_what_can(toy):
    def at_most_nine(case):
        if case.size > 9:
            raise ValueError("too many")

    subject = toy.job(values=lambda case: {}, check_case=at_most_nine).subject
    assert sizes(subject, 8) == [4, 8, 9]
    assert sizes(subject, 9) == [4, 9, None]


def test_what_the_implementation_does_not_support_is_left_out(toy):
    supports = {"count": (3, 7, 8)}
    subject = toy.job(
        values=lambda case: {"count": (case.size,)}, check_case=lambda case: None, supports=supports
    ).subject
    assert sizes(subject, 8) == [7, 8, None]


def test_a_case_without_a_size_has_no_neighbours(subject):
    @dataclass(frozen=True)
    class Named:
        name: str

    assert [find(subject, Named("any")) for find in (shrunk, same_size, grown)] == [None] * 3
