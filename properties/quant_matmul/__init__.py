"""Products of integers: cases, data, and what must hold."""

from npudiff.component import Component
from properties.quant_matmul.case import AXES, QuantMatmulCase, check_case, describe, features, values
from properties.quant_matmul.inputs import build_inputs, coordinates
from properties.quant_matmul.relations import RELATIONS
from properties.quant_matmul.strategy import cases
from reference.quant_matmul import quant_matmul

component = Component(
    name="quant_matmul",
    summary="products of int8 or int4, summed exactly, scaled to floats or to int8",
    case_type=QuantMatmulCase,
    outputs=("output",),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=quant_matmul,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    watched="beyond float32",
    relations=RELATIONS,
    profiles={
        "deepseek-v3": {"inner": (7168, 2048), "columns": (576, 1536), "bits": (8,), "output": ("bfloat16",)},
        "step-3.5-flash": {"inner": (4096, 1280), "columns": (1280, 4096), "bits": (8,), "output": ("bfloat16",)},
    },
)
