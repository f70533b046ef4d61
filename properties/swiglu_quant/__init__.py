"""The activation between the two products of quantised experts: its cases, data, and what must hold."""

from npudiff.component import Component
from properties.swiglu_quant.case import AXES, SwigluQuantCase, check_case, describe, features, values
from properties.swiglu_quant.inputs import build_inputs, coordinates
from properties.swiglu_quant.relations import RELATIONS
from properties.swiglu_quant.strategy import cases
from reference.swiglu_quant import swiglu_quant

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
    watched="sums",
    relations=RELATIONS,
    profiles={
        "deepseek-v3": {"width": (2048,), "activation": ("silu",), "gates": ("left",), "dtype": ("bfloat16",)},
        "step-3.5-flash": {
            "width": (1280,),
            "activation": ("silu", "swiglustep"),
            "limit": (7.0,),
            "gates": ("left",),
            "dtype": ("bfloat16",),
        },
    },
)
