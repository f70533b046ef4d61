"""The activation between the two products of quantised experts: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.properties.swiglu_quant.case import AXES, SwigluQuantCase, check_case, describe, features, values
from npudiff.properties.swiglu_quant.inputs import build_inputs, coordinates
from npudiff.properties.swiglu_quant.relations import RELATIONS
from npudiff.properties.swiglu_quant.strategy import cases
from npudiff.reference.swiglu_quant import swiglu_quant


def _sizes(model: Model) -> Box:
    return {
        "tokens": FEW,
        "width": (model.width,),
        "activation": ("silu", "swiglustep") if model.limit and model.activation == "silu" else (model.activation,),
        "limit": (model.limit or 7.0,),
        "gates": ("even",) if model.activation == "swiglu_oai" else ("left",),
        "dtype": ("bfloat16",),
    }


component = Component(
    name="swiglu_quant",
    summary="the gated activation of quantised experts: from int32 sums to int8 rows with a scale for each",
    case_type=SwigluQuantCase,
    outputs=("quantised", "scale"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=swiglu_quant,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="sums",
    relations=RELATIONS,
    example_ratio=0.7,
    profiles=of_models(_sizes),
    baselines=BASELINES["swiglu_quant"],
)
