"""The dictionary that remembers every token, and what attention over it is: nothing here knows of pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected
from npudiff.reference.hybrid_pools.contract import HybridPoolsInputs, TokenStates
from npudiff.reference.hybrid_pools.steps import (
    Allocate,
    Decode,
    Extend,
    Fork,
    Free,
    Preempt,
    Readmit,
    Share,
    Step,
)
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs, sliding_attention

LAYERS = ("full", "sliding")


@dataclass(frozen=True)
class Tokens:
    """Queries, keys and values of consecutive tokens."""

    query: torch.Tensor
    """``[tokens, heads, head_dim]``; both kinds of layer have the same queries."""
    states: TokenStates
    """Keys and values of both kinds of layer."""

    def __len__(self) -> int:
        """How many there are."""
        return self.query.shape[0]

    def part(self, first: int, last: int) -> Tokens:
        """Return tokens ``first`` to ``last - 1``, without a copy."""
        states = TokenStates(*(getattr(self.states, name)[first:last] for name in TokenStates.__dataclass_fields__))
        return Tokens(self.query[first:last], states)

    def followed_by(self, other: Tokens) -> Tokens:
        """Return these tokens and those of ``other``."""
        fields = TokenStates.__dataclass_fields__
        joined = (torch.cat([getattr(self.states, name), getattr(other.states, name)]) for name in fields)
        return Tokens(torch.cat([self.query, other.query]), TokenStates(*joined))


class TokenMemory:
    """Every live or preempted request with all of its tokens.

    Parameters
    ----------
    inputs : HybridPoolsInputs
        Window and scale; the storage is not looked at.

    Attributes
    ----------
    live, waiting : dict
        Request to its tokens; those of a preempted request are kept, it will be admitted with them again.
    """

    def __init__(self, inputs: HybridPoolsInputs) -> None:
        self._inputs = inputs
        self.live: dict[int, Tokens] = {}
        self.waiting: dict[int, Tokens] = {}
        self._known: dict[tuple[int, int], tuple[Tokens, tuple[Expected, ...]]] = {}

    def take(self, step: Step, new: Tokens) -> None:
        """Remember what a step does.

        Parameters
        ----------
        step : Step
            The step.
        new : Tokens
            The tokens that it brings; of a decode, one per request in the order of the requests. A request that is
            admitted again brings none.
        """
        match step:
            case Allocate(request, _):
                self.live[request] = new
            case Extend(request, _):
                self.live[request] = self.live[request].followed_by(new)
            case Decode(requests):
                for row, request in enumerate(requests):
                    self.live[request] = self.live[request].followed_by(new.part(row, row + 1))
            case Share(source, request, pages, _):
                self.live[request] = self.live[source].part(0, pages * self._inputs.page_size).followed_by(new)
            case Fork(source, request):
                self.live[request] = self.live[source]
            case Preempt(request):
                self.waiting[request] = self.live.pop(request)
            case Readmit(request):
                self.live[request] = self.waiting.pop(request)
            case Free(request):
                del self.live[request]

    def attention(self, rows: Mapping[int, int]) -> dict[str, Expected]:
        """Return attention of the last tokens of some requests, with bounds.

        Parameters
        ----------
        rows : mapping
            Live request to how many of its last tokens.

        Returns
        -------
        dict
            ``full`` and ``sliding``: ``[sum(rows), heads, value_head_dim]``, one request after the other.
        """
        parts = [self._attention_of(request, count) for request, count in rows.items()]
        return {name: self._joined([part[layer] for part in parts]) for layer, name in enumerate(LAYERS)}

    def _attention_of(self, request: int, rows: int) -> tuple[Expected, ...]:
        """Attention of one request, which changes only with its tokens."""
        tokens = self.live[request]
        known = self._known.get((request, rows))
        if known is None or known[0] is not tokens:
            states = tokens.states
            full = self._layer(tokens, rows, states.full_key, states.full_value, None)
            sliding = self._layer(tokens, rows, states.sliding_key, states.sliding_value, self._inputs.window)
            known = self._known[request, rows] = (tokens, (full, sliding))
        return known[1]

    def _layer(self, tokens: Tokens, rows: int, key: torch.Tensor, value: torch.Tensor, window: int | None) -> Expected:
        """One layer, by the reference of a single attention call: all tokens lie in one page."""
        table = torch.zeros(1, 1, dtype=torch.int32)
        inputs = SlidingAttentionInputs(
            query=tokens.query[len(tokens) - rows :],
            full=PagedKV(key.unsqueeze(0), value.unsqueeze(0), table),
            sliding=None,
            query_lengths=(rows,),
            kv_lengths=(len(tokens),),
            window=window,
            scale=self._inputs.scale,
            sinks=None,
        )
        return sliding_attention(inputs)["output"]

    def _joined(self, parts: list[Expected]) -> Expected:
        if parts:
            values, bounds = (torch.cat([getattr(part, name) for part in parts]) for name in ("value", "bound"))
            return Expected(values, bounds, parts[0].dtype)
        nothing = torch.zeros(0, self._inputs.heads, self._inputs.full.value.shape[3], dtype=torch.float64)
        return Expected(nothing, nothing, self._inputs.full.key.dtype)
