"""Writing into a paged cache: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties.paged_cache.case import AXES, PagedCacheCase, check_case, describe, features, values
from npudiff.properties.paged_cache.inputs import build_inputs, coordinates
from npudiff.properties.paged_cache.relations import RELATIONS
from npudiff.properties.paged_cache.strategy import cases
from npudiff.reference.paged_cache import paged_cache


def _sizes(model: Model) -> Box:
    return {
        "head_dims": (model.head_dim,),
        "kv_heads": model.kv_heads,
        "page_size": (PAGE_SIZE,),
        "dtype": ("bfloat16",),
    }


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
    highlighted_region="NZ",
    relations=RELATIONS,
    example_ratio=0.7,
    profiles=of_models(_sizes),
    baselines=BASELINES["paged_cache"],
)
