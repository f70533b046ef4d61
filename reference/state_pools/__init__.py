"""Pools of the states of linear attention, and the requests in them.

A layer of linear attention keeps two states per request: the last rows in front of its causal convolution, and the
matrices of the gated delta rule. What is right is a matter of history: of all tokens that a request had and kept.
"""

from npudiff.reference.state_pools.contract import LayerTokens, StatePools, StatePoolsInputs
from npudiff.reference.state_pools.history import StatePoolsHistory, StatePoolsReference, state_pools
from npudiff.reference.state_pools.steps import (
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    Restore,
    Roster,
    Step,
    Verify,
    in_words,
    new_rows,
    request_name,
)

__all__ = [
    "Decode",
    "Evict",
    "Extend",
    "Fork",
    "Free",
    "LayerTokens",
    "Restore",
    "Roster",
    "StatePools",
    "StatePoolsHistory",
    "StatePoolsInputs",
    "StatePoolsReference",
    "Step",
    "Verify",
    "in_words",
    "new_rows",
    "request_name",
    "state_pools",
]
