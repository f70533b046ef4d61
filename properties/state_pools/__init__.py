"""Pools of the states of linear attention: cases, a state machine that draws steps, and what is compared."""

from npudiff.model.component import Component, History
from npudiff.model.profiles import Boxes
from npudiff.properties._shared.models import Model, of_models
from npudiff.properties.state_pools.case import StatePoolsCase
from npudiff.properties.state_pools.inputs import build_inputs, coordinates
from npudiff.properties.state_pools.machine import StatePoolsMachine
from npudiff.properties.state_pools.session import StatePoolsSession
from npudiff.properties.state_pools.simpler import SIMPLER
from npudiff.reference.state_pools import StatePools, StatePoolsInputs, state_pools


def _sizes(model: Model) -> Boxes | None:
    layer = model.linear
    if layer is None:
        return None
    return [
        {
            "key_heads": (1,),  # a part of one card's share
            "group": (layer.heads // layer.key_heads,),
            "key_dim": (layer.key_dim,),
            "value_dim": (layer.value_dim,),
            "width": (layer.width,),
            "gates": ("channel" if layer.by_channel else "head",),
        }
    ]


component = Component(
    name="state_pools",
    summary="states of linear attention over the life of requests: chunks, steps, drafts taken back, forks, evictions",
    case_type=StatePoolsCase,
    outputs=("convolved", "output", "lines", "states"),
    inputs=build_inputs,
    reference=state_pools,
    coordinates=coordinates,
    highlighted_region="drafts taken back",
    profiles=of_models(_sizes),
    example_ratio=0.6,
    history=History(
        machine=StatePoolsMachine,
        session=StatePoolsSession,
        simpler=SIMPLER,
        runs=0.35,
        steps=20,
        given=StatePoolsInputs,
        opens=StatePools,
    ),
)
