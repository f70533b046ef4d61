"""A decoder layer, prefill then decode: its cases, data, and what must hold."""

from __future__ import annotations

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties.decoder_layer.case import DecoderLayerCase, LayerRequest
from npudiff.properties.decoder_layer.inputs import build_inputs, coordinates
from npudiff.properties.decoder_layer.relations import RELATIONS
from npudiff.properties.decoder_layer.strategy import cases
from npudiff.reference.decoder_layer import decoder_layer

__all__ = ["DecoderLayerCase", "LayerRequest", "component"]


def _sizes(model: Model) -> Box | None:
    """What a model has that costs nothing: a layer of its widths would take minutes in float64."""
    if model.latent:
        return {"kind": ("deepseek",), "page_size": (PAGE_SIZE,)}
    if model.norm == "gemma" and model.limit is not None:
        return {"kind": ("step-3.5",), "head_dim": (128,), "page_size": (PAGE_SIZE,), "limit": model.limits}
    return None


component = Component(
    name="decoder_layer",
    summary="one layer of Step-3.5 or DeepSeek: norms, attention over a paged cache, experts; whatever the flags are",
    case_type=DecoderLayerCase,
    outputs=("keys", "values", "residual", "hidden"),
    strategy=cases,
    inputs=build_inputs,
    reference=decoder_layer,
    coordinates=coordinates,
    highlighted_region="decode beyond the window",
    relations=RELATIONS,
    profiles=of_models(_sizes),
    example_ratio=0.4,
    baselines=BASELINES["decoder_layer"],
)
