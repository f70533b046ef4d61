"""Writing into a paged cache: its cases, data, and what must hold."""

from npudiff.component import Component
from properties.paged_cache.case import AXES, PagedCacheCase, check_case, describe, features, values
from properties.paged_cache.inputs import build_inputs, coordinates
from properties.paged_cache.relations import RELATIONS
from properties.paged_cache.strategy import cases
from reference.paged_cache import paged_cache

component = Component(
    name="paged_cache",
    summary="keys and values of new tokens, written at slots of a paged cache, byte by byte",
    case_type=PagedCacheCase,
    outputs=("key_cache", "value_cache"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=paged_cache,
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
