"""Two pools of pages, one for full-attention layers and one for layers with a window, and the requests in them.

A hybrid model keeps the tokens of its sliding layers in a pool of their own, whose pages are given up when they leave
the window. What is right is a matter of history: of all steps that were taken on the pools.
"""

from npudiff.reference.hybrid_pools.contract import (
    HybridPools,
    HybridPoolsInputs,
    PoolsSnapshot,
    PoolStorage,
    TokenStates,
)
from npudiff.reference.hybrid_pools.history import HybridPoolsHistory, HybridPoolsReference, hybrid_pools
from npudiff.reference.hybrid_pools.ledger import PageLedger, PoolSizes
from npudiff.reference.hybrid_pools.memory import TokenMemory, Tokens
from npudiff.reference.hybrid_pools.steps import (
    Allocate,
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    Preempt,
    Readmit,
    Share,
    Step,
    in_words,
    new_tokens,
    request_name,
)

__all__ = [
    "Allocate",
    "Decode",
    "Evict",
    "Extend",
    "Fork",
    "Free",
    "HybridPools",
    "HybridPoolsHistory",
    "HybridPoolsInputs",
    "HybridPoolsReference",
    "PageLedger",
    "PoolSizes",
    "PoolStorage",
    "PoolsSnapshot",
    "Preempt",
    "Readmit",
    "Share",
    "Step",
    "TokenMemory",
    "TokenStates",
    "Tokens",
    "hybrid_pools",
    "in_words",
    "new_tokens",
    "request_name",
]
