"""From a case to tensors: storage full of poison, and the tokens that come, each with data of its own."""

from __future__ import annotations

import math

import torch

from npudiff.draw.data import Stream
from npudiff.properties.hybrid_pools.case import HybridPoolsCase
from npudiff.reference.hybrid_pools import (
    HybridPoolsHistory,
    HybridPoolsInputs,
    PoolStorage,
    Tokens,
    TokenStates,
    new_tokens,
)

LARGE = 4096.0
"""Finite poison of values: exact in every 16-bit type, and far above what any right output holds."""

_BLOCK = 64
"""Tokens whose data is made at once."""


def open_inputs(case: HybridPoolsCase) -> HybridPoolsInputs:
    """Build what the pools of a case are opened with; its steps are not looked at.

    A poisoned key is zero: its score is that of an average key, so that its value is seen.
    """
    return HybridPoolsInputs(
        full=_storage(case, case.full_pages),
        sliding=_storage(case, case.sliding_pages),
        heads=case.heads,
        window=case.window,
        scale=1 / math.sqrt(case.head_dim),
        requests=case.requests,
        prefix_sharing=case.prefix_sharing,
    )


def _storage(case: HybridPoolsCase, pages: int) -> PoolStorage:
    shape = (1 + pages, case.page_size, case.kv_heads)
    key, value = (0.0, LARGE) if case.poison == "large" else (math.nan, math.nan)
    return PoolStorage(
        torch.full((*shape, case.head_dim), key, dtype=_dtype(case)),
        torch.full((*shape, case.value_head_dim), value, dtype=_dtype(case)),
    )


def _dtype(case: HybridPoolsCase) -> torch.dtype:
    return torch.bfloat16 if case.dtype == "bfloat16" else torch.float16


class TokenSource:
    """The tokens of a case, one after the other as steps bring them: standard normal queries, keys and values.

    Parameters
    ----------
    case : HybridPoolsCase
        Its seed and sizes.
    """

    def __init__(self, case: HybridPoolsCase) -> None:
        self._case = case
        self._block, self._used = 0, 0
        self._rest = self._make(0)

    def next(self, count: int) -> Tokens:
        """Return the next tokens."""
        while len(self._rest) - self._used < count:
            self._block += 1
            self._rest = self._rest.part(self._used, len(self._rest)).followed_by(self._make(self._block))
            self._used = 0
        self._used += count
        return self._rest.part(self._used - count, self._used)

    def _make(self, block: int) -> Tokens:
        case, dtype = self._case, _dtype(self._case)
        dims = [case.heads * case.head_dim, *[case.kv_heads * dim for dim in (case.head_dim, case.value_head_dim)] * 2]
        numbers = Stream(case.seed, f"tokens {block}").normal((_BLOCK * sum(dims),), dtype)
        parts = torch.split(numbers, [_BLOCK * dim for dim in dims])
        query, *states = (
            part.view(_BLOCK, heads, -1) for part, heads in zip(parts, (case.heads, *[case.kv_heads] * 4), strict=True)
        )
        return Tokens(query, TokenStates(*states))


def build_inputs(case: HybridPoolsCase) -> HybridPoolsHistory:
    """Build the pools of a case, and the tokens that each of its steps brings."""
    source = TokenSource(case)
    steps = tuple((step, source.next(sum(new_tokens(step).values()))) for step in case.steps)
    return HybridPoolsHistory(open_inputs(case), steps)
