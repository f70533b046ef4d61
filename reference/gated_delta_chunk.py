"""Consecutive tokens of one sequence under the gated delta rule: numbers and bounds together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch

from npudiff.reference.gated_delta_errors import DeltaErrors
from npudiff.reference.gated_delta_tokens import DeltaState, DeltaTokens

Found = TypeVar("Found")

ROUGH_FROM = 2**22
"""Elements of states, times tokens, from which on bounds are computed in float32."""

LEAST_GATE = -300.0
"""Sum of logarithms of decays down to which what is divided by a decay is a number of float64."""


class Bounded(NamedTuple):
    """Numbers and bounds, float64."""

    value: torch.Tensor
    bound: torch.Tensor


class DeltaChunk(DeltaTokens):
    """Tokens that follow a state, and how far a device may be off."""

    @cached_property
    def errors(self) -> DeltaErrors:
        """Errors of what is computed."""
        return DeltaErrors(self, self._precision())

    def _precision(self) -> torch.dtype:
        """What bounds are computed in."""
        much = self.state.value.numel() * self.key.shape[1] >= ROUGH_FROM
        plain = much and self.gates.shape[-1] == 1 and float(self.gates.min()) > LEAST_GATE
        return torch.float32 if plain and self.stretch is None else torch.float64

    def _bound(self, rule: Callable[[DeltaErrors], Found | None]) -> Found:
        """What a rule says of errors; in float64 where float32 does not hold it."""
        found = rule(self.errors)
        if found is None:
            self.errors = DeltaErrors(self, torch.float64)
            found = rule(self.errors)
        if found is None:
            raise AssertionError("float64 holds every bound")
        return found

    def outputs(self) -> Bounded:
        """Return what the tokens read, ``[heads, tokens, value_dim]``, before it is rounded."""
        if self.state.is_exact:
            inner, turned = self.scores @ self.added, None
        else:
            both = self.scores @ torch.cat([self.added, self.turned_keys], dim=-1)
            inner = both[..., : self.added.shape[-1]]
            turned = self.grown_query - both[..., self.added.shape[-1] :]
        return Bounded(self.old + inner, self._bound(lambda errors: errors.of_outputs(inner, turned)))

    def after(self) -> DeltaState:
        """Return the state behind the last token."""
        keys = self.decayed_keys([-1])
        value = self.written(keys, [-1])[:, 0]
        return self._bound(lambda errors: errors.after(value, keys))

    def states_behind(self, tokens: list[int]) -> Bounded:
        """Return the states behind some tokens, ``[heads, some, value_dim, key_dim]``, before they are rounded."""
        keys = self.decayed_keys(tokens)
        value = self.written(keys, tokens)
        bound = self._bound(lambda errors: errors.of_states(value, keys, tokens))
        return Bounded(value, bound.expand_as(value))
