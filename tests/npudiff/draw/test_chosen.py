"""Cases that are drawn without Hypothesis are those that it would draw, and it makes them smaller."""

from __future__ import annotations

from itertools import islice

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisDeprecationWarning

from npudiff.draw.chooser import assume
from npudiff.draw.chosen import MOST_IN_VAIN, OneExample, chosen, draw_of, drawn

QUIET = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


def numbers(choose):
    return tuple(choose.pick(range(10)) for _ in range(3))


def cases(draw, count, seed=1):
    return [one.case for one in islice(drawn(draw, seed), count)]


def test_the_first_case_is_the_simplest_and_others_are_different():
    first, *others = cases(numbers, 200)
    assert first == (0, 0, 0)
    assert len({first, *others}) == 200


def test_a_seed_gives_the_same_cases_and_none_gives_others():
    assert cases(numbers, 50) == cases(numbers, 50)
    assert cases(numbers, 50) != cases(numbers, 50, seed=2)
    assert cases(numbers, 50, seed=None) != cases(numbers, 50, seed=None)


def test_options_are_drawn_alike_often():
    found = [number for case in cases(numbers, 900) for number in case]
    shares = [found.count(number) / len(found) for number in range(10)]
    assert max(shares) < 0.12
    assert min(shares) > 0.08


def test_what_is_refused_is_drawn_again():
    def even(choose):
        number = choose.pick(range(100))
        assume(number % 2 == 0)
        return number

    found = cases(even, 40)
    assert len(found) == 40
    assert not any(number % 2 for number in found)


def test_a_function_may_refuse_as_in_a_test_of_hypothesis(recwarn):
    def even(choose):
        number = choose.pick(range(100))
        hypothesis.assume(number % 2 == 0)
        return number

    assert len(cases(even, 20)) == 20
    assert not [one for one in recwarn if issubclass(one.category, HypothesisDeprecationWarning)]


def test_what_another_exception_says_is_no_refusal():
    def broken(choose):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        cases(broken, 1)


def test_drawing_ends_where_little_is_left():
    calls = []

    def few(choose):
        calls.append(1)
        return choose.pick("abc")

    assert sorted(cases(few, 100)) == ["a", "b", "c"]
    assert len(calls) < 2 * MOST_IN_VAIN


def test_choices_that_mean_nothing_make_no_other_case():
    def of_one(choose):
        return choose.pick("abc"), choose.pick(range(1000)) * 0

    assert len(cases(of_one, 100)) == 3


@pytest.mark.parametrize("shrink", [False, True])
def test_hypothesis_makes_the_same_case_of_the_choices_and_shrinks_it(shrink):
    """``OneExample`` rests on the name of the key under which Hypothesis keeps cases that are not the smallest."""
    one = next(one for one in drawn(numbers, 3) if sum(one.case) > 20)
    seen = []
    phases = [Phase.reuse, Phase.shrink] if shrink else [Phase.reuse]

    @settings(**{**QUIET, "database": OneExample(one.choices)}, phases=phases, max_examples=100)
    @given(chosen(numbers))
    def fails(case):
        seen.append(case)
        assert sum(case) <= 20

    with pytest.raises(AssertionError):
        fails()
    assert seen[0] == one.case
    if shrink:
        assert sum(seen[-1]) == 21
    else:
        assert set(seen) == {one.case}


def test_a_strategy_keeps_its_function_and_what_is_made_of_it_has_none():
    strategy = chosen(numbers)
    assert draw_of(strategy) is numbers
    assert draw_of(strategy.filter(bool)) is None
    assert draw_of(st.integers()) is None


def test_hypothesis_draws_from_the_same_function():
    seen = []

    @settings(**QUIET, max_examples=30, phases=[Phase.generate])
    @given(chosen(numbers))
    def collect(case):
        seen.append(case)

    collect()
    assert seen[0] == (0, 0, 0)
    assert len(set(seen)) > 20
