"""One tile of attention: consecutive rows of one request against the keys that they see, in float64 with bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from npudiff.reference.bounds import (
    ACCUMULATION_CONFIDENCE,
    EXPONENTIAL_ERROR,
    FLOAT32_ROUNDOFF,
    accumulation_error,
    underflow_step,
    unit_roundoff,
)
from npudiff.reference.cache_reader import CacheReader, CacheSpan
from npudiff.reference.key_sums import KeySums, finite

SCORE_TILE = 2**22
"""Scores that may be in memory at once (32 MiB in float64)."""

CUBIC_EXPONENTIAL_ERROR = 2.0**-13
"""Relative error of a power of two whose fraction is a polynomial of degree 3: the best one is off by 2**-13.4."""

CUBIC_EXPONENTIALS = 2
"""Powers of two in a weight: its own, and one of a running maximum that rose after it."""


class Attended(NamedTuple):
    """What the rows of a tile come to; all float64."""

    output: torch.Tensor
    bound: torch.Tensor
    """``[rows, heads, value_dim]``."""
    lse: torch.Tensor
    lse_bound: torch.Tensor
    """``[rows, heads]``."""
    by_scale: torch.Tensor
    """How the output changes with the logarithm of the scale: ``sum p (s - mean s) v`` with
    scores ``s``, in float32."""


@dataclass(frozen=True)
class AttentionRoundings:
    """Where a device rounds that others do not; it is held to nothing finer, and nobody else is given this room."""

    scaled_query: bool = False
    """Whether the scale is multiplied into the query, which is rounded to its dtype again before the product."""
    weight_sum: bool = False
    """Whether the denominator is the sum of the weights as they were rounded for the product with the values."""
    cubic_exponential: bool = False
    """Whether powers of two are polynomials of degree 3."""
    merges: int = 0
    """Times that a result over some of the keys is rounded to the output's dtype before it is merged, by a float32
    log-sum-exp, into the last one: 1 where all parts are merged at once, parts - 1 where one is merged after the
    other."""


EVERYONE = AttentionRoundings()
"""No rounding but those of every device."""


class AttentionTile:
    """Rows of one request, at consecutive positions, against the keys that they see.

    Tensors inside are ``[kv_heads, group * rows, keys or dim]``: the rows of all query heads that share a KV head lie
    together (query head ``h`` reads KV head ``h // group``).

    Parameters
    ----------
    cache : CacheReader
        Keys and values of the request.
    query : torch.Tensor
        ``[rows, heads, head_dim]``.
    position : int
        Position of the first row; a row at a negative position sees nothing.
    scale, window, sinks, roundings
        As in ``SlidingAttentionInputs``.
    chunked : bool
        Whether a row sees the keys of its own stretch of ``window`` positions, and not the last ``window`` keys.
    """

    def __init__(
        self,
        cache: CacheReader,
        query: torch.Tensor,
        position: int,
        scale: float,
        window: int | None,
        sinks: torch.Tensor | None,
        roundings: AttentionRoundings = EVERYONE,
        *,
        chunked: bool = False,
    ) -> None:
        self.cache, self.window, self.roundings, self.chunked = cache, window, roundings, chunked
        self.rows, self.heads, head_dim = query.shape
        self.kv_heads = cache.kv_heads
        self.dtype = query.dtype
        self.query = self._grouped(query.to(torch.float64) * scale)
        self.query_error = self.query.norm(dim=-1) * (accumulation_error(head_dim) + 2 * FLOAT32_ROUNDOFF)
        self.positions = torch.arange(position, position + self.rows).repeat(self.heads // self.kv_heads)
        self.sinks = None
        if sinks is not None:
            self.sinks = self._grouped(sinks.to(torch.float64).expand(self.rows, self.heads).unsqueeze(-1)).squeeze(-1)
        self.first = 0 if window is None else max(0, int(self._oldest_key(torch.tensor(position), window)))
        self.last = max(self.first, position + self.rows)
        cubic = CUBIC_EXPONENTIALS * CUBIC_EXPONENTIAL_ERROR if roundings.cubic_exponential else 0.0
        self.exponential_error = EXPONENTIAL_ERROR + cubic

    def attend(self) -> Attended:
        """Return outputs and LSE of the rows, with their bounds."""
        sums, key_norm = self._sums()
        total = sums.total
        lse = torch.where(total > 0, sums.largest + total.log(), -math.inf)
        share = torch.where(total > 0, 1 / total, 0.0).unsqueeze(-1)
        value, by_scale, logarithms = (one * share for one in (sums.value, sums.by_scale, sums.logarithms))
        absolute, by_norm, norms = (one * share for one in (sums.absolute, sums.by_norm, sums.norms))
        numerator_error, mass_error = self._errors(absolute, by_norm, norms, sums.seen, key_norm)
        numerator_error += self._merged(absolute, lse)
        if sums.moved is not None:
            moved = sums.moved * share
            numerator_error += moved[..., :-1]
            mass_error += moved[..., -1]
        output_bound, lse_bound = self._bounds(value, lse, numerator_error, mass_error)
        if sums.inexact is not None:
            output_bound, lse_bound = sums.inexact.widened(value, output_bound, lse_bound, share)
        by_scale -= value * (logarithms - self._of_sinks(sums, lse))
        return Attended(
            self._ungrouped(value),
            self._ungrouped(output_bound),
            self._ungrouped(lse.unsqueeze(-1)).squeeze(-1),
            self._ungrouped(lse_bound.unsqueeze(-1)).squeeze(-1),
            self._ungrouped(by_scale),
        )

    def _sums(self) -> tuple[KeySums, float]:
        """Go through the keys once: what is summed over them, and the largest norm of one."""
        sums = KeySums(self.query.shape[:2], self.cache.value_dim, self.sinks)
        key_norm = 0.0
        for span in self._spans():
            cache = self.cache.read(*span)
            key_norm = max(key_norm, cache.largest_norm)
            weights = sums.weights(self._scores(span, cache))
            sums.add(weights, cache, self._visible(span))
            if self.roundings.scaled_query:
                sums.add_moved(self._moved_by_query(weights, cache))
            sums.add_inexact(self.query, weights, cache)
        return sums, key_norm

    def _of_sinks(self, sums: KeySums, lse: torch.Tensor) -> torch.Tensor:
        """``[..., 1]``: what a logarithm of a weight is short of as a score, times the share of the sink."""
        if self.sinks is None:
            return torch.zeros(())
        return (sums.largest * torch.exp(self.sinks - finite(lse))).nan_to_num().unsqueeze(-1)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Ranges of keys that fit in memory together."""
        width = max(1, min(SCORE_TILE // (self.heads * self.rows), self.cache.most_keys))
        for start in range(self.first, self.last, width):
            yield start, min(start + width, self.last)

    def _scores(self, span: tuple[int, int], cache: CacheSpan) -> torch.Tensor:
        """Scaled scores of one range of keys, minus infinity where a row does not see the key."""
        scores = torch.matmul(self.query, cache.keys)
        hidden = self._hidden(span)
        if hidden is not None:
            scores.masked_fill_(hidden.repeat(self.heads // self.kv_heads, 1), -math.inf)
        return scores

    def _hidden(self, span: tuple[int, int]) -> torch.Tensor | None:
        """``[rows, keys]``: the keys that a row does not see; None if every row sees all."""
        first, last = span
        own = self.positions[: self.rows]
        oldest = int(own[0])
        if last - 1 <= oldest and (self.window is None or first >= int(self._oldest_key(own[-1], self.window))):
            return None
        keys = torch.arange(first, last)
        hidden = keys > own.unsqueeze(-1)
        if self.window is not None:
            hidden |= keys < self._oldest_key(own, self.window).unsqueeze(-1)
        return hidden

    def _oldest_key(self, positions: torch.Tensor, window: int) -> torch.Tensor:
        """Positions of the first keys that rows at some positions see."""
        return positions // window * window if self.chunked else positions - window + 1

    def _visible(self, span: tuple[int, int]) -> torch.Tensor:
        """float32 ``[rows of a KV head or 1, keys]``: 1 where a row sees a key; one row where each sees all."""
        hidden = self._hidden(span)
        if hidden is None:
            return torch.ones(1, span[1] - span[0])
        return (~hidden).to(torch.float32)

    def _errors(
        self,
        absolute: torch.Tensor,
        by_norm: torch.Tensor,
        norms: torch.Tensor,
        seen: torch.Tensor,
        key_norm: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Errors of the sum of weights times values, and of the sum of weights.

        A score is off by at most ``e = query_error * |k|``: its dot product, by Cauchy-Schwarz, and two roundings of
        the result. Its exponential is then off by ``expm1(e)``, at most ``e * stretch`` since expm1 is convex. The sum
        over absolute values also carries the rounding of the weight when it is cast to the dtype of the values (with
        an absolute part where it underflows; a device may cast it before or after it divides by the sum), and the
        float32 accumulation over the keys. All sums are computed in float32, and widened by what that may lose.
        """
        keys = self.last - self.first
        widened = 1 + 2 * accumulation_error(keys)
        absolute, by_norm, norms = absolute * widened, by_norm * widened, norms * widened
        furthest = self.query_error * key_norm
        stretch = torch.where(furthest > 0, torch.expm1(furthest) / furthest, 1.0)
        score_error = (self.query_error * stretch).unsqueeze(-1)
        rounding = unit_roundoff(self.dtype) + self.exponential_error + accumulation_error(keys)
        numerator = by_norm * score_error * (1 + rounding) + absolute * rounding
        numerator += self._over_groups(seen * (widened * underflow_step(self.dtype)))
        return numerator, (norms * score_error).squeeze(-1)

    def _moved_by_query(self, weights: torch.Tensor, cache: CacheSpan) -> torch.Tensor:
        """What the rounding of a scaled query moves: sums of weights times absolute values, and of weights.

        The elements of a query are rounded independently, so that of each score is off by ``e``, which goes by
        Hoeffding, and its exponential by ``expm1(e)``.
        """
        squares = torch.matmul(self.query.square(), cache.keys.square())
        off = ACCUMULATION_CONFIDENCE * unit_roundoff(self.dtype) * squares.sqrt_()
        weighted = torch.where(weights > 0, weights * torch.expm1(off), 0.0)
        absolute = cache.absolute.to(torch.float64)
        return torch.cat([torch.matmul(weighted, absolute), weighted.sum(dim=-1, keepdim=True)], dim=-1)

    def _merged(self, absolute: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
        """What rounding results over some of the keys adds, each weighted by its share of the sum of exponentials.

        Together they have at most the size of all weights times absolute values. A share is the exponential of a
        difference of float32 log-sum-exps.
        """
        share = EXPONENTIAL_ERROR + 4 * FLOAT32_ROUNDOFF * self._magnitude(lse).unsqueeze(-1)
        once = absolute * (unit_roundoff(self.dtype) + share) + underflow_step(self.dtype)
        return once * self.roundings.merges

    def _magnitude(self, lse: torch.Tensor) -> torch.Tensor:
        """Size of the numbers that a log-sum-exp is computed from."""
        return 1 + math.log(max(1, self.last - self.first)) + torch.where(lse.isneginf(), 0.0, lse).abs()

    def _bounds(
        self, value: torch.Tensor, lse: torch.Tensor, numerator_error: torch.Tensor, mass_error: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds of output and LSE from the errors of numerator and denominator."""
        keys = max(1, self.last - self.first)
        mass = mass_error + self.exponential_error + accumulation_error(keys) + 4 * FLOAT32_ROUNDOFF
        if self.roundings.weight_sum:  # in a sum of at least 1, in units of the largest weight
            mass = mass + unit_roundoff(self.dtype) + keys * underflow_step(self.dtype)
        mass = torch.where(mass < 1, mass / (1 - mass), math.inf)
        quotient = (numerator_error * (1 + mass).unsqueeze(-1)).add_(value.abs() * mass.unsqueeze(-1))
        rounding = unit_roundoff(self.dtype)
        output = quotient * (1 + rounding) + value.abs() * rounding + underflow_step(self.dtype)
        output.masked_fill_(mass.isposinf().unsqueeze(-1), math.inf)  # not 0 times infinity
        sees_nothing = self.positions < 0
        output[:, sees_nothing] = 0.0
        sums = 1 + self.roundings.merges
        return output, torch.where(sees_nothing, 0.0, mass + sums * 4 * FLOAT32_ROUNDOFF * self._magnitude(lse))

    def _grouped(self, rows: torch.Tensor) -> torch.Tensor:
        """``[rows, heads, dim]`` to ``[kv_heads, group * rows, dim]``."""
        return rows.permute(1, 0, 2).reshape(self.kv_heads, -1, rows.shape[-1])

    def _over_groups(self, rows: torch.Tensor) -> torch.Tensor:
        """``[kv_heads, rows or 1, dim]``, the same for all query heads of a KV head, for each of them."""
        return rows if rows.shape[1] == 1 else rows.repeat(1, self.heads // self.kv_heads, 1)

    def _ungrouped(self, grouped: torch.Tensor) -> torch.Tensor:
        """``[kv_heads, group * rows, dim]`` to ``[rows, heads, dim]``."""
        return grouped.reshape(self.heads, self.rows, -1).permute(1, 0, 2)
