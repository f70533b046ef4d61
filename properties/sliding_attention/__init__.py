"""Sliding-window attention over a paged KV cache: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.profiles import Boxes
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.illegal import illegal_batch
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties.sliding_attention.case import SlidingAttentionCase
from npudiff.properties.sliding_attention.coordinates import coordinates
from npudiff.properties.sliding_attention.inputs import build_inputs
from npudiff.properties.sliding_attention.relations import RELATIONS
from npudiff.properties.sliding_attention.strategy import cases
from npudiff.reference.sliding_attention import SlidingAttentionInputs, sliding_attention


def _sizes(model: Model) -> Boxes | None:
    """A box for each kind of layer: its heads, window and sinks belong together."""
    if model.latent or not model.layers:
        return None
    return [
        {
            "head_dims": (layer.head_dim,),
            "kv_heads": (layer.kv_heads,),
            "group": (layer.group,),
            "window": layer.windows,
            "sinks": (layer.sinks,),
            "page_size": (PAGE_SIZE,),
        }
        for layer in model.layers
    ]


def _pool(inputs: SlidingAttentionInputs) -> str:
    return "full" if inputs.kv is inputs.full else "sliding"


component = Component(
    name="sliding_attention",
    summary="prefill, chunked prefill and decode attention over a paged KV cache, with a window or without",
    case_type=SlidingAttentionCase,
    outputs=("output", "lse"),
    strategy=cases,
    inputs=build_inputs,
    reference=sliding_attention,
    illegal=illegal_batch(
        lambda inputs: "full" if inputs.kv is inputs.full else "sliding", lambda inputs: inputs.kv.page_size
    ),
    coordinates=coordinates,
    highlighted_region="query length 1",
    relations=RELATIONS,
    example_ratio=0.6,
    profiles=of_models(_sizes),
    baselines=BASELINES["sliding_attention"],
)
