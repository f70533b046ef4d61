"""Batches that are padded for a graph, among experts: their cases, data, and what must hold."""

from npudiff.component import Component
from properties.padded_tokens.case import AXES, PaddedTokensCase, check_case, describe, features, values
from properties.padded_tokens.inputs import build_inputs, coordinates
from properties.padded_tokens.relations import RELATIONS
from properties.padded_tokens.strategy import cases
from reference.padded_tokens import padded_tokens

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
    watched="real rows are no prefix",
    relations=RELATIONS,
    profiles={
        "deepseek-v3": {"experts": (256,), "chosen": (8,), "width": (7168,), "dtype": ("bfloat16",)},
        "step-3.5-flash": {"experts": (288,), "chosen": (8,), "width": (4096,), "dtype": ("bfloat16",)},
    },
)
