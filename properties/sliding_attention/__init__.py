"""Sliding-window attention over a paged KV cache: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties.sliding_attention.case import SlidingAttentionCase
from npudiff.properties.sliding_attention.coordinates import coordinates
from npudiff.properties.sliding_attention.inputs import build_inputs
from npudiff.properties.sliding_attention.relations import RELATIONS
from npudiff.properties.sliding_attention.strategy import cases
from npudiff.reference.sliding_attention import sliding_attention


def _sizes(model: Model) -> Box | None:
    if model.latent:
        return None
    return {
        "head_dims": (model.head_dim,),
        "kv_heads": model.kv_heads,
        "group": model.group,
        "window": model.windows,
        "sinks": (model.sinks,),
        "page_size": (PAGE_SIZE,),
    }


component = Component(
    name="sliding_attention",
    summary="prefill, chunked prefill and decode attention over a paged KV cache, with a window or without",
    case_type=SlidingAttentionCase,
    outputs=("output", "lse"),
    strategy=cases,
    inputs=build_inputs,
    reference=sliding_attention,
    coordinates=coordinates,
    highlighted_region="query length 1",
    relations=RELATIONS,
    example_ratio=0.85,
    profiles=of_models(_sizes),
    baselines=BASELINES["sliding_attention"],
)
