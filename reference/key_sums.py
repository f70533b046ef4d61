"""What attention sums over keys in one pass: relative to the largest score so far, which may rise."""

from __future__ import annotations

import math

import torch

from npudiff.reference.cache_reader import CacheSpan
from npudiff.reference.inexact_keys import InexactKeys

FEW_ROWS = 64
"""Rows up to which reading values costs more than multiplying them: then no narrow copy of them is made."""


class KeySums:
    """Sums over the keys of a tile of rows; all float64.

    A weight is ``exp(score - largest)``. Where the largest score rises, what was summed before shrinks with it
    (M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018).

    Parameters
    ----------
    shape : sequence of int
        KV heads, and rows of all query heads of each.
    value_dim : int
        Elements of a value.
    sinks : torch.Tensor or None
        float64 of the shape: a score of each row that has no value.

    Attributes
    ----------
    largest, mass : torch.Tensor
        ``[kv_heads, rows]``: the largest score, and the sum of the weights of keys.
    value, absolute, by_norm : torch.Tensor
        ``[kv_heads, rows, value_dim]``: sums of weights times values, times absolute values, and these times the norm
        of the token's key.
    norms : torch.Tensor
        ``[kv_heads, rows, 1]``: sums of weights times norms of keys.
    by_scale, logarithms : torch.Tensor
        ``[kv_heads, rows, value_dim or 1]``: sums of weights times their logarithms, with values and without.
    seen : torch.Tensor
        ``[kv_heads, rows of one query head or 1, value_dim]``: sums of the absolute values that a row sees.
    moved : torch.Tensor or None
        Whatever else is a sum of weights times something.
    inexact : InexactKeys or None
        What errors of keys and values come to.
    """

    def __init__(self, shape: tuple[int, ...], value_dim: int, sinks: torch.Tensor | None) -> None:
        self._sinks = torch.full((), -math.inf, dtype=torch.float64) if sinks is None else sinks
        self.largest = self._sinks.expand(shape)
        self.mass = torch.zeros(shape, dtype=torch.float64)
        self.value, self.absolute, self.by_norm, self.by_scale = (
            torch.zeros(*shape, value_dim, dtype=torch.float64) for _ in range(4)
        )
        self.norms, self.logarithms = (torch.zeros(*shape, 1, dtype=torch.float64) for _ in range(2))
        self.seen = torch.zeros(shape[0], 1, value_dim, dtype=torch.float64)
        self.moved: torch.Tensor | None = None
        self.inexact: InexactKeys | None = None
        self._begun = False

    @property
    def total(self) -> torch.Tensor:
        """``[kv_heads, rows]``: the sum of all weights, that of the sink included."""
        return self.mass + torch.exp(self._sinks - finite(self.largest))

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        """Turn scores of more keys, ``[kv_heads, rows, keys]``, into weights in place, and shrink what was summed."""
        before = self.largest
        self.largest = torch.maximum(before, scores.amax(dim=-1))
        if self._begun and bool((self.largest > before).any()):
            self._shrink(before)
        self._begun = True
        weights = scores.sub_(finite(self.largest).unsqueeze(-1)).exp_()
        self.mass += weights.sum(dim=-1)
        return weights

    def _shrink(self, before: torch.Tensor) -> None:
        """Take what was summed relative to a largest score as relative to the one of now."""
        risen = torch.where(before.isneginf(), 0.0, finite(self.largest) - before).unsqueeze(-1)
        by = torch.exp(-risen)
        self.by_scale -= risen * self.value
        self.logarithms -= risen * self.mass.unsqueeze(-1)
        self.mass *= by.squeeze(-1)
        for sums in (self.value, self.absolute, self.by_norm, self.by_scale, self.norms, self.logarithms):
            sums.mul_(by)
        if self.moved is not None:
            self.moved *= by
        if self.inexact is not None:
            self.inexact.shrink(by)

    def add(self, weights: torch.Tensor, cache: CacheSpan, visible: torch.Tensor) -> None:
        """Add keys that have these weights.

        Parameters
        ----------
        weights : torch.Tensor
            ``[kv_heads, rows, keys]``; 0 where a row does not see a key.
        cache : CacheSpan
            The keys and their values.
        visible : torch.Tensor
            float32 ``[rows of one query head or 1, keys]``: 1 where a row sees a key.
        """
        heads, rows, keys = weights.shape
        factors = torch.empty(heads, 2 * rows + len(visible), keys)
        narrow = factors[:, :rows].copy_(weights)
        by_norm = torch.mul(narrow, cache.norms.transpose(1, 2), out=factors[:, rows : 2 * rows])
        factors[:, 2 * rows :] = visible
        self.norms += by_norm.sum(dim=-1, keepdim=True)
        self._add_values(weights, narrow, cache)
        found = torch.matmul(factors, cache.absolute)
        self.absolute += found[:, :rows]
        self.by_norm += found[:, rows : 2 * rows]
        self.seen = self.seen + found[:, 2 * rows :]

    def _add_values(self, weights: torch.Tensor, narrow: torch.Tensor, cache: CacheSpan) -> None:
        """Add values times weights, and times their logarithms; of many rows the latter in float32."""
        rows = weights.shape[1]
        logarithms = torch.xlogy(weights, weights) if rows <= FEW_ROWS else torch.xlogy(narrow, narrow)
        self.logarithms += logarithms.sum(dim=-1, keepdim=True)
        if rows <= FEW_ROWS:
            both = torch.matmul(torch.cat([weights, logarithms], dim=1), cache.values)
            self.value += both[:, :rows]
            self.by_scale += both[:, rows:]
        else:
            self.value += torch.matmul(weights, cache.values)
            self.by_scale += torch.matmul(logarithms, cache.narrow_values)

    def add_moved(self, sums: torch.Tensor) -> None:
        """Add sums of weights times something else of more keys."""
        self.moved = sums if self.moved is None else self.moved + sums

    def add_inexact(self, query: torch.Tensor, weights: torch.Tensor, cache: CacheSpan) -> None:
        """Add keys that have errors; the query is ``[kv_heads, rows, head_dim]`` times the scale."""
        if cache.squares is not None:
            self.inexact = InexactKeys(self.value) if self.inexact is None else self.inexact
            self.inexact.add(query, weights, cache.values, *cache.squares)


def finite(logarithm: torch.Tensor) -> torch.Tensor:
    """What to subtract before an exponential: 0 for rows that see nothing."""
    return torch.where(logarithm.isneginf(), 0.0, logarithm)
