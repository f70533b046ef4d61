"""Grouped matrix products: their cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.properties.grouped_matmul.case import AXES, GroupedMatmulCase, check_case, describe, features, values
from npudiff.properties.grouped_matmul.inputs import build_inputs, coordinates
from npudiff.properties.grouped_matmul.relations import RELATIONS
from npudiff.properties.grouped_matmul.strategy import cases
from npudiff.reference.grouped_matmul import grouped_matmul


def _sizes(model: Model) -> Box:
    return {
        "rows_of_all": FEW,
        "inner": (model.hidden, model.width),
        "columns": (2 * model.width, model.hidden),
        "experts": range(1, 5),
        "groups": (1,),
        "dtype": ("bfloat16",),
        "split": ("rows",),
    }


component = Component(
    name="grouped_matmul",
    summary="rows in groups, each times the matrix of its expert: floats, W8A8, W4A8 and weights alone in integers",
    case_type=GroupedMatmulCase,
    outputs=("output",),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=grouped_matmul,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="empty groups",
    relations=RELATIONS,
    example_ratio=0.7,
    profiles=of_models(_sizes),
    baselines=BASELINES["grouped_matmul"],
)  # fmt: skip
