from __future__ import annotations

import pytest

from broken import verdict
from npudiff.device.ascend.int4_pack import shifted_words
from npudiff.model.job import Verdict
from npudiff.properties.int4_pack import (
    LAYOUTS,
    RECIPES,
    SOURCES,
    Int4PackCase,
    build_inputs,
    component,
    coordinates,
    integers,
)
from npudiff.reference.int4_pack import ENCODINGS, int4_pack

check_case = Int4PackCase.check

BROKEN = {
    "unpacking_gives_them_back": lambda inputs, words: words ^ 1 << 28,
    "groups_do_not_mix": lambda inputs, words: words.cumsum(-1).int(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_relation_sees_a_device_that_breaks_it(name):
    def device(inputs, target):
        return BROKEN[name](inputs, shifted_words(inputs, target))

    assert verdict(component, name, device) is Verdict.WRONG
    assert verdict(component, name, shifted_words.function) is Verdict.HOLDS


def test_coordinates_name_the_first_column_of_a_word():
    inputs = build_inputs(Int4PackCase(3, 24, 2))
    places = coordinates(inputs, "words")
    assert int4_pack(inputs)["words"].value.shape == (2, 3, 3)
    assert {name: int(place[1, 2, 1]) for name, place in places.items()} == {"matrix": 1, "row": 2, "first column": 8}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("matrices", [1, 3])
def test_a_case_holds_what_its_source_says(source, recipe, layout, matrices):
    case = Int4PackCase(5, 16, matrices, source, recipe, layout)
    inputs, given = build_inputs(case), integers(case)
    given = given[0] if matrices == 1 else given
    assert inputs.values.is_contiguous() == (layout == "row major" or (layout == "sliced" and matrices == 1))
    meant = inputs.values - 8 if inputs.encoding == ENCODINGS[1] else inputs.values
    assert (meant & 15).tolist() == (given & 15).tolist()
    assert bool(((meant < -8) | (meant > 7)).any()) == (source == "high bits")
    assert bool(((given >= -8) & (given <= 7)).all())
    assert bool((given < 0).any()) == (recipe != "positive") or recipe == "one column"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": 0}, r"rows must lie in 1..131072, got 0"),
        ({"matrices": 2000}, r"matrices must lie in 1..1024, got 2000"),
        ({"columns": 12}, "a multiple of 8 and lie in 8..65536, got 12"),
        ({"rows": 65536, "columns": 65536}, "more than 67108864 integers"),
        ({"source": "x"}, "source is one of integers, high bits, offset binary, got x"),
        ({"recipe": "x"}, "recipe is one of"),
        ({"layout": "x"}, "layout is one of"),
        ({"seed": -1}, "seed must lie in 0"),
    ],
)
def test_cases_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        check_case(Int4PackCase(**{"rows": 2, **changed}))
