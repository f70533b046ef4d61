from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from by_night import by_night
from npudiff.errors import UsageError
from npudiff.model.constraints import (
    Axis,
    Constraints,
    Joined,
    Numbers,
    allows,
    check_values,
    describe,
    intersection,
    least,
    parse_where,
)
from shortest import shortest

LAWS = settings(max_examples=by_night(200), deadline=None, derandomize=True, database=None)

_RANGES = st.builds(range, st.integers(-3, 6), st.integers(0, 9), st.integers(1, 3)).filter(bool)
_SETS = st.lists(st.sampled_from([None, *range(-2, 9)]), min_size=1, max_size=4).map(tuple)
_BOXES = st.dictionaries(st.sampled_from("abc"), st.one_of(_RANGES, _SETS), max_size=3)
_CONSTRAINTS = st.lists(_BOXES, max_size=3).map(lambda boxes: Constraints(tuple(boxes)))
_VALUES = st.sets(st.sampled_from([None, *range(-2, 9)]), min_size=1, max_size=2)
_POINTS = st.fixed_dictionaries({"a": _VALUES, "b": _VALUES, "c": _VALUES})

AXES = {
    "size": Axis("a size", range(1, 65)),
    "window": Axis("a window", range(1, 2**31), optional=True),
    "dims": Axis("dims", ("64", "128", "192/128")),
    "sinks": Axis("sinks", (False, True)),
    "scale": Axis("scale", (1.0, 0.5)),
}


def admits(constraints, point):
    return constraints.reason_against(point) is None


@LAWS
@given(_CONSTRAINTS, _CONSTRAINTS, _POINTS)
def test_a_case_is_in_the_intersection_if_both_admit_it(one, other, point):
    # A point with several values of an axis lies in one box of each side, so the law holds for boxes and unions.
    assert admits(one.within(other), point) == (admits(one, point) and admits(other, point))


@LAWS
@given(_CONSTRAINTS, _CONSTRAINTS)
def test_an_intersection_has_no_box_in_which_nothing_fits(one, other):
    both = one.within(other)
    assert all(len(allowed) for box in both.boxes for allowed in box.values())
    assert bool(both) == bool(both.boxes)
    if not both:
        assert both.reason_against({}) == "nothing is allowed"


@LAWS
@given(st.one_of(_RANGES, _SETS), st.one_of(_RANGES, _SETS))
def test_an_intersection_holds_what_is_in_both(first, second):
    both = intersection(first, second)
    for value in [None, *range(-4, 12)]:
        assert allows(both, value) == (allows(first, value) and allows(second, value))


def test_one_box_of_a_union_is_enough():
    union = Constraints.of([{"a": (1,), "b": (1, 2)}, {"a": range(2, 5)}])
    assert admits(union, {"a": (1,), "b": (2,)})
    assert admits(union, {"a": (3,), "b": (9,)})
    assert not admits(union, {"a": (1,), "b": (9,)})


def test_every_value_of_a_case_must_be_inside_the_same_box():
    union = Constraints.of([{"a": (1,)}, {"a": (2,)}])
    assert not admits(union, {"a": (1, 2)})


def test_what_a_box_or_a_case_does_not_name_is_free():
    assert admits(Constraints(), {"a": (1,)})
    assert admits(Constraints.of({"a": (1,)}), {"b": (5,)})


def test_the_reason_is_that_of_the_box_that_comes_closest():
    union = Constraints.of([{"a": (1,), "b": (1,), "c": (1,)}, {"a": range(16, 1025, 16), "b": (2,)}])
    assert union.reason_against({"a": (17,), "b": (2,), "c": (3,)}) == "a 17 is not in 16..1024 step 16"


@pytest.mark.parametrize("value", [5.0, True, "5", None])
def test_a_range_holds_integers_only(value):
    assert not allows(range(10), value)
    assert allows(range(10), 5)


def test_huge_ranges_are_never_searched():
    """A search would have no end."""
    huge = range(0, 10**15, 1)
    even = range(0, 10**15, 2)
    assert allows(even, 10**14)
    assert not allows(huge, 3.5)
    assert intersection(huge, range(5, 10**12)) == range(5, 10**12)
    assert intersection(even, (1, 2, "x")) == (2,)
    assert intersection((4, 5), even) == (4,)
    constraints = Constraints.of({"a": huge}).within(Constraints.of({"a": range(7, 10**14)}))
    assert admits(constraints, {"a": (10**13,)})
    assert not admits(constraints, {"a": (1,)})
    assert describe(huge) == "0..999999999999999"


@pytest.mark.parametrize("other", [range(1, 2 * 10**7), range(1, 2 * 10**7, 3)])
def test_a_range_with_a_step_and_a_huge_one_intersect_without_a_search(other):
    few = range(16, 1025, 16)
    assert 112 in intersection(few, other)
    assert 112 in intersection(other, few)
    assert shortest(lambda: (intersection(few, other), intersection(other, few)), enough=0.2) <= 0.2


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("window=512", (512,)),
        ("window=512,none", (512, None)),
        ("sinks=true,FALSE", (True, False)),
        ("dims=192/128,64", ("192/128", 64)),
        ("size=-3", (-3,)),
        ("size=1..4096", range(1, 4097)),
        ("size=7..7", range(7, 8)),
        ("size=-2..2", range(-2, 3)),
    ],
)
def test_where_takes_values_and_ranges(text, allowed):
    (box,) = parse_where([text]).boxes
    assert box == {text.partition("=")[0]: allowed}
    assert [type(value) for value in next(iter(box.values()))] == [type(value) for value in allowed]


def test_where_takes_several_axes():
    assert parse_where([]).boxes == ({},)
    assert parse_where(["a=1", "b=2..3"]).boxes == ({"a": (1,), "b": range(2, 4)},)


def test_where_narrows_when_an_axis_is_named_twice():
    constraints = parse_where(["a=1..10", "a=5..20"])
    assert [value for value in range(25) if admits(constraints, {"a": (value,)})] == list(range(5, 11))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("window", "AXIS=VALUE"),
        ("=5", "AXIS=VALUE"),
        ("window=", "AXIS=VALUE"),
        ("a=1..x", "two integers"),
        ("a=..3", "two integers"),
        ("a=1..2..3", "two integers"),
        ("a=5..4", "empty"),
    ],
)
def test_where_refuses_other_forms_with_what_was_given(text, expected):
    with pytest.raises(UsageError, match=expected) as caught:
        parse_where([text])
    assert repr(text) in str(caught.value)


def test_values_take_the_form_of_their_axis():
    given_values = {"dims": (128, "192/128"), "window": (None, 4), "sinks": (True,), "size": range(2, 9)}
    (box,) = Constraints.of(given_values).checked(AXES, "here").boxes
    assert box == {"dims": ("128", "192/128"), "window": (None, 4), "sinks": (True,), "size": range(2, 9)}


def test_none_is_the_word_of_an_axis_that_has_it():
    named = {"offset": Axis("an offset", ("none", "whole")), **AXES}
    (box,) = parse_where(["offset=none,whole", "window=none"]).checked(named, "here").boxes
    assert box == {"offset": ("none", "whole"), "window": (None,)}
    with pytest.raises(UsageError, match="dims is one of"):
        parse_where(["dims=none"]).checked(named, "here")


@pytest.mark.parametrize(("axis", "given_value", "form"), [("sinks", 1, True), ("scale", 1, 1.0)])
def test_a_number_that_equals_a_legal_value_becomes_that_value(axis, given_value, form):
    (box,) = Constraints.of({axis: (given_value,)}).checked(AXES, "here").boxes
    assert type(box[axis][0]) is type(form)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ({"sise": (1,)}, "here: unknown axis 'sise'; did you mean 'size'? known: dims, scale, sinks, size, window"),
        ({"size": (65,)}, "here: size is one of 1..64, got 65"),
        ({"size": (None,)}, "here: size is one of 1..64, got None"),
        ({"size": (True,)}, "here: size is one of 1..64, got True"),
        ({"size": ("8",)}, "here: size is one of 1..64, got '8'"),
        ({"window": (0,)}, "here: window is one of 1..2147483647 or none, got 0"),
        ({"dims": ("65",)}, "here: dims is one of {64, 128, 192/128}, got '65'"),
        ({"size": range(9, 2)}, "here: size is one of 1..64, got {}"),
        ({"size": range(8)}, "here: size is one of 1..64, got 0..7"),
        ({"dims": range(64, 66)}, "here: dims is one of {64, 128, 192/128}, got {64, 65}"),
    ],
)
def test_axes_and_values_that_there_are_not_are_named_with_those_that_there_are(box, expected):
    with pytest.raises(UsageError) as caught:
        Constraints.of(box).checked(AXES, "here")
    assert str(caught.value) == expected


@pytest.mark.parametrize("allowed", [range(60, 70), range(1, 10**30)])
def test_a_range_that_leaves_the_axis_is_cut_or_refused(allowed):
    try:
        (box,) = Constraints.of({"size": allowed}).checked(AXES, "here").boxes
    except UsageError:
        return
    assert box["size"][-1] <= 64


def test_a_summary_has_one_line_per_box():
    union = Constraints.of([{"a": range(1, 4097), "b": ("x", None)}, {"a": range(16, 1025, 16)}, {}])
    assert union.summary() == ["a 1..4096; b {x, none}", "a 16..1024 step 16"]
    assert describe(range(1, 4)) == "{1, 2, 3}"


def test_what_an_axis_cannot_have_is_left_out_and_a_box_of_nothing_else_as_well():
    axes = {
        "window": Axis("", range(1, 100)),
        "limit": Axis("", range(1, 100), optional=True),
        "kind": Axis("", ("a", "b")),
    }
    asked = Constraints.of(
        [{"window": (5, None), "limit": (5, None, 200)}, {"window": (None,)}, {"kind": ("b", "c"), "other": (1,)}]
    )
    assert asked.legal(axes).boxes == ({"window": (5,), "limit": (5, None)}, {"kind": ("b",), "other": (1,)})
    assert Constraints.of({"window": range(50, 500)}).legal(axes).boxes == ({"window": range(50, 100)},)
    assert not Constraints.of({"window": range(100, 500)}).legal(axes)
    assert Constraints().legal(axes) == Constraints()


SIZED = {
    "size": Axis("s", range(1, 65)),
    "rows": Axis("r", range(8, 65, 8)),
    "kind": Axis("k", ("plain", "gemma")),
    "window": Axis("w", range(1, 9), optional=True),
    "limit": Axis("l", (1.0, 2.0)),
    "epsilon": Axis("e", Numbers(1e-6, 1), usual=(1e-5,)),
    "dims": Axis("d", Joined((range(1, 65), range(1, 65)), short=True), usual=("8", "8/4")),
    "sizes": Axis("d", Joined((range(1, 65), range(2, 65, 2), range(1, 9)))),
}
SOME = {
    "size": 8, "rows": 16, "kind": "plain", "window": None, "limit": 1.0, "epsilon": 1e-4, "dims": "8/4",
    "sizes": "3/4/5",
}  # fmt: skip


def check_case(**changed):
    check_values({name: (value,) for name, value in {**SOME, **changed}.items()}, SIZED)


def test_a_case_with_values_that_its_axes_have_is_let_through():
    check_case()
    check_case(size=64, rows=64, kind="gemma", window=8, limit=2.0, epsilon=1.0, dims="64", sizes="64/2/8")
    check_values({"size": (), "kind": ("plain", "gemma")}, SIZED)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 0}, "size must lie in 1..64, got 0"),
        ({"size": 65}, "size must lie in 1..64, got 65"),
        ({"size": "8"}, "size must lie in 1..64, got 8"),
        ({"size": None}, "size must lie in 1..64, got None"),
        ({"rows": 12}, "rows must be a multiple of 8 and lie in 8..64, got 12"),
        ({"kind": "other"}, "kind is one of plain, gemma, got other"),
        ({"window": 9}, "window must be none or lie in 1..8, got 9"),
        ({"limit": 1.5}, "limit is one of 1.0, 2.0, got 1.5"),
        ({"epsilon": 0.0}, "epsilon must lie in 1e-06..1, got 0.0"),
        ({"epsilon": 1.5}, "epsilon must lie in 1e-06..1, got 1.5"),
        ({"epsilon": 1}, "epsilon must lie in 1e-06..1, got 1"),
        ({"dims": "0/4"}, "dims is one of 1..64 or 1..64/1..64, got 0/4"),
        ({"dims": "8/8"}, "dims is one of 1..64 or 1..64/1..64, got 8/8"),
        ({"dims": "08"}, "got 08"),
        ({"dims": "8/4/2"}, "got 8/4/2"),
        ({"dims": ""}, "dims is one of"),
        ({"dims": 8}, "dims is one of"),
        ({"sizes": "3/5/4"}, "sizes is one of 1..64/2..64 step 2/1..8, got 3/5/4"),
        ({"sizes": "3"}, "got 3"),
    ],
)
def test_a_case_with_another_value_is_refused(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_case(**changed)


def test_numbers_and_joined_sizes_are_taken_as_they_are_typed():
    where = parse_where(["epsilon=1", "dims=8,16/4", "sizes=1/2/3"]).checked(SIZED, "here")
    assert where.boxes == ({"epsilon": (1.0,), "dims": ("8", "16/4"), "sizes": ("1/2/3",)},)
    assert SIZED["epsilon"].options == "1e-06..1, usually {1e-05}"
    assert SIZED["dims"].options == "1..64 or 1..64/1..64, usually {8, 8/4}"
    with pytest.raises(UsageError, match=r"here: epsilon is one of 1e-06..1, usually \{1e-05\}, got 2.5"):
        parse_where(["epsilon=2.5"]).checked(SIZED, "here")
    with pytest.raises(UsageError, match="here: dims is one of"):
        parse_where(["dims=0/4"]).checked(SIZED, "here")
    with pytest.raises(UsageError, match="epsilon is one of"):
        parse_where(["epsilon=1..2"]).checked(SIZED, "here")


ANY_DIMS = Joined((range(1, 2049), range(1, 2049)), short=True)
WHOLE = Joined((range(16, 513, 16),))
STRIPS = Joined((range(32, 1025, 32),) * 2, short=True)


@pytest.mark.parametrize(
    ("first", "second", "inside", "outside"),
    [
        (ANY_DIMS, STRIPS, ("64", "64/128", "1024/32"), ("72", "64/72", "16")),
        (ANY_DIMS, WHOLE, ("16", "512"), ("64/128", "24", "528")),
        (STRIPS, WHOLE, ("32", "512"), ("48", "64/128", "544")),
        (ANY_DIMS, ("72", "64/128", "4096"), ("72", "64/128"), ("4096", "80")),
    ],
)
def test_joined_sizes_have_those_in_common_that_both_have(first, second, inside, outside):
    for common in (intersection(first, second), intersection(second, first)):
        assert all(text in common for text in inside)
        assert not any(text in common for text in outside)


def test_joined_sizes_and_numbers_may_have_nothing_in_common():
    assert not intersection(WHOLE, Joined((range(1, 16),)))
    assert intersection(Numbers(0, 2), Numbers(1, 3)) == Numbers(1, 2)
    assert not intersection(Numbers(0, 1), Numbers(2, 3))


def test_constraints_may_hold_joined_sizes():
    axes = {"dims": Axis("dims", ANY_DIMS)}
    given = Constraints.of({"dims": STRIPS})
    assert given.checked(axes, "mine").boxes == given.boxes
    narrowed = given.legal(axes).within(Constraints.of({"dims": ("64", "72")}))
    assert narrowed.boxes == ({"dims": ("64",)},)
    assert given.reason_against({"dims": ("72",)}) == f"dims 72 is not in {STRIPS}"


def test_the_least_of_a_range_is_not_searched_for():
    assert [least(range(3, 2**50)), least(range(9, 0, -2)), least((4, 2, 8)), least({1.5, 0.5})] == [3, 1, 2, 0.5]


_FREE = {name: Axis(name, (None, *range(-3, 9))) for name in "abc"}


@LAWS
@given(_CONSTRAINTS, _CONSTRAINTS, _POINTS)
def test_what_lies_inside_other_constraints_allows_nothing_else(one, other, point):
    assert one.allows(point) == (one.reason_against(point) is None)
    assert one.within(other).inside(one, _FREE)
    assert one.inside(one, _FREE)
    if one.inside(other, _FREE) and one.allows(point):
        assert other.allows(point)


def test_an_axis_that_nobody_narrows_has_all_its_values():
    free, some = Constraints(), Constraints.of({"size": range(1, 65)})
    assert some.inside(free, AXES)
    assert free.inside(some, AXES)
    assert not free.inside(Constraints.of({"size": range(1, 64)}), AXES)
    window = Constraints.of({"window": range(1, 2**31)})
    assert not free.inside(window, AXES)  # it may be none
    assert Constraints.of({"dims": ("64",)}).inside(Constraints.of({"dims": ("128", "64")}), AXES)
    joined = Joined((range(16, 65), range(16, 65)))
    sizes = {"dims": Axis("dims", Joined((range(1, 513), range(1, 513))))}
    assert Constraints.of({"dims": joined}).inside(Constraints.of({"dims": sizes["dims"].legal}), sizes)
    assert not free.inside(Constraints.of({"dims": joined}), sizes)
    assert Constraints.of({"scale": Numbers(0.25, 0.5)}).inside(Constraints.of({"scale": Numbers(0.0, 1.0)}), AXES)
