from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import Phase, given, seed, settings

from npudiff.draw.chooser import (
    CHOICES,
    DISTINCT,
    EQUAL_SHARE,
    FIRST_CHOICE,
    OUTLIERS,
    TINY,
    UNIFORM,
    Chooser,
    but_for_one,
    choice_index,
    within,
)
from npudiff.draw.chosen import chosen
from npudiff.draw.counts import FAR_COUNTS, far_values
from npudiff.model.constraints import Axis


class Fixed:
    """A source whose choices are given, counted from the smallest that it may give."""

    def __init__(self, *choices):
        self.left, self.ranges = list(choices), []

    def randint(self, first, last):
        self.ranges.append((first, last))
        return first + self.left.pop(0)


def chooser(*choices):
    return Chooser(Fixed(*choices))


def test_the_smallest_draw_is_the_first_option():
    assert chooser(0).pick(("a", "b", "c")) == "a"


def test_every_option_can_be_drawn():
    choose = chooser(*range(3))
    assert [choose.pick("abc") for _ in range(3)] == list("abc")


def test_a_choice_among_one_costs_one_draw_so_that_the_sequence_stays_aligned():
    source = Fixed(1)
    assert Chooser(source).pick(("only",)) == "only"
    assert source.ranges == [(FIRST_CHOICE, FIRST_CHOICE + 1)]


def several(*choices, allowed=None, sizes=(1, 2, 3)):
    choose, numbers = chooser(*choices, UNIFORM.index("no")), iter(range(9))
    return choose.draw_list({} if allowed is None else {"batch": allowed}, "batch", sizes, lambda: next(numbers))


GO, STOP = 1, 0


def test_as_many_parts_are_drawn_as_the_size_says():
    assert several(2, GO, GO, GO) == (0, 1, 2)
    assert several(0, GO) == (0,)


def test_parts_stop_early_but_never_before_the_first():
    assert several(2, STOP, STOP) == (0,)
    assert several(2, GO, GO, STOP) == (0, 1)


def test_parts_stop_only_where_their_number_is_allowed():
    assert several(0, GO, STOP, STOP, allowed=(3,)) == (0, 1, 2)
    assert several(1, GO, STOP, STOP, allowed=(2, 3)) == (0, 1)


def test_a_failure_that_needs_the_last_part_shrinks_to_that_part():
    def drawn_parts(choose):
        return choose.draw_list({}, "batch", (1, 2, 3, 8), lambda: (choose.pick(range(9)), choose.pick(range(9))))

    @settings(max_examples=500, database=None, report_multiple_bugs=False, derandomize=True)
    @given(chosen(drawn_parts))
    def fails(parts):
        smallest.append(parts)
        assert not any(low == 3 and high > 4 for low, high in parts)

    smallest = []
    with pytest.raises(AssertionError):
        fails()
    assert smallest[-1] == ((3, 5),)


def test_cases_are_not_variations_of_each_other():
    """Hypothesis copies parts of a case over others that are drawn from the same strategy; then few are independent."""
    drawn = set()

    @seed(1)
    @settings(max_examples=300, database=None, phases=[Phase.generate])
    @given(chosen(lambda choose: tuple(choose.pick(range(1000)) for _ in range(6))))
    def collect(values):
        drawn.add(values)

    collect()
    repeated = sum(len(set(values) - {0}) < sum(value > 0 for value in values) for values in drawn)
    assert len(drawn) > 290
    assert repeated < 20  # 1.5 % would be by chance


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (None, [1, 2, 3]),
        (range(2, 9), [2, 3]),
        ((3, 1), [1, 3]),
        (range(5, 9), [5, 6, 7, 8]),
        ((7, None), [7, None]),
    ],
)
def test_defaults_that_are_allowed_come_first_else_all_that_is_allowed(allowed, expected):
    assert list(within((1, 2, 3), allowed)) == expected


def test_a_huge_range_without_defaults_is_drawn_from_without_being_listed():
    assert chooser(0).value({"a": range(100, 10**15)}, "a", (1, 2)) == 100
    assert chooser(CHOICES - 1).value({"a": range(100, 10**15)}, "a", (1, 2)) == 10**15 - 1
    assert within((1,), range(100, 10**15)) == range(100, 10**15)


@pytest.mark.parametrize("options", [1, 3, CHOICES, CHOICES + 1, 3 * CHOICES + 7, 2**20, 2**31])
def test_places_reach_from_the_first_option_to_the_last(options):
    places = [choice_index(choice, options) for choice in range(CHOICES)]
    assert (min(places), max(places), places[0]) == (0, options - 1, 0)
    assert len(set(places)) == min(options, CHOICES)
    assert options <= CHOICES or places == sorted(places)


def test_places_of_a_long_list_have_every_residue():
    """Otherwise every length drawn from a long range would be a multiple of some power of two."""
    assert {choice_index(choice, 2**20) % 16 for choice in range(CHOICES)} == set(range(16))


def test_choices_have_no_literal_of_any_module_and_are_flat():
    drawn = []

    @seed(1)
    @settings(max_examples=1000, database=None, phases=[Phase.generate])
    @given(chosen(lambda choose: [choose.pick(range(8)) for _ in range(8)]))
    def collect(values):
        drawn.extend(values)

    collect()
    shares = [drawn.count(value) / len(drawn) for value in range(8)]
    assert max(shares) < 0.16  # the first one, with which a run begins
    assert min(shares) > 0.1


AXES = {"heads": Axis("heads", range(1, 41)), "batch": Axis("requests", range(1, 4097))}


def far(name, *choices):
    """A chooser that goes far on one axis, and its next choices."""
    return outlier((name, False), *choices)


def outlier(which, *choices, huge=()):
    name, is_huge = which
    kind = "huge" if is_huge else "far" if name else "none"
    axis = list({"huge": huge, "far": AXES}.get(kind, [""])).index(name)
    choose = chooser(OUTLIERS.index(kind), axis, 0, 0, *choices)
    choose.draw_outlier_axis(AXES, *AXES, huge=huge)
    assert (choose.far, choose.huge) == which
    return choose


def outliers(huge):
    """What an outlier may be, by kind and axis."""
    for kind, axis in itertools.product(range(len(OUTLIERS)), range(2)):
        choose = chooser(kind, axis, 0, 0)
        choose.draw_outlier_axis(AXES, *AXES, huge=huge)
        yield choose.far, choose.huge


def test_one_case_of_nine_goes_far_and_one_of_fourteen_beyond_a_thousand():
    found = list(outliers(("batch",)))
    assert found[0] == ("", False)
    assert found.count(("heads", False)) == found.count(("batch", False)) == 3
    assert found.count(("batch", True)) == 4
    assert found.count(("", False)) == len(found) - 10
    assert outliers(()).__next__() == ("", False)
    assert not any(huge for _, huge in outliers(()))


def test_where_nothing_is_far_no_choice_is_left_that_means_nothing():
    source = Fixed(0, 0, 0, 0)
    Chooser(source).draw_outlier_axis(AXES, *AXES, huge=("batch",))
    assert [last - first for first, last in source.ranges] == [len(OUTLIERS) - 1, 1, 1, 1]


def test_beside_a_huge_count_others_are_tiny():
    choose = outlier(("batch", True), huge=("batch",))
    assert max(choose.options({}, "batch", (1, 2))) > 1024
    assert choose.options({}, "heads", (1, TINY, TINY + 1)) == [1, TINY]
    assert choose.options({}, "heads", (24, 32)) == [24]
    assert choose.options({}, "seed", (16, 32)) == (16, 32)  # no axis


def test_beside_a_far_count_others_are_as_they_are():
    assert far("batch").options({}, "heads", (1, 8, 16)) == (1, 8, 16)


def alike(kind):
    numbers = iter([(3, 7), (4, 9)])
    choose = chooser(1, 1, 1, UNIFORM.index(kind))
    return choose.draw_list({}, "batch", (1, 2), lambda: next(numbers), lambda first, other: (first[0], other[1]))


def test_parts_are_alike_now_and_then():
    assert alike("no") == ((3, 7), (4, 9))
    assert alike("partly") == ((3, 7), (3, 9))
    assert alike("wholly") == ((3, 7), (3, 7))
    assert UNIFORM[0] == "no"


@pytest.mark.parametrize(("count", "expected"), [(1, [8]), (2, [8, 1]), (3, [8, 1, 8]), (5, [8, 8, 2, 8, 8])])
def test_parts_are_alike_but_for_the_one_in_the_middle(count, expected):
    assert but_for_one(range(count), 8)[: count // 2] == expected[: count // 2]
    assert but_for_one(range(count), 8) == [
        number if place != count // 2 else place for place, number in enumerate(expected)
    ]


def test_a_list_of_which_both_ends_are_alike():
    numbers = iter([(3, 7), (4, 9), (5, 1)])
    choose = chooser(2, 1, 1, 1, UNIFORM.index("but for one"))
    assert choose.draw_list({}, "batch", (1, 2, 3), lambda: next(numbers)) == ((3, 7), (4, 9), (3, 7))


def test_in_most_cases_no_count_goes_far():
    choose = outlier(("", False))
    assert choose.far == ""
    assert choose.options({}, "heads", (1, 2)) == (1, 2)


def test_a_count_goes_far_as_its_axis_and_box_allow_and_usual_ones_stay_in_front():
    options = far("heads").options({}, "heads", (1, 2))
    assert list(options[:2]) == [1, 2]
    assert set(options[2:]) == {count for count in (*FAR_COUNTS, 4, 8, 16, 32) if count <= 40}
    assert set(far("heads").options({"heads": range(2, 10)}, "heads", (1, 2))) == {2, 4, 5, 6, 7, 8, 9}
    assert list(far("heads").options({"heads": (2,)}, "heads", (1, 2))) == [2]


def test_only_one_axis_goes_far():
    assert far("heads").options({}, "batch", (1, 2)) == (1, 2)


def test_far_more_parts_than_usual_are_a_few_that_repeat():
    numbers = iter(range(99))
    place_of_65 = 3 + far_values(AXES["batch"].legal, 0, 0).index(65)
    parts = far("batch", place_of_65, *[GO] * DISTINCT, UNIFORM.index("no")).draw_list(
        {}, "batch", (1, 2, 3), lambda: next(numbers)
    )
    assert len(parts) == 65
    assert parts[: DISTINCT + 2] == (*range(DISTINCT), 0, 1)


@pytest.mark.slow
def test_a_failure_of_many_parts_shrinks_to_the_smallest_far_count_of_one_part():
    def drawn_parts(choose):
        choose.draw_outlier_axis(AXES, "batch")
        return choose.draw_list({}, "batch", (1, 2, 3), lambda: choose.pick(range(9)))

    @settings(max_examples=500, database=None, report_multiple_bugs=False, derandomize=True)
    @given(chosen(drawn_parts))
    def fails(parts):
        smallest.append(parts)
        assert len(parts) <= 64

    smallest = []
    with pytest.raises(AssertionError):
        fails()
    assert smallest[-1] == (0,) * 65


def test_a_failure_that_needs_no_far_count_shrinks_to_the_usual_one():
    def drawn_count(choose):
        choose.draw_outlier_axis(AXES, "heads")
        return choose.value({}, "heads", (1, 2, 8)), choose.pick(range(9))

    @settings(max_examples=500, database=None, report_multiple_bugs=False, derandomize=True)
    @given(chosen(drawn_count))
    def fails(drawn):
        smallest.append(drawn)
        assert drawn[0] < 2 or drawn[1] < 3

    smallest = []
    with pytest.raises(AssertionError):
        fails()
    assert smallest[-1] == (2, 3)


@dataclass(frozen=True)
class Matrix:
    rows: int
    columns: int


def values_of(matrix):
    return {"rows": (matrix.rows,), "columns": (matrix.columns,)}


def refuse_squares_of_5(matrix):
    if matrix == Matrix(5, 5):
        raise ValueError


def tied(choice, matrix, box):
    return chooser(choice).tie_sizes(matrix, ("rows", "columns"), values_of, refuse_squares_of_5, box)


def test_two_sizes_become_the_smaller_one_where_that_is_legal():
    last = EQUAL_SHARE - 1
    assert tied(last, Matrix(3, 7), {}) == Matrix(3, 3)
    assert tied(last, Matrix(7, 3), {}) == Matrix(3, 3)
    assert tied(last - 1, Matrix(3, 7), {}) == Matrix(3, 7)
    assert tied(last, Matrix(5, 7), {}) == Matrix(5, 7)
    assert tied(last, Matrix(3, 7), {"columns": (7, 8)}) == Matrix(3, 7)
