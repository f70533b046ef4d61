"""Products of integers: cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.properties._shared.weight_matrix import coordinates
from npudiff.properties.quant_matmul.case import AXES, QuantMatmulCase, check_case, describe, features, values
from npudiff.properties.quant_matmul.inputs import build_inputs
from npudiff.properties.quant_matmul.relations import RELATIONS
from npudiff.properties.quant_matmul.strategy import cases
from npudiff.reference.quant_matmul import quant_matmul


def _sizes(model: Model) -> Box:
    inner, columns = (model.hidden, model.width), (model.width, model.hidden)
    return {"tokens": FEW, "inner": inner, "columns": columns, "bits": (8,), "output": ("bfloat16",)}


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
    highlighted_region="beyond float32",
    relations=RELATIONS,
    profiles=of_models(_sizes),
    baselines=BASELINES["quant_matmul"],
)
