"""Grouped matrix products: their cases, data, and what must hold."""

from npudiff.component import Component
from properties.grouped_matmul.case import AXES, GroupedMatmulCase, check_case, describe, features, values
from properties.grouped_matmul.inputs import build_inputs, coordinates
from properties.grouped_matmul.relations import RELATIONS
from properties.grouped_matmul.strategy import cases
from reference.grouped_matmul import grouped_matmul

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
    watched="empty groups",
    relations=RELATIONS,
    profiles={
        "step-3.5-flash": {"inner": (4096, 1280), "columns": (2560, 4096), "experts": (4,), "dtype": ("bfloat16",)},
        "deepseek-v3": {"inner": (7168, 2048), "columns": (4096, 7168), "experts": (4,), "dtype": ("bfloat16",)},
    },
)  # fmt: skip
