"""Sliding-window attention over a paged KV cache: its cases, data, and what must hold."""

from npudiff.component import Component
from properties.sliding_attention.case import (
    AXES,
    SlidingAttentionCase,
    check_case,
    describe,
    features,
    values,
)
from properties.sliding_attention.coordinates import coordinates
from properties.sliding_attention.inputs import build_inputs
from properties.sliding_attention.relations import RELATIONS
from properties.sliding_attention.strategy import cases
from reference.sliding_attention import sliding_attention

component = Component(
    name="sliding_attention",
    summary="prefill, chunked prefill and decode attention over a paged KV cache, with a window or without",
    case_type=SlidingAttentionCase,
    outputs=("output", "lse"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=sliding_attention,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    watched="query length 1",
    relations=RELATIONS,
    profiles={
        "step-3.5-flash": {
            "head_dims": ("128",),
            "kv_heads": (8,),
            "group": (8, 12),
            "window": (512, None),
            "page_size": (128,),
        },
        "gpt-oss": {
            "head_dims": ("64",),
            "kv_heads": (8,),
            "group": (8,),
            "window": (128, None),
            "sinks": (True,),
            "page_size": (128,),
        },
        "mimo-v2-flash": {
            "head_dims": ("192/128",),
            "kv_heads": (4, 8),
            "group": (8, 16),
            "window": (128, None),
            "page_size": (128,),
        },
        "qwen3-30b-a3b": {
            "head_dims": ("128",),
            "kv_heads": (4,),
            "group": (8,),
            "window": (None,),
            "page_size": (128,),
        },
    },
)
