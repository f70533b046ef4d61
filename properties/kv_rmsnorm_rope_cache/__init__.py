"""MLA's write into the cache, normalised and rotated on the way: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties.kv_rmsnorm_rope_cache.case import (
    AXES,
    KvRmsnormRopeCacheCase,
    check_case,
    describe,
    features,
    values,
)
from npudiff.properties.kv_rmsnorm_rope_cache.inputs import build_inputs, coordinates
from npudiff.properties.kv_rmsnorm_rope_cache.relations import RELATIONS
from npudiff.properties.kv_rmsnorm_rope_cache.strategy import cases
from npudiff.reference.kv_rmsnorm_rope_cache import kv_rmsnorm_rope_cache


def _sizes(model: Model) -> Box | None:
    if not model.latent:
        return None
    return {"dims": (model.head_dim,), "dtype": ("bfloat16",), "epsilon": (1e-6,), "page_size": (PAGE_SIZE,)}


component = Component(
    name="kv_rmsnorm_rope_cache",
    summary="MLA's latent normalised, its rope key rotated, and both written into paged caches, ND or NZ, or int8",
    case_type=KvRmsnormRopeCacheCase,
    outputs=("rope", "latent", "rope_cache", "latent_cache"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=kv_rmsnorm_rope_cache,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="NZ",
    relations=RELATIONS,
    example_ratio=0.5,
    profiles=of_models(_sizes),
    baselines=BASELINES["kv_rmsnorm_rope_cache"],
)
