"""What stands before MLA attention, from hidden states to queries and caches: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties.mla_preprocess.case import AXES, MlaPreprocessCase, check_case, describe, features, values
from npudiff.properties.mla_preprocess.inputs import build_inputs, coordinates
from npudiff.properties.mla_preprocess.relations import RELATIONS
from npudiff.properties.mla_preprocess.strategy import cases
from npudiff.reference.mla_preprocess import mla_preprocess


def _sizes(model: Model) -> Box | None:
    if not model.latent:
        return None
    return {
        "hidden_size": (model.hidden,),
        "query_rank": (1536,),
        "dims": ("128/64/512",),
        "page_size": (PAGE_SIZE,),
        "epsilon": (1e-6,),
    }


component = Component(
    name="mla_preprocess",
    summary="from hidden states to absorbed queries, rotated queries, and the latent and rope key in the caches",
    case_type=MlaPreprocessCase,
    outputs=("query_nope", "query_rope", "rope_cache", "latent_cache"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=mla_preprocess,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="NZ",
    relations=RELATIONS,
    example_ratio=0.04,
    profiles=of_models(_sizes),
    baselines=BASELINES["mla_preprocess"],
)
