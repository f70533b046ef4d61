"""Latent attention over a paged cache, absorbed and expanded: its cases, data, and what must hold."""

from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.illegal import illegal_batch
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties.latent_attention.case import LatentAttentionCase
from npudiff.properties.latent_attention.coordinates import coordinates
from npudiff.properties.latent_attention.inputs import build_inputs
from npudiff.properties.latent_attention.relations import RELATIONS
from npudiff.reference.latent_attention import latent_attention


def _sizes(model: Model) -> Box | None:
    if not model.latent:
        return None
    (layer,) = model.layers
    rank, rope = map(int, layer.head_dim.split("/"))
    return {"heads": (layer.group,), "rank": (rank,), "rope_dim": (rope,), "page_size": (PAGE_SIZE,)}


component = Component(
    name="latent_attention",
    summary="multi-head latent attention over a paged cache of latents, absorbed into the query or expanded to heads",
    case_type=LatentAttentionCase,
    outputs=("output", "lse"),
    inputs=build_inputs,
    reference=latent_attention,
    illegal=illegal_batch("pool", lambda inputs: inputs.pool.page_size),
    coordinates=coordinates,
    highlighted_region="query length 1",
    relations=RELATIONS,
    example_ratio=0.6,
    profiles=of_models(_sizes),
    baselines=BASELINES["latent_attention"],
)
