"""Batches that are padded for a graph, among experts: their cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_models
from npudiff.properties.padded_tokens.case import AXES, PaddedTokensCase, check_case, describe, features, values
from npudiff.properties.padded_tokens.inputs import build_inputs, coordinates
from npudiff.properties.padded_tokens.relations import RELATIONS
from npudiff.properties.padded_tokens.strategy import cases
from npudiff.reference.padded_tokens import padded_tokens


def _sizes(model: Model) -> Box:
    return {"experts": (model.experts,), "chosen": (model.top_k,), "width": (model.hidden,), "dtype": ("bfloat16",)}


component = Component(
    name="padded_tokens",
    summary="rows that pad a batch for a graph: no weight, still counted, and no way into the result of real rows",
    case_type=PaddedTokensCase,
    outputs=("weights", "experts", "counts", "output"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=padded_tokens,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="real rows are no prefix",
    relations=RELATIONS,
    profiles=of_models(_sizes),
    baselines=BASELINES["padded_tokens"],
)
