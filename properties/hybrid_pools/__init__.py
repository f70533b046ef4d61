"""Two pools of pages and the requests in them: cases, a state machine that draws steps, and what is compared."""

from npudiff.model.component import Component, History
from npudiff.model.profiles import Boxes
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties.hybrid_pools.case import HybridPoolsCase
from npudiff.properties.hybrid_pools.coordinates import coordinates
from npudiff.properties.hybrid_pools.inputs import build_inputs
from npudiff.properties.hybrid_pools.machine import HybridPoolsMachine
from npudiff.properties.hybrid_pools.session import PoolsSession
from npudiff.properties.hybrid_pools.simpler import SIMPLER
from npudiff.properties.hybrid_pools.strategy import cases
from npudiff.reference.hybrid_pools import hybrid_pools
from npudiff.reference.hybrid_pools.contract import HybridPools, HybridPoolsInputs


def _sizes(model: Model) -> Boxes | None:
    return [
        {
            "head_dims": (layer.head_dim,),
            "kv_heads": (1,),  # one card's share
            "group": (layer.group,),
            "window": layer.windows,
            "page_size": (PAGE_SIZE,),
        }
        for layer in model.windowed
    ] or None


component = Component(
    name="hybrid_pools",
    summary="full and sliding pool of a hybrid model: allocation, eviction, sharing, preemption, and attention on both",
    case_type=HybridPoolsCase,
    outputs=("full", "sliding"),
    strategy=cases,
    inputs=build_inputs,
    reference=hybrid_pools,
    coordinates=coordinates,
    highlighted_region="shared",
    profiles=of_models(_sizes),
    example_ratio=0.7,
    history=History(
        machine=HybridPoolsMachine,
        session=PoolsSession,
        simpler=SIMPLER,
        runs=0.35,
        steps=20,
        given=HybridPoolsInputs,
        opens=HybridPools,
    ),
)
