"""A decoder layer, prefill then decode: its cases, data, and what must hold."""

from __future__ import annotations

from npudiff.component import Component
from properties.decoder_layer.case import (
    AXES,
    DecoderLayerCase,
    LayerRequest,
    check_case,
    describe,
    features,
    values,
)
from properties.decoder_layer.inputs import build_inputs, coordinates
from properties.decoder_layer.relations import RELATIONS
from properties.decoder_layer.strategy import cases
from reference.decoder_layer import decoder_layer

__all__ = ["DecoderLayerCase", "LayerRequest", "component"]

component = Component(
    name="decoder_layer",
    summary="one layer of Step-3.5 or DeepSeek: norms, attention over a paged cache, experts; whatever the flags are",
    case_type=DecoderLayerCase,
    outputs=("keys", "values", "residual", "hidden"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=decoder_layer,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    watched="decode beyond the window",
    relations=RELATIONS,
    share=0.5,
)
