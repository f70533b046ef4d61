"""Consecutive tokens of one sequence under the gated delta rule: what comes out, and how far a device may be off.

With cumulative decays ``e_i`` since the state ``S`` before the tokens, ``e_ij`` from token j to token i, and all heads
side by side, of one sequence or of several that are as long::

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

LEFT = 1e-12
"""Part of its terms from which on what is left of a shape is nothing but what float64 makes of their differences."""

HALF = 32
"""Rows of a triangle that is inverted by substitution; two of them are put together with products."""


class Bounded(NamedTuple):
    """Numbers and bounds, float64."""

    value: torch.Tensor
    bound: torch.Tensor


@dataclass(frozen=True)
class DeltaState:
    """The states of heads, of one sequence or of several; all are ``heads`` here."""

    value: torch.Tensor
    """float64 ``[heads, value_dim, key_dim]``."""
    spread: torch.Tensor
    """``[heads, value_dim]``."""
    shape: torch.Tensor
    """``[heads, key_dim, key_dim]``: the covariance of the errors of a row is at most this, times its spread."""
    common: torch.Tensor
    """``[heads, value_dim]``: largest length of the error of a row that has a sign in common with others."""
    is_exact: bool = False
    """Whether all of these errors are zero, so that nothing has to be computed of what becomes of them."""

    @classmethod
    def exact(cls, value: torch.Tensor) -> DeltaState:
        """Return a state that a device has as it is."""
        heads, value_dim, key_dim = value.shape
        zero = torch.zeros(1, 1, 1, dtype=torch.float64)
        rows = zero[0].expand(heads, value_dim)
        return cls(value, rows, zero.expand(heads, key_dim, key_dim), rows, is_exact=True)


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

    Notes
    -----
    What has one operand in common is one product: queries lie above keys that are multiplied by beta, and what tokens
    wish to add lies beside what they take off.
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
        self.state, self.query, self.key, self.beta = state, query, key, beta.unsqueeze(-1)
        self.narrow = 0.0 if narrow is None else rounding_scale(narrow)
        self.rounding, self.step = self.narrow * self.narrow, 0.0 if narrow is None else underflow_step(narrow)
        self.gates: torch.Tensor = gate.cumsum(dim=1)
        self.grown = self.gates.exp()
        self._set_decays()
        rows = torch.stack([query, self.beta * key], dim=1)  # [heads, 2, tokens, key_dim]
        self.scores, self.alike = self._pairs(rows)
        grown = rows * self.grown.unsqueeze(1)
        self.grown_query, self.grown_keys = grown.unbind(1)
        read = (grown.flatten(1, 2) @ state.value.mT).view(*grown.shape[:3], -1)
        self.old, self.taken = read.unbind(1)
        self.weighed = self.beta * value
        self.wanted = self.weighed - self.taken
        self._add()

    def _set_decays(self) -> None:
        """Decays from token to token, ``[heads, tokens, tokens]`` of heads, and the largest of a token's channels."""
        if self.gates.shape[-1] == 1:
            self._decays: torch.Tensor = (self.gates - self.gates.mT).exp().tril()
            self._weighted: torch.Tensor | None = None
            return
        tokens = self.gates.shape[1]
        later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1).unsqueeze(-1)
        distance = (self.gates.unsqueeze(2) - self.gates.unsqueeze(1)).masked_fill_(later, -torch.inf)
        each = distance.exp_()  # [heads, tokens, tokens, key_dim]
        self._decays = each.amax(dim=-1)
        self._weighted = each.mul_(self.key.unsqueeze(1))

    def _pairs(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decayed products with keys: of queries with earlier ones and their own, of keys with earlier ones."""
        if self._weighted is None:
            pairs = (rows.flatten(1, 2) @ self.key.mT).view(*rows.shape[:3], -1) * self._decays.unsqueeze(1)
            return pairs[:, 0], pairs[:, 1].tril(-1)
        pairs = self._weighted @ rows.permute(0, 2, 3, 1)
        return pairs[..., 0].contiguous(), pairs[..., 1].tril(-1)

    def _add(self) -> None:
        """What each token adds, and what it takes off: of the first state, and off the first state."""
        columns = [self.wanted]
        if self.narrow or not self.state.is_exact:
            columns.append(self.grown_keys)
        if self.narrow:
            columns.append(self.taken)
        made = torch.cat(columns, dim=-1) if len(columns) > 1 else self.wanted
        if self.alike.shape[-1] > 1:  # one token has nothing before it
            made = self.inverse @ made
        wide, key_dim = self.wanted.shape[-1], self.key.shape[-1]
        self.added, self._turned_keys = made[..., :wide], made[..., wide : wide + key_dim]
        self._off = made[..., wide + key_dim :]

    @cached_property
    def inverse(self) -> torch.Tensor:
        """``[heads, tokens, tokens]``: how tokens act on what the first of them add."""
        one = torch.eye(self.alike.shape[-1], dtype=torch.float64).expand_as(self.alike)
        inverse: torch.Tensor = torch.linalg.solve_triangular(self.alike, one, upper=False, unitriangular=True)
        return inverse

    def outputs(self) -> Bounded:
        """Return what the tokens read, ``[heads, tokens, value_dim]``, before it is rounded."""
        lengths = self.query.norm(dim=-1, keepdim=True)
        sums = self._sum_error(self.key.shape[-1] + self.key.shape[1])
        squares = torch.add(self._spread_of_tokens, self._reach_squares, alpha=sums * sums) * lengths.square()
        if self.state.is_exact:
            inner = self.scores @ self.added
        else:
            both = self.scores @ torch.cat([self.added, self._turned_keys], dim=-1)
            inner = both[..., : self.added.shape[-1]]
            turned = self.grown_query - both[..., self.added.shape[-1] :]
            first = (turned @ self.state.shape).mul_(turned).sum(dim=-1, keepdim=True).clamp_(min=0.0)
            squares.addcmul_(first, self.state.spread.unsqueeze(1))
        if self.narrow:
            squares += self._narrow_outputs(inner)
        bound = squares.sqrt_().mul_(CONFIDENCE)
        if self._common_of_tokens is not None:
            bound.addcmul_(lengths, self._common_of_tokens)
        return Bounded(self.old + inner, bound.add_(self.step) if self.step else bound)

    def after(self) -> DeltaState:
        """Return the state behind the last token."""
        last = self.key.shape[1] - 1
        keys = self._decayed_keys([last])
        value, own = self._written(keys, [last])
        added = self._spread_of_tokens[:, -1]
        if own is not None:
            added = own[:, 0].amax(dim=-1) + added
            added = torch.maximum(added, self._added_squares.amax(dim=1))
        # What tokens add is off along their keys: in the shape are the keys, and in the spread the largest of them.
        spread, shape = self._turned_shape(keys[:, 0], self.grown[:, last], added)
        if self.narrow:
            shape.baddbmm_(keys[:, 0].mT, keys[:, 0])
        shape.diagonal(dim1=1, dim2=2).add_(1.0)
        common = torch.zeros_like(spread) if self._common_of_tokens is None else self._common_of_tokens[:, -1]
        return DeltaState(value[:, 0], spread, shape, common)

    def _turned_shape(
        self, keys: torch.Tensor, grown: torch.Tensor, added: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The spread of rows behind a token, and the shape of what is left of the first one's.

        The first state is turned by ``M = D - U^T K``, of decays and as many keys as there are tokens, so that
        ``M^T shape M = D shape D + K^T W + W^T K`` where ``W = U shape U^T K / 2 - U shape D``.
        """
        first = self.state
        if first.is_exact:
            return added, torch.zeros(first.shape.shape, dtype=torch.float64)
        lost, twice = self._turned_products
        taken = twice @ keys
        back = (0.5 * taken).addcmul_(lost, grown.unsqueeze(1), value=-1.0)
        kept = (grown.square() * first.shape.diagonal(dim1=1, dim2=2)).mean(dim=-1)
        size = first.shape.shape[-1]
        left = kept + 2 * (keys * back).sum(dim=(1, 2)) / size
        # Where nothing is left but what float64 makes of differences, the spread is that of what is added.
        left = torch.maximum(left, LEFT * (kept + (keys * taken).sum(dim=(1, 2)) / size)).clamp(max=1.0)
        # Where states decay, the spread of what they were must not stand for what they are.
        spread = torch.maximum(left.unsqueeze(-1) * first.spread, added)
        # By roots, which are numbers where squares are too small to be.
        root = torch.where(left > 0, left, 1.0).sqrt()[:, None, None]
        columns, keys, back = grown.unsqueeze(1) / root, keys / root, back / root
        shape = first.shape * columns * (columns if grown.shape[-1] == 1 else columns.mT)
        return spread, shape.baddbmm_(torch.cat([keys, back], dim=1).mT, torch.cat([back, keys], dim=1))

    @cached_property
    def _turned_products(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``U shape`` and ``U shape U^T``, where U are the keys that tokens take off the first state."""
        lost = self._turned_keys @ self.state.shape
        return lost, lost @ self._turned_keys.mT

    def states_behind(self, tokens: list[int]) -> Bounded:
        """Return the states behind some tokens, ``[heads, some, value_dim, key_dim]``, before they are rounded."""
        keys = self._decayed_keys(tokens)
        value, own = self._written(keys, tokens)
        squares = self._spread_of_tokens[:, tokens].unsqueeze(-1)
        if not self.state.is_exact:
            lost, twice = self._turned_products
            grown = self.grown[:, tokens].unsqueeze(2)
            turned = (twice.unsqueeze(1) @ keys).addcmul_(lost.unsqueeze(1), grown, value=-2.0).mul_(keys).sum(dim=2)
            first = self.state.shape.diagonal(dim1=1, dim2=2).unsqueeze(1) * grown.squeeze(2).square() + turned
            squares = squares + first.clamp_(min=0.0).unsqueeze(2) * self.state.spread[:, None, :, None]
        if own is not None:
            squares = squares + own + self._added_squares.mT.unsqueeze(1) @ keys.square()
        bound = squares.sqrt() * CONFIDENCE + self.step
        if self._common_of_tokens is not None:
            bound = bound + self._common_of_tokens[:, tokens].unsqueeze(-1)
        return Bounded(value, bound.expand_as(value))

    def _decayed_keys(self, tokens: list[int]) -> torch.Tensor:
        """Keys as they are in the states behind some tokens, ``[heads, some, tokens, key_dim]``; later ones are 0."""
        if self._weighted is not None:
            return self._weighted[:, tokens]
        return self.key.unsqueeze(1) * self._decays[:, tokens].unsqueeze(-1)

    def _written(self, keys: torch.Tensor, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The states behind some tokens, and the squared scales of roundings of their elements."""
        kept = self.state.value.unsqueeze(1) * self.grown[:, tokens].unsqueeze(2)
        new = self.added.mT.unsqueeze(1) @ keys
        if not self.narrow:
            return kept.add_(new), None
        own = self._added_alone.mT.unsqueeze(1) @ keys.square()
        own.addcmul_(kept, kept).addcmul_(new, new)
        value = kept.add_(new)
        return value, own.addcmul_(value, value).mul_(self.rounding)

    @cached_property
    def _added_alone(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: squares of what tokens add."""
        return self.added.square()

    @cached_property
    def _state_squares(self) -> torch.Tensor:
        """``[heads, key_dim, value_dim]``: squares of the first state."""
        return self.state.value.square().mT

    @cached_property
    def _read_squares(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared scales of what the first state is read with, over that of a rounding: by queries, and by tokens.

        They are sums over the state, ``[heads, tokens, value_dim]``; keys that a token takes off are off by their own
        rounding and by that of what they are made of.
        """
        keys = self._turned_keys.square() + self._inverse_squares @ self.grown_keys.square()
        rows = torch.cat([self.grown_query.square(), keys], dim=1) @ self._state_squares
        tokens = keys.shape[1]
        return rows[:, :tokens], rows[:, tokens:]

    @cached_property
    def _inverse_squares(self) -> torch.Tensor:
        """``[heads, tokens, tokens]``: squares of the inverse."""
        return self.inverse.square()

    @cached_property
    def _added_squares(self) -> torch.Tensor:
        """Squared scale of the error of what each token adds, of the roundings of a calculation in chunks.

        They are, in order: of the products of keys, of the inverse, of the wanted values and what became of them, of
        the grown keys and what became of them, and of what is taken off and is left.
        """
        wanted, off = self.wanted.square(), self._off
        squares = torch.baddbmm(wanted, self.alike.square(), self._added_alone).addcmul_(self.weighed, self.weighed)
        squares = self._inverse_squares @ squares
        if self.key.shape[1] > HALF:
            squares[:, HALF:] += self._corner_squares @ wanted[:, :HALF]
        squares += self._read_squares[1]
        made = self.added + off
        squares.addcmul_(made, made).addcmul_(off, off).add_(self._added_alone)
        return squares.mul_(self.rounding)

    @cached_property
    def _corner_squares(self) -> torch.Tensor:
        """Squared scale of the error of the corner of the inverse, beyond that of its own rounding.

        An inverse of more than ``HALF`` rows is put together of two, whose roundings go through two products.
        """
        upper, lower = slice(HALF), slice(HALF, None)
        squares, below = self._inverse_squares, self.alike[:, lower, upper]
        once = (below @ self.inverse[:, upper, upper]).square()
        return 2 * squares[:, lower, lower] @ torch.baddbmm(once, below.square(), squares[:, upper, upper])

    def _narrow_outputs(self, inner: torch.Tensor) -> torch.Tensor:
        """Squared scale of the errors of outputs that come from roundings of a calculation in chunks."""
        squares = self._read_squares[0].addcmul(self.old, self.old).addcmul_(inner, inner).mul_(self.rounding)
        added = torch.add(self._added_squares, self._added_alone, alpha=2 * self.rounding)
        return squares.baddbmm_(self.scores.square(), added)

    @staticmethod
    def _sum_error(terms: int) -> float:
        """Scale of the error of a float32 sum, with respect to the lengths of what is multiplied."""
        return math.sqrt(terms) * FLOAT32_ROUNDOFF

    @cached_property
    def _key_squares(self) -> torch.Tensor:
        """``[heads, tokens, 1]``: squared lengths of keys."""
        return self.key.square().sum(dim=-1, keepdim=True)

    @cached_property
    def _stretch(self) -> torch.Tensor | None:
        """``[heads, tokens, 1]``: how much longer a token may make an error; None where none does."""
        stretch = (1 - self.beta * self._key_squares).abs()
        return None if float(stretch.max()) <= 1 else stretch.clamp_(min=1.0)

    @cached_property
    def _between(self) -> torch.Tensor:
        """``[heads, tokens, tokens]``: how much of an error that a token makes is left at a later one, at most."""
        if self._stretch is None:
            return self._decays
        stretch = self._stretch.log().cumsum(dim=1)
        return self._decays * (stretch - stretch.mT).tril().exp()

    @cached_property
    def _largest_grown(self) -> torch.Tensor:
        """``[heads, tokens, 1]``: the largest decay of a column of the first state."""
        return self.grown if self.grown.shape[-1] == 1 else self.grown.amax(dim=-1, keepdim=True)

    @cached_property
    def _lengths_added(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: lengths of the rows that tokens add."""
        return self.added.abs() * self._key_squares.sqrt()

    @cached_property
    def _reach(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: at least the length of each row of the state behind a token."""
        rows = self.state.value.norm(dim=-1).unsqueeze(1)
        return torch.baddbmm(self._largest_grown * rows, self._decays, self._lengths_added)

    @cached_property
    def _reach_squares(self) -> torch.Tensor:
        return self._reach.square()

    @cached_property
    def _spread_of_tokens(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: spread of the rows of states that float32 makes, token after token.

        A token multiplies the state by decays and adds to it; what it adds has the error of its sum, along the key.
        """
        read = self.beta * self._key_squares * self._sum_error(self.key.shape[-1])
        own, factor = self._reach + self._lengths_added, PRODUCTS * FLOAT32_ROUNDOFF
        squares = (self._reach_squares * read.square()).addcmul_(own, own, value=factor * factor)
        return self._between.square() @ squares

    @cached_property
    def _common_of_tokens(self) -> torch.Tensor | None:
        """``[heads, tokens, value_dim]``: lengths of the errors of rows that have a sign in common; None for none."""
        largest = self.gates.abs().amax(dim=-1, keepdim=True)
        decays = bool(largest.any())
        if not (decays or self.raw):
            return None if self.state.is_exact else self._first_common()
        own = torch.where(largest > 0, EXPONENTIAL_FUNCTION_ERROR, 0.0) + largest * (GATE_ROUNDINGS * FLOAT32_ROUNDOFF)
        if self.raw:
            own += RAW_ROUNDINGS * FLOAT32_ROUNDOFF
        reach = self._reach * own
        if self.state.is_exact:
            return self._between @ reach
        return torch.baddbmm(self._first_common(), self._between, reach)

    def _first_common(self) -> torch.Tensor:
        """What an error of the first state may have become, by its decays."""
        turn = self._largest_grown
        if self._stretch is not None:
            turn = turn * self._stretch.cumprod(dim=1)
        return turn * self.state.common.unsqueeze(1)
