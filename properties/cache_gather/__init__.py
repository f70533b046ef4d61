"""Reading tokens out of a paged cache: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties.cache_gather.case import AXES, CacheGatherCase, check_case, describe, features, values
from npudiff.properties.cache_gather.inputs import build_inputs, coordinates
from npudiff.properties.cache_gather.relations import RELATIONS
from npudiff.properties.cache_gather.strategy import cases
from npudiff.reference.cache_gather import cache_gather


def _sizes(model: Model) -> Box:
    return {
        "head_dims": (model.head_dim,),
        "kv_heads": model.kv_heads,
        "page_size": (PAGE_SIZE,),
        "dtype": ("bfloat16",),
    }


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
    highlighted_region="NZ",
    relations=RELATIONS,
    profiles=of_models(_sizes),
    baselines=BASELINES["cache_gather"],
)
