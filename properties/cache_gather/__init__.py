"""Reading tokens out of a paged cache: its cases, data, and what must hold."""

from npudiff.component import Component
from properties.cache_gather.case import AXES, CacheGatherCase, check_case, describe, features, values
from properties.cache_gather.inputs import build_inputs, coordinates
from properties.cache_gather.relations import RELATIONS
from properties.cache_gather.strategy import cases
from reference.cache_gather import cache_gather

component = Component(
    name="cache_gather",
    summary="keys and values of a batch, read out of a paged cache into one piece, byte by byte",
    case_type=CacheGatherCase,
    outputs=("key", "value"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=cache_gather,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    watched="NZ",
    relations=RELATIONS,
    profiles={
        "step-3.5-flash": {"head_dims": ("128",), "kv_heads": (8,), "page_size": (128,), "dtype": ("bfloat16",)},
        "deepseek-v3": {"head_dims": ("512/64",), "kv_heads": (1,), "page_size": (128,), "dtype": ("bfloat16",)},
    },
)
