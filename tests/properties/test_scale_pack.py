from __future__ import annotations

import pytest
import torch

from broken import verdict
from npudiff.device.ascend.scale_pack import FIXPIPE, composed_fixpipe, view_widened
from npudiff.model.job import Verdict
from npudiff.properties.scale_pack import RECIPES, ScalePackCase, build_inputs, component, coordinates

check_case = ScalePackCase.check

VARIANTS = [
    ("scales_can_be_read", view_widened, None, lambda i, o: o + (1 << 20)),
    ("scales_can_be_read", composed_fixpipe, FIXPIPE, lambda i, o: o + (1 << 14)),
    ("scales_can_be_read", composed_fixpipe, FIXPIPE, lambda i, o: o - (1 << 14)),
    ("offset_leaves_the_scale", composed_fixpipe, FIXPIPE, lambda i, o: o ^ (i.offset is None) << 46),
]


@pytest.mark.parametrize(("name", "right", "supports", "change"), VARIANTS, ids=range(len(VARIANTS)))
def test_a_relation_sees_a_device_that_breaks_it(name, right, supports, change):
    def device(inputs, target):
        return change(inputs, right(inputs, target))

    supports = supports or {"form": ("bits",)}
    assert verdict(component, name, device, supports) is Verdict.WRONG
    assert verdict(component, name, right.function, supports) is Verdict.HOLDS


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("mode", [0, 1])
def test_scales_are_what_their_recipe_says(recipe, mode):
    scale = build_inputs(ScalePackCase(300, form="fixpipe", round_mode=mode, recipe=recipe)).scale
    cut = scale.view(torch.int32) & 2**13 - 1
    holds = {
        "usual": bool((scale >= 2.0**-14).all()),
        "19 bits": not bool(cut.any()),
        "near half": bool(((cut - 2**12).abs() <= 2).all()) and bool((cut == 2**12).any()) == (mode == 0),
        "subnormal": bool(((scale != 0) & (scale < 2.0**-126)).all()),
        "large": float(scale.max()) > 2.0**120,
        "negative": bool((scale < 0).any() and (scale > 0).any()),
        "all ones": bool(((scale.view(torch.int32) >> 13) % 1024 == 1023).all()),
        "zero": bool((scale[::2] == 0).all() and (scale[1::2] > 0).all()),
    }
    assert holds[recipe]
    assert bool(scale.isfinite().all())
    assert mode == 0 or not bool((cut == 2**12).any())


def test_coordinates_say_whose_scale_it_is():
    case = ScalePackCase(4, 3, 2)
    places = coordinates(build_inputs(case), "packed")
    assert {name: int(place[1, 2, 3]) for name, place in places.items()} == {"expert": 1, "group": 2, "column": 3}
    many = ScalePackCase(4, form="fixpipe", offset="many for one scale")
    assert coordinates(build_inputs(many), "packed")["column"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"columns": 0}, r"columns must lie in 1..131072, got 0"),
        ({"experts": -1}, r"experts must lie in 0..1024, got -1"),
        ({"experts": 1024, "columns": 65536}, "more than 16777216 scales"),
        ({"form": "x"}, "form is one of bits, fixpipe, got x"),
        ({"round_mode": 3}, "round_mode is one of 0, 1, got 3"),
        ({"offset": "each"}, "do not go together: offset each is not in {none}"),
        ({"groups": 2}, "do not go together: groups 2 is not in {1}"),
        ({"form": "fixpipe", "offset": "many for one scale", "experts": 1}, "do not go together"),
        ({"seed": -1}, "seed must lie in 0"),
    ],
)
def test_cases_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        check_case(ScalePackCase(**{"columns": 2, **changed}))
