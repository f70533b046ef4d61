"""Consecutive tokens of one sequence under the gated delta rule: what comes out, and how far a device may be off.

With cumulative decays ``e_i`` since the state ``S`` before the tokens, ``e_ij`` from token j to token i, and all heads
side by side::

    A = strictly lower part of beta_i (k_i . k_j) e_ij        T = (1 + A)^-1
    d = T beta (v - e k S^T)                                  what each token adds: S_i = e_i S + sum_j e_ij d_j k_j^T
    o_i = e_i S q_i + sum over j <= i of (q_i . k_j) e_ij d_j

This is the recurrence in exact arithmetic (Yang et al., "Parallelizing Linear Transformers with the Delta Rule", 2024,
section 3). The bound has two parts that a state hands on to the next chunk.

*Errors that have nothing to do with each other* have a scale: the covariance of the errors of row r of a state is at
most ``spread[r]`` times a matrix ``shape`` of all rows of a head. Tokens turn a row by ``M``, a product of
``e (1 - beta k k^T)``, which forgets what keys overwrite; so the shape behind a chunk is ``M^T shape M`` and, for what
the chunk adds, the identity. An output ``S q`` has an error of variance ``spread * q^T shape q``. Within a chunk what
float32 adds is not turned, since ``1 - beta k k^T`` makes no vector longer while ``0 <= beta |k|^2 <= 2``. Nothing
grows with the number of tokens but the sum of what they add and nothing overwrites.

*Errors that have a sign in common*, of exponentials and of normalisation, are lengths, which add up and decay alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from npudiff.reference.bounds import EXPONENTIAL_FUNCTION_ERROR, FLOAT32_ROUNDOFF, underflow_step
from npudiff.reference.spread import CONFIDENCE, rounding_scale

GATE_ROUNDINGS = 8
"""Roundings of float32 of gates that are added up before an exponential is taken of the sum, of the size of that."""

RAW_ROUNDINGS = 8
"""The same of a token's query, key and beta, which have a sign in common: of a norm and a sigmoid."""

PRODUCTS = 4
"""Roundings of float32 in each element of a state, or in the number that makes it, per token."""

HALF = 32
"""Rows of a triangle that is inverted by substitution; two of them are put together with products."""


class Bounded(NamedTuple):
    """Numbers and bounds, float64."""

    value: torch.Tensor
    bound: torch.Tensor


@dataclass(frozen=True)
class DeltaState:
    """The state of one sequence, of all heads."""

    value: torch.Tensor
    """float64 ``[heads, value_dim, key_dim]``."""
    spread: torch.Tensor
    """``[heads, value_dim]``."""
    shape: torch.Tensor
    """``[heads, key_dim, key_dim]``: the covariance of the errors of a row is at most this, times its spread."""
    common: torch.Tensor
    """``[heads, value_dim]``: largest length of the error of a row that has a sign in common with others."""

    @classmethod
    def exact(cls, value: torch.Tensor) -> DeltaState:
        """Return a state that a device has as it is."""
        zeros = torch.zeros(value.shape[:-1], dtype=torch.float64)
        return cls(value, zeros, torch.zeros(len(value), *value.shape[-1:] * 2, dtype=torch.float64), zeros)


class DeltaChunk:
    """Tokens that follow a state.

    Parameters
    ----------
    state : DeltaState
        Before the first token.
    query, key : torch.Tensor
        ``[heads, tokens, key_dim]``, all float64; queries are scaled.
    value : torch.Tensor
        ``[heads, tokens, value_dim]``.
    beta : torch.Tensor
        ``[heads, tokens]``.
    gate : torch.Tensor
        ``[heads, tokens, 1 or key_dim]``: logarithms of decays.
    narrow : torch.dtype or None
        What products and states of a device go through, beside float32.
    raw : bool
        Whether a device makes queries, keys and beta itself, of what it is given.
    """

    def __init__(
        self,
        state: DeltaState,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        beta: torch.Tensor,
        gate: torch.Tensor,
        narrow: torch.dtype | None,
        raw: bool = False,
    ) -> None:
        self.raw = raw
        self.state, self.query, self.key, self.value, self.beta = state, query, key, value, beta.unsqueeze(-1)
        self.narrow = 0.0 if narrow is None else rounding_scale(narrow)
        self.rounding, self.step = self.narrow * self.narrow, 0.0 if narrow is None else underflow_step(narrow)
        self.gates: torch.Tensor = gate.cumsum(dim=1)
        tokens = query.shape[1]
        lower = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        distance = (self.gates.unsqueeze(2) - self.gates.unsqueeze(1)).masked_fill(~lower[..., None], -torch.inf)
        self._decays: torch.Tensor = distance.exp()  # [heads, tokens, tokens, 1 or key_dim]
        self.alike = self._pairs(key, key) * self.beta
        self.scores = self._pairs(query, key)
        self.grown = self.gates.exp()
        self.inverse: torch.Tensor = torch.linalg.solve_triangular(
            self.alike.tril(-1) + torch.eye(tokens, dtype=torch.float64),
            torch.eye(tokens, dtype=torch.float64).expand(len(key), -1, -1), upper=False, unitriangular=True,
        )  # fmt: skip
        self.grown_keys = self.beta * key * self.grown
        self.taken: torch.Tensor = self.grown_keys @ state.value.mT
        self.wanted = self.beta * value - self.taken
        self.added = self.inverse @ self.wanted

    def _pairs(self, rows: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Products of rows with the keys of earlier tokens and their own, decayed: ``[heads, tokens, tokens]``."""
        if self._decays.shape[-1] == 1:
            return (rows @ key.mT) * self._decays.squeeze(-1)
        return torch.einsum("hic,hijc,hjc->hij", rows, self._decays, key)

    def outputs(self) -> Bounded:
        """Return what the tokens read, ``[heads, tokens, value_dim]``, before it is rounded."""
        inner, old = self.scores @ self.added, (self.query * self.grown) @ self.state.value.mT
        turned = self.query * self.grown - self.scores @ self._turned_keys
        lengths = self.query.norm(dim=-1, keepdim=True)
        squares = (turned @ self.state.shape * turned).sum(dim=-1, keepdim=True) * self.state.spread.unsqueeze(1)
        squares = squares + lengths.square() * self._spread_of_tokens + self._narrow_outputs(inner, old)
        sums = self._sum_error(self.key.shape[-1] + self.key.shape[1]) * lengths * self._reach
        bound = CONFIDENCE * (squares + sums.square()).sqrt() + lengths * self._common_of_tokens
        return Bounded(old + inner, bound + self.step)

    def after(self) -> DeltaState:
        """Return the state behind the last token."""
        value, own, turned = self._written(self.key.shape[1] - 1)
        # What tokens add is off along their keys: in the shape are the keys, and in the spread the largest of them.
        keys = self._decayed_keys(self.key.shape[1] - 1)
        added = torch.maximum(own.amax(dim=-1) + self._spread_of_tokens[:, -1], self._added_squares.amax(dim=1))
        shape = turned.mT @ self.state.shape @ turned
        # Where states decay, the spread of what they were must not stand for what they are.
        left = (shape.diagonal(dim1=1, dim2=2).mean(dim=-1)).clamp(max=1.0)
        spread = torch.maximum(left.unsqueeze(-1) * self.state.spread, added)
        shape = shape / torch.where(left > 0, left, 1.0)[:, None, None] + torch.eye(
            shape.shape[-1], dtype=torch.float64
        )
        if self.narrow:
            shape = shape + keys.mT @ keys
        return DeltaState(value, spread, shape, self._common_of_tokens[:, -1])

    def state_behind(self, token: int) -> Bounded:
        """Return the state behind a token, ``[heads, value_dim, key_dim]``, before it is rounded."""
        value, own, turned = self._written(token)
        first = (turned.mT @ self.state.shape @ turned).diagonal(dim1=1, dim2=2)
        squares = first.unsqueeze(1) * self.state.spread.unsqueeze(-1) + own
        squares = squares + self._spread_of_tokens[:, token].unsqueeze(-1)
        keys = self._decayed_keys(token).square()
        squares = squares + self._added_squares[:, : token + 1].mT @ keys
        return Bounded(value, CONFIDENCE * squares.sqrt() + self._common_of_tokens[:, token].unsqueeze(-1) + self.step)

    def _decayed_keys(self, token: int) -> torch.Tensor:
        """Keys of the tokens up to one, as they are in the state behind it."""
        return self.key[:, : token + 1] * self._decays[:, token, : token + 1]

    def _written(self, token: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The state behind a token, the squared scales of roundings of its elements, and what turned the first one."""
        keys, added = self._decayed_keys(token), self.added[:, : token + 1]
        kept, new = self.state.value * self.grown[:, token].unsqueeze(1), added.mT @ keys
        value = kept + new
        own = kept.square() + added.square().mT @ keys.square() + new.square() + value.square()
        growth = torch.diag_embed(self.grown[:, token].expand(-1, self.key.shape[-1]))
        turned = growth - self._turned_keys[:, : token + 1].mT @ keys
        return value, own * self.rounding, turned

    @cached_property
    def _turned_keys(self) -> torch.Tensor:
        """``[heads, tokens, key_dim]``: what each token takes off the first state, in the products of a chunk."""
        turned: torch.Tensor = self.inverse @ self.grown_keys
        return turned

    @cached_property
    def _added_squares(self) -> torch.Tensor:
        """Squared scale of the error of what each token adds, of the roundings of a calculation in chunks.

        They are, in order: of the products of keys, of the inverse, of the wanted values and what became of them, of
        the grown keys and what became of them, and of what is taken off and is left.
        """
        if not self.narrow:
            return torch.zeros_like(self.added)
        inverse, state, turned = self.inverse.square(), self.state.value.square().mT, self._turned_keys
        off = self.inverse @ self.taken  # what the first state is taken off by; values less that are what is added
        squares = inverse @ (self.alike.tril(-1).square() @ self.added.square() + (self.beta * self.value).square())
        squares += self._inverse_squares @ self.wanted.square()
        squares += (inverse @ self.grown_keys.square() + turned.square()) @ state
        squares += (self.added + off).square()
        squares += off.square()
        squares += self.added.square()
        rounded: torch.Tensor = squares * self.rounding
        return rounded

    @cached_property
    def _inverse_squares(self) -> torch.Tensor:
        """Squared scale of the error of the inverse, over that of a rounding: halves, then their corner."""
        squares = self.inverse.square()
        if self.key.shape[1] <= HALF:
            return squares
        upper, lower = slice(HALF), slice(HALF, None)
        first, second, below = squares[:, upper, upper], squares[:, lower, lower], self.alike[:, lower, upper]
        once = (below @ self.inverse[:, upper, upper]).square()
        squares[:, lower, upper] += 2 * second @ once + 2 * second @ (below.square() @ first)
        return squares

    def _narrow_outputs(self, inner: torch.Tensor, old: torch.Tensor) -> torch.Tensor | float:
        """Squared scale of the errors of outputs that come from roundings of a calculation in chunks."""
        if not self.narrow:
            return 0.0
        grown, scores = (self.query * self.grown).square(), self.scores.square()
        squares = grown @ self.state.value.square().mT + old.square()
        squares = (squares + inner.square()) * self.rounding
        rounded: torch.Tensor = squares + scores @ (self.added.square() * (2 * self.rounding) + self._added_squares)
        return rounded

    @staticmethod
    def _sum_error(terms: int) -> float:
        """Scale of the error of a float32 sum, with respect to the lengths of what is multiplied."""
        return math.sqrt(terms) * FLOAT32_ROUNDOFF

    @cached_property
    def _longest_turn(self) -> torch.Tensor:
        """``[heads, tokens]``: the square of what an error of the first state may have become, by its decays."""
        stretch = (1 - self.beta.squeeze(-1) * self.key.square().sum(dim=-1)).abs().clamp(min=1.0)
        return (self.grown.amax(dim=-1) * stretch.cumprod(dim=1)).square()

    @cached_property
    def _between(self) -> torch.Tensor:
        """``[heads, tokens, tokens]``: how much of an error that a token makes is left at a later one, at most."""
        stretch = (1 - self.beta.squeeze(-1) * self.key.square().sum(dim=-1)).abs().clamp(min=1.0).log().cumsum(dim=1)
        return self._decays.amax(dim=-1) * (stretch.unsqueeze(2) - stretch.unsqueeze(1)).tril().exp()

    @cached_property
    def _reach(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: at least the length of each row of the state behind a token."""
        kept = self.grown.amax(dim=-1, keepdim=True) * self.state.value.norm(dim=-1).unsqueeze(1)
        added = self.added.abs() * self.key.norm(dim=-1, keepdim=True)
        reach: torch.Tensor = kept + self._decays.amax(dim=-1) @ added
        return reach

    @cached_property
    def _spread_of_tokens(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: spread of the rows of states that float32 makes, token after token.

        A token multiplies the state by decays and adds to it; what it adds has the error of its sum, along the key.
        """
        lengths = self.key.norm(dim=-1, keepdim=True)
        read = self.beta.abs() * lengths.square() * self._sum_error(self.key.shape[-1]) * self._reach
        own = PRODUCTS * FLOAT32_ROUNDOFF * (self._reach + self.added.abs() * lengths)
        spread: torch.Tensor = self._between.square() @ (read.square() + own.square())
        return spread

    @cached_property
    def _common_of_tokens(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: lengths of the errors of rows that have a sign in common."""
        largest = self.gates.abs().amax(dim=-1, keepdim=True)
        own = torch.where(largest > 0, EXPONENTIAL_FUNCTION_ERROR, 0.0) + largest * GATE_ROUNDINGS * FLOAT32_ROUNDOFF
        own = own + (RAW_ROUNDINGS * FLOAT32_ROUNDOFF if self.raw else 0.0)
        first = self._longest_turn.sqrt().unsqueeze(-1) * self.state.common.unsqueeze(1)
        common: torch.Tensor = first + self._between @ (self._reach * own)
        return common
