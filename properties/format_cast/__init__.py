"""Casting a tensor to FRACTAL_NZ and back: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties.format_cast.case import AXES, FormatCastCase, check_case, describe, features, values
from npudiff.properties.format_cast.inputs import build_inputs, coordinates
from npudiff.properties.format_cast.relations import RELATIONS
from npudiff.properties.format_cast.strategy import cases
from npudiff.reference.format_cast import format_cast

component = Component(
    name="format_cast",
    summary="a tensor cast to FRACTAL_NZ and back: what lies in memory, and what is read from it",
    case_type=FormatCastCase,
    outputs=("storage", "format", "values", "restored"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=format_cast,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="padded",
    relations=RELATIONS,
    profiles={
        "deepseek-v3": {"rank": (2,), "rows": (1536,), "columns": (1536,), "dtype": ("int8",), "view": ("whole",)},
    },
    baselines=BASELINES["format_cast"],
)
