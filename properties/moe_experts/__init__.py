"""Experts of a mixture, from states to the sum of what they say: their cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.properties.moe_experts.case import AXES, MoeExpertsCase, check_case, describe, features, values
from npudiff.properties.moe_experts.inputs import build_inputs, coordinates
from npudiff.properties.moe_experts.relations import RELATIONS
from npudiff.properties.moe_experts.strategy import cases
from npudiff.reference.moe_experts import moe_experts


def _sizes(model: Model) -> Box:
    return {
        "tokens": FEW,
        "hidden": (model.hidden,),
        "width": (model.width,),
        "experts": (model.experts,),
        "top_k": (model.top_k,),
        "groups": (1,),
        "activation": (model.activation,),
        "limit": model.limits,
        "layout": ("interleaved" if model.activation == "swiglu_oai" else "halves",),
        "shared_width": (model.shared_width,),
        "here": ("chosen",),
        "dtype": ("bfloat16",),
    }


component = Component(
    name="moe_experts",
    summary="experts of a mixture in bfloat16, W8A8 and W4A8, from the states of tokens to the weighted sum",
    case_type=MoeExpertsCase,
    outputs=("output",),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=moe_experts,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="w4a8",
    relations=RELATIONS,
    example_ratio=0.4,
    profiles=of_models(_sizes),
    baselines=BASELINES["moe_experts"],
)
