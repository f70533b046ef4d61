from __future__ import annotations

import pytest
import torch

from broken import verdict
from npudiff.device.ascend.weight_quant_matmul import rounded_once
from npudiff.model.job import Verdict
from npudiff.properties.weight_quant_matmul import RECIPES, WeightQuantMatmulCase, build_inputs, component

check_case = WeightQuantMatmulCase.check

BROKEN = {
    "tokens_do_not_mix": lambda i, o: o + torch.arange(len(o)).unsqueeze(1) * 4,
    "columns_do_not_mix": lambda i, o: o + torch.arange(o.shape[1]) * 4,
    "equal_groups_are_none": lambda i, o: o * (1.5 if i.group_size else 1.0),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_relation_sees_a_device_that_breaks_it(name):
    def device(inputs, target):
        result = rounded_once(inputs, target)
        return BROKEN[name](inputs, result).to(result.dtype)

    assert verdict(component, name, device) is Verdict.WRONG
    assert verdict(component, name, rounded_once.function) is Verdict.HOLDS


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("recipe", RECIPES)
def test_states_and_weight_are_what_their_recipe_says(recipe, bits):
    inputs = build_inputs(WeightQuantMatmulCase(6, 200, 24, bits=bits, recipe=recipe))
    low, high = {8: (-128, 127), 4: (-8, 7)}[bits]
    holds = {
        "gaussian": int(inputs.weight.min()) < 0 < int(inputs.weight.max()),
        "extremes": {low, high} == set(inputs.weight.unique().tolist()),
        "positive": int(inputs.weight.min()) >= 0 and bool((inputs.x >= 0).all()),
        "one row": (inputs.x != 0).sum(dim=1).tolist() == [1] * 6,
        "zero rows": not bool(inputs.x[::2].any()) and bool(inputs.x[1::2].any()),
        "large": float(inputs.x.abs().max()) > 65504,
    }
    assert holds[recipe]


def test_one_row_is_near_the_end_of_a_group_more_often_than_not():
    case = WeightQuantMatmulCase(64, 200, 8, scale_per="groups", group_size=64, recipe="one row")
    seen = build_inputs(case).x.argmax(dim=1)
    ends = {0, 63, 64, 127, 128, 191, 192, 199}
    assert sum(row in ends for row in seen.tolist()) > 40
    assert len(set(seen.tolist()) & ends) > 5


@pytest.mark.parametrize("offset", ["whole", "fraction"])
def test_offsets_are_what_their_name_says(offset):
    given = build_inputs(WeightQuantMatmulCase(1, offset=offset)).offset
    assert bool((given == given.round()).all()) == (offset == "whole")
    assert bool((given != 0).any())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": 0}, r"tokens must lie in 1..131072, got 0"),
        ({"columns": 65536}, r"columns must lie in 1..65535, got 65536"),
        ({"inner": 65535, "columns": 65535}, "more than 67108864 elements"),
        ({"dtype": "float32"}, "dtype is one of bfloat16, float16, got float32"),
        ({"scale_per": "rows"}, "scale_per is one of columns, tensor, groups, got rows"),
        ({"rows": "x"}, "rows is one of"),
        ({"group_size": 32}, "these do not go together"),
        ({"scale_per": "groups"}, "these do not go together"),
        ({"scale_per": "groups", "group_size": 64}, "groups of 64 in 64 rows"),
        ({"bits": 4, "columns": 7}, "these do not go together"),
        ({"bits": 4, "inner": 7, "layout": "transposed"}, "these do not go together"),
        ({"seed": -1}, "seed must lie in 0"),
    ],
)
def test_cases_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        check_case(WeightQuantMatmulCase(**{"tokens": 2, **changed}))
