"""How far a device may be off under the gated delta rule, from chunk to chunk.

The bound has two parts that a state hands on to the next chunk.

*Errors that have nothing to do with each other* have a scale: the covariance of the errors of row r of a state is at
most ``spread[r]`` times a matrix ``shape`` of all rows of a head. Tokens turn a row by ``M``, a product of
``e (1 - beta k k^T)``, which forgets what keys overwrite; so the shape behind a chunk is ``M^T shape M`` and, for what
the chunk adds, the identity. An output ``S q`` has an error of variance ``spread * q^T shape q``. Within a chunk what
float32 adds is not turned, since ``1 - beta k k^T`` makes no vector longer while ``0 <= beta |k|^2 <= 2``. Nothing
grows with the number of tokens but the sum of what they add and nothing overwrites.

*Errors that have a sign in common*, of exponentials and of normalisation, are lengths, which add up and decay alike.

*In chunks with decays of channels* (Kimi Team, "Kimi Linear", 2025, section 3) a device rounds where one with decays
of heads does, and in more places, since a decay lies within each term of a product and not behind it. With ``x`` for
``beta k_i`` or ``scale q_i`` and any token n, ``x . (e_ij k_j)`` is ``(x e_in) . (e_nj k_j)``, and both factors may be
narrow: each term of the sum is off by roundings of its own, of scale ``x_c e_ij,c k_jc``, three of them with that of x.
Which n it is, for a chunk or for each part of it, changes what overflows, and no relative error. Keys and queries that
read a state, ``beta k e`` and ``scale q e``, are rounded before the decay and with it, and a state of float32 that a
call begins with where it is read. The inverse, and what comes behind it, is that of heads. This is all: decays are
float32, as gates are, and among what has a sign in common.

Exact values divide nothing by a decay, and overflow nowhere: decays from token to token are exponentials of differences
that are not positive, 64 times 64 of each channel.

Nearly all of this are sums of squares, which need no more than float32; where there is much to compute they are in it,
unless one of the results would be so small or so large that what float32 cannot hold is part of it.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch

from npudiff.reference.bounds import EXPONENTIAL_FUNCTION_ERROR, FLOAT32_ROUNDOFF, underflow_step
from npudiff.reference.gated_delta_tokens import DeltaState, DeltaTokens
from npudiff.reference.spread import CONFIDENCE, rounding_scale

GATE_ROUNDINGS = 8
"""Roundings of float32 of gates that are added up before an exponential is taken of the sum, of the size of that."""

RAW_ROUNDINGS = 8
"""The same of a token's query, key and beta, which have a sign in common: of a norm and a sigmoid."""

PRODUCTS = 4
"""Roundings of float32 in each element of a state, or in the number that makes it, per token."""

LEFT = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Part of its terms from which on what is left of a shape can be told from what a dtype makes of their differences."""

ROUGH_LEAST, ROUGH_MOST = 1e-30, 1e12
"""Squares of scales that float32 holds together with everything that counts in them."""

FACTOR_ROUNDINGS = 3
"""Roundings of a term of a product of rows that decay by channels: of what is multiplied by a decay, and of both
factors with their decays."""

READ_KEY_ROUNDINGS, READ_QUERY_ROUNDINGS = 2, 3
"""Roundings of a term that is read from a state with decays of channels: of a key, before its decay and with it; of a
query the same, and of the state."""

HALF = 32
"""Rows of a triangle that is inverted by substitution; two of them are put together with products."""


class DeltaErrors:
    """Errors of what a chunk computes, in a dtype; methods return None where the dtype does not hold them."""

    def __init__(self, chunk: DeltaTokens, dtype: torch.dtype) -> None:
        self.chunk, self.dtype = chunk, dtype
        self.narrow = 0.0 if chunk.narrow is None else rounding_scale(chunk.narrow)
        self.rounding = self.narrow * self.narrow
        self.step = 0.0 if chunk.narrow is None else underflow_step(chunk.narrow)
        self.by_channel = chunk.narrow is not None and chunk.gates.shape[-1] > 1
        named = (chunk.decays, chunk.grown, chunk.added, chunk.beta, chunk.key_squares)
        self.decays, self.grown, self.added, self.beta, self.key_squares = (one.to(dtype) for one in named)
        first = chunk.state
        self.state, self.spread, self.shape = (one.to(dtype) for one in (first.value, first.spread, first.shape))

    def of_outputs(self, inner: torch.Tensor, turned: torch.Tensor | None) -> torch.Tensor | None:
        """Return bounds of outputs, of which a part is read from tokens and queries turn the first state."""
        key = self.chunk.key
        lengths = self.chunk.query.norm(dim=-1, keepdim=True).to(self.dtype)
        sums = self._sum_error(key.shape[-1] + key.shape[1])
        squares = torch.add(self._spread_of_tokens, self._reach_squares, alpha=sums * sums) * lengths.square()
        if turned is not None:
            turned = turned.to(self.dtype)
            first = (turned @ self.shape).mul_(turned).sum(dim=-1, keepdim=True).clamp_(min=0.0)
            squares.addcmul_(first, self.spread.unsqueeze(1))
        if self.narrow:
            squares += self._narrow_outputs(inner.to(self.dtype))
        if self.by_channel:
            squares += self._channel_outputs()
        if not self._holds(squares):
            return None
        rough = squares.sqrt_().mul_(CONFIDENCE)
        if self._common_of_tokens is not None:
            rough.addcmul_(lengths, self._common_of_tokens)
        bound: torch.Tensor = rough.to(torch.float64)
        return bound.add_(self.step) if self.step else bound

    def after(self, value: torch.Tensor, keys: torch.Tensor) -> DeltaState | None:
        """Return the state behind the last token, of which the numbers and the decayed keys in it are given."""
        added, keys = self._spread_of_tokens[:, -1], keys.to(self.dtype)
        largest = torch.ones((), dtype=self.dtype)
        if self.narrow:
            own = self._own(value.unsqueeze(1), keys, [-1])[:, 0] + added.unsqueeze(-1)
            added = torch.maximum(own.amax(dim=-1), self._added_squares.amax(dim=1))
            if self.by_channel:  # columns that have decayed by the end of a chunk have errors of their own size
                largest = (own / added.clamp(min=torch.finfo(self.dtype).tiny).unsqueeze(-1)).amax(dim=1)
        # What tokens add is off along their keys: in the shape are the keys, and in the spread the largest of them.
        turned = self._turned_shape(keys[:, 0], added) if self._holds(added) else None
        if turned is None:
            return None
        spread, shape = turned
        if self.narrow:
            shape.baddbmm_(keys[:, 0].mT, keys[:, 0])
        shape.diagonal(dim1=1, dim2=2).add_(largest)
        common = torch.zeros_like(spread) if self._common_of_tokens is None else self._common_of_tokens[:, -1]
        return DeltaState(value, spread, shape, common)

    def of_states(self, value: torch.Tensor, keys: torch.Tensor, tokens: list[int]) -> torch.Tensor | None:
        """Return bounds of the states behind some tokens, of which the decayed keys are given."""
        keys = keys.to(self.dtype)
        squares = self._spread_of_tokens[:, tokens].unsqueeze(-1)
        if not self.chunk.state.is_exact:
            turned = self._turn(self.chunk.decayed_keys(tokens), tokens)
            first = (self.shape.unsqueeze(1) @ turned).mul_(turned).sum(dim=2)
            squares = squares + first.clamp_(min=0.0).unsqueeze(2) * self.spread[:, None, :, None]
        if self.narrow:
            squares = squares + self._own(value, keys, tokens) + self._added_squares.mT.unsqueeze(1) @ keys.square()
        if not self._holds(squares):
            return None
        bound = squares.sqrt() * CONFIDENCE + self.step
        if self._common_of_tokens is not None:
            bound = bound + self._common_of_tokens[:, tokens].unsqueeze(-1)
        return bound.to(torch.float64)

    def _holds(self, squares: torch.Tensor) -> bool:
        """Whether nothing that counts in sums of squares is too small, or too large, for the dtype."""
        if self.dtype == torch.float64:
            return True
        least, most = torch.aminmax(squares)
        return float(least) > ROUGH_LEAST and float(most) < ROUGH_MOST

    def _turned_shape(self, keys: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The spread of rows behind a token, and the shape of what is left of the first one's.

        The first state is turned by ``M = D - U^T K``, of decays and as many keys as there are tokens, so that
        ``M^T shape M = D shape D + K^T W + W^T K`` where ``W = U shape U^T K / 2 - U shape D``. Of decays of heads D is
        a number, by which all of this is divided in float32: U by the decays before its tokens, K by those behind them.
        """
        if self.chunk.state.is_exact:
            return added, torch.zeros(self.shape.shape, dtype=self.dtype)
        if self.dtype == torch.float32:
            lost, twice = self._undecayed_products
            factor, keys = self.grown[:, -1].square().squeeze(-1), self.chunk.key.to(self.dtype)
            grown = torch.ones_like(self.grown[:, -1])
        else:
            lost, twice = self._turned_products
            grown, factor = self.grown[:, -1], torch.ones((), dtype=self.dtype)
        taken = twice @ keys
        back = (0.5 * taken).addcmul_(lost, grown.unsqueeze(1), value=-1.0)
        size = self.shape.shape[-1]
        kept = (grown.square() * self.shape.diagonal(dim1=1, dim2=2)).mean(dim=-1)
        left = kept + 2 * (keys * back).sum(dim=(1, 2)) / size
        least = LEFT[self.dtype] * (kept + (keys * taken).sum(dim=(1, 2)) / size)
        if not bool(((left > least) | (least == 0)).all()):
            return None if self.dtype == torch.float32 else self._shape_by_itself(added)
        # Where states decay, the spread of what they were must not stand for what they are.
        whole = (left * factor).clamp(max=1.0)
        spread = torch.maximum(whole.unsqueeze(-1) * self.spread, added)
        # By roots, which are numbers where squares are too small to be.
        root = torch.where(left * factor > 1, factor.rsqrt(), torch.where(left > 0, left, 1.0).sqrt())[:, None, None]
        columns, keys, back = grown.unsqueeze(1) / root, keys / root, back / root
        shape = self.shape * columns * (columns if grown.shape[-1] == 1 else columns.mT)
        return spread, shape.baddbmm_(torch.cat([keys, back], dim=1).mT, torch.cat([back, keys], dim=1))

    def _shape_by_itself(self, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, by the matrix that turns a state, which is known even where next to nothing is left."""
        turned = self._turn(self.chunk.decayed_keys([-1]), [-1])[:, 0]
        shape = turned.mT @ self.shape @ turned
        left = shape.diagonal(dim1=1, dim2=2).mean(dim=-1).clamp(max=1.0)
        spread = torch.maximum(left.unsqueeze(-1) * self.spread, added)
        return spread, shape / torch.where(left > 0, left, 1.0)[:, None, None]

    def _turn(self, keys: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """How some tokens turn the first state, ``[heads, some, key_dim, key_dim]``, a difference of float64."""
        grown = self.chunk.grown[:, tokens].expand(-1, -1, keys.shape[-1])
        turned = torch.diag_embed(grown) - self.chunk.turned_keys.mT.unsqueeze(1) @ keys
        return turned.to(self.dtype)

    @cached_property
    def _turned_products(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``U shape`` and ``U shape U^T``, where U are the keys that tokens take off the first state."""
        turned = self.chunk.turned_keys.to(self.dtype)
        lost = turned @ self.shape
        return lost, lost @ turned.mT

    @cached_property
    def _undecayed_products(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, of U without the decays before its tokens."""
        turned = (self.chunk.turned_keys / self.chunk.grown).to(self.dtype)
        lost = turned @ self.shape
        return lost, lost @ turned.mT

    def _own(self, value: torch.Tensor, keys: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """Squared scales of the roundings of the elements of states, and of what they are made of."""
        value = value.to(self.dtype)
        kept = self.state.unsqueeze(1) * self.grown[:, tokens].unsqueeze(2)
        new = value - kept
        own = self._added_alone.mT.unsqueeze(1) @ keys.square()
        return own.addcmul_(kept, kept).addcmul_(new, new).addcmul_(value, value).mul_(self.rounding)

    @cached_property
    def _added_alone(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: squares of what tokens add."""
        return self.added.square()

    @cached_property
    def _state_squares(self) -> torch.Tensor:
        """``[heads, key_dim, value_dim]``: squares of the first state."""
        return self.state.square().mT

    @cached_property
    def _read_squares(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared scales of what the first state is read with, over that of a rounding: by queries, and by tokens.

        They are sums over the state, ``[heads, tokens, value_dim]``; keys that a token takes off are off by their own
        rounding and by that of what they are made of.
        """
        named = (self.chunk.turned_keys, self.chunk.grown_keys, self.chunk.grown_query)
        turned, grown_keys, grown_query = (one.to(self.dtype).square() for one in named)
        of_keys, of_queries = (READ_KEY_ROUNDINGS, READ_QUERY_ROUNDINGS) if self.by_channel else (1, 1)
        keys = turned + of_keys * (self._inverse_squares @ grown_keys)
        rows = torch.cat([of_queries * grown_query, keys], dim=1) @ self._state_squares
        tokens = keys.shape[1]
        return rows[:, :tokens], rows[:, tokens:]

    @cached_property
    def _inverse(self) -> torch.Tensor:
        return self.chunk.inverse.to(self.dtype)

    @cached_property
    def _alike(self) -> torch.Tensor:
        return self.chunk.alike.to(self.dtype)

    @cached_property
    def _inverse_squares(self) -> torch.Tensor:
        """``[heads, tokens, tokens]``: squares of the inverse."""
        return self._inverse.square()

    @cached_property
    def _added_squares(self) -> torch.Tensor:
        """Squared scale of the error of what each token adds, of the roundings of a calculation in chunks.

        They are, in order: of the products of keys, of the inverse, of the wanted values and what became of them, of
        the grown keys and what became of them, and of what is taken off and is left.
        """
        named = (self.chunk.wanted, self.chunk.weighed, self.chunk.off)
        wanted, weighed, off = (one.to(self.dtype) for one in named)
        wanted, alike = wanted.square(), self._alike.square()
        if self.by_channel:
            alike = alike + FACTOR_ROUNDINGS * self._pair_squares[1]
        squares = torch.baddbmm(wanted, alike, self._added_alone).addcmul_(weighed, weighed)
        squares = self._inverse_squares @ squares
        if wanted.shape[1] > HALF:
            squares[:, HALF:] += self._corner_squares @ wanted[:, :HALF]
        squares += self._read_squares[1]
        if self._rounded_squares is not None:
            squares += self.chunk.turned_keys.to(self.dtype).square() @ self._rounded_squares
        made = self.added + off
        squares.addcmul_(made, made).addcmul_(off, off).add_(self._added_alone)
        return squares.mul_(self.rounding)

    @cached_property
    def _corner_squares(self) -> torch.Tensor:
        """Squared scale of the error of the corner of the inverse, beyond that of its own rounding.

        An inverse of more than ``HALF`` rows is put together of two, whose roundings go through two products.
        """
        upper, lower = slice(HALF), slice(HALF, None)
        squares, below = self._inverse_squares, self._alike[:, lower, upper]
        once = (below @ self._inverse[:, upper, upper]).square()
        return 2 * squares[:, lower, lower] @ torch.baddbmm(once, below.square(), squares[:, upper, upper])

    def _narrow_outputs(self, inner: torch.Tensor) -> torch.Tensor:
        """Squared scale of the errors of outputs that come from roundings of a calculation in chunks."""
        old = self.chunk.old.to(self.dtype)
        squares = self._read_squares[0].addcmul(old, old).addcmul_(inner, inner).mul_(self.rounding)
        added = torch.add(self._added_squares, self._added_alone, alpha=2 * self.rounding)
        return squares.baddbmm_(self.chunk.scores.to(self.dtype).square(), added)

    def _channel_outputs(self) -> torch.Tensor:
        """The same, of what decays of channels have alone: of factors of scores, and of a first state of float32."""
        squares = self._pair_squares[0] @ self._added_alone * (FACTOR_ROUNDINGS * self.rounding)
        if self._rounded_squares is not None:
            read = (self.chunk.grown_query - self.chunk.scores @ self.chunk.turned_keys).to(self.dtype).square()
            squares.baddbmm_(read, self._rounded_squares, alpha=self.rounding)
        return squares

    @cached_property
    def _pair_squares(self) -> tuple[torch.Tensor, torch.Tensor]:
        squares = self.chunk.pair_squares
        if squares is None:
            raise AssertionError("decays of heads are no factors of terms")
        scores, alike = (one.to(self.dtype) for one in squares)
        return scores, alike

    @cached_property
    def _rounded_squares(self) -> torch.Tensor | None:
        """``[heads, key_dim, value_dim]``: squares of what of the first state is not narrow yet; None for nothing.

        What a chunk hands on is rounded where it comes to be.
        """
        if not (self.by_channel and self.chunk.state.is_exact and self.chunk.narrow):
            return None
        value = self.chunk.state.value
        off = value.to(self.chunk.narrow).to(value.dtype) != value
        return self._state_squares * off.mT if bool(off.any()) else None

    @staticmethod
    def _sum_error(terms: int) -> float:
        """Scale of the error of a float32 sum, with respect to the lengths of what is multiplied."""
        return math.sqrt(terms) * FLOAT32_ROUNDOFF

    @cached_property
    def _between(self) -> torch.Tensor:
        """``[heads, tokens, tokens]``: how much of an error that a token makes is left at a later one, at most."""
        if self.chunk.stretch is None:
            return self.decays
        stretch = self.chunk.stretch.log().cumsum(dim=1)
        return self.decays * (stretch - stretch.mT).tril().exp()

    @cached_property
    def _largest_grown(self) -> torch.Tensor:
        """``[heads, tokens, 1]``: the largest decay of a column of the first state."""
        return self.grown if self.grown.shape[-1] == 1 else self.grown.amax(dim=-1, keepdim=True)

    @cached_property
    def _lengths_added(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: lengths of the rows that tokens add."""
        return self.added.abs() * self.key_squares.sqrt()

    @cached_property
    def _reach(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: at least the length of each row of the state behind a token."""
        rows = self.state.norm(dim=-1).unsqueeze(1)
        return torch.baddbmm(self._largest_grown * rows, self.decays, self._lengths_added)

    @cached_property
    def _reach_squares(self) -> torch.Tensor:
        return self._reach.square()

    @cached_property
    def _spread_of_tokens(self) -> torch.Tensor:
        """``[heads, tokens, value_dim]``: spread of the rows of states that float32 makes, token after token.

        A token multiplies the state by decays and adds to it; what it adds has the error of its sum, along the key.
        """
        read = self.beta * self.key_squares * self._sum_error(self.chunk.key.shape[-1])
        own, factor = self._reach + self._lengths_added, PRODUCTS * FLOAT32_ROUNDOFF
        squares = (self._reach_squares * read.square()).addcmul_(own, own, value=factor * factor)
        return self._between.square() @ squares

    @cached_property
    def _common_of_tokens(self) -> torch.Tensor | None:
        """``[heads, tokens, value_dim]``: lengths of the errors of rows that have a sign in common; None for none."""
        largest = self.chunk.gates.abs().amax(dim=-1, keepdim=True).to(self.dtype)
        decays = bool(largest.any())
        if not (decays or self.chunk.raw):
            return None if self.chunk.state.is_exact else self._first_common()
        own = torch.where(largest > 0, EXPONENTIAL_FUNCTION_ERROR, 0.0) + largest * (GATE_ROUNDINGS * FLOAT32_ROUNDOFF)
        if self.chunk.raw:
            own += RAW_ROUNDINGS * FLOAT32_ROUNDOFF
        reach = self._reach * own
        if self.chunk.state.is_exact:
            return self._between @ reach
        return torch.baddbmm(self._first_common(), self._between, reach)

    def _first_common(self) -> torch.Tensor:
        """What an error of the first state may have become, by its decays."""
        turn = self._largest_grown
        if self.chunk.stretch is not None:
            turn = turn * self.chunk.stretch.cumprod(dim=1)
        return turn * self.chunk.state.common.to(self.dtype).unsqueeze(1)
