"""Attention over a paged cache of int8 keys and values: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.model.profiles import Boxes
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.illegal import illegal_batch
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties.quantised_kv_attention.case import HEAD_DIMS, QuantisedKvAttentionCase
from npudiff.properties.quantised_kv_attention.coordinates import coordinates
from npudiff.properties.quantised_kv_attention.inputs import build_inputs
from npudiff.properties.quantised_kv_attention.relations import RELATIONS
from npudiff.reference.quantised_kv_attention import quantised_kv_attention


def _sizes(model: Model) -> Boxes | None:
    """A box for each kind of layer whose keys are as wide as its values."""
    boxes: list[Box] = [
        {
            "head_dim": (int(layer.head_dim),),
            "kv_heads": (layer.kv_heads,),
            "group": (layer.group,),
            "page_size": (PAGE_SIZE,),
        }
        for layer in model.layers
        if layer.head_dim.isdecimal() and int(layer.head_dim) in HEAD_DIMS
    ]
    return boxes if boxes and not model.latent else None


component = Component(
    name="quantised_kv_attention",
    summary="decode and draft attention over a paged cache of int8 keys and values, with their scales and offsets",
    case_type=QuantisedKvAttentionCase,
    outputs=("output", "lse"),
    inputs=build_inputs,
    reference=quantised_kv_attention,
    illegal=illegal_batch("pool", lambda inputs: inputs.pool.page_size),
    coordinates=coordinates,
    highlighted_region="query length 1",
    relations=RELATIONS,
    profiles=of_models(_sizes),
    example_ratio=0.6,
    baselines=BASELINES["quantised_kv_attention"],
)
