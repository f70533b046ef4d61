"""Two pools of pages and the requests in them: cases, a state machine that draws steps, and what is compared."""

from npudiff.component import Component
from npudiff.history import History
from properties.hybrid_pools.case import AXES, HybridPoolsCase, check_case, describe, features, values
from properties.hybrid_pools.coordinates import coordinates
from properties.hybrid_pools.inputs import build_inputs
from properties.hybrid_pools.machine import HybridPoolsMachine
from properties.hybrid_pools.session import PoolsSession
from properties.hybrid_pools.simpler import SIMPLER
from properties.hybrid_pools.strategy import cases
from reference.hybrid_pools import hybrid_pools

component = Component(
    name="hybrid_pools",
    summary="full and sliding pool of a hybrid model: allocation, eviction, sharing, preemption, and attention on both",
    case_type=HybridPoolsCase,
    outputs=("full", "sliding"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=hybrid_pools,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    watched="shared",
    profiles={
        "step-3.5-flash": {
            "head_dims": ("128",),
            "kv_heads": (1,),  # of 8, on 8 cards
            "group": (8,),
            "window": (512,),
            "page_size": (128,),
        },
        "gpt-oss": {
            "head_dims": ("64",),
            "kv_heads": (1,),
            "group": (8,),
            "window": (128,),
            "page_size": (128,),
        },
    },
    history=History(machine=HybridPoolsMachine, open=PoolsSession, simpler=SIMPLER, runs=0.35, steps=20),
)
