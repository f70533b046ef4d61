"""One tile of attention: consecutive rows of one request against the keys that they see, in float64 with bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from reference.bounds import (
    EXPONENTIAL_ERROR,
    FLOAT32_ROUNDOFF,
    accumulation_error,
    underflow_step,
    unit_roundoff,
)
from reference.paged_kv import PagedKV

SCORE_TILE = 2**23
"""Scores that may be in memory at once (64 MiB in float64)."""

CACHE_TILE = 2**22
"""Elements of keys and values that may be converted to float64 at once."""


class AttentionTile:
    """Rows of one request, at consecutive positions, against the keys that they see.

    Tensors inside are ``[kv_heads, group * rows, keys or dim]``: the rows of all query heads that share a KV head lie
    together (query head ``h`` reads KV head ``h // group``).

    Parameters
    ----------
    kv : PagedKV
        The pool that is read.
    request : int
        Row of the block table.
    query : torch.Tensor
        ``[rows, heads, head_dim]``.
    position : int
        Position of the first row; a row at a negative position sees nothing.
    scale, window, sinks
        As in ``SlidingAttentionInputs``.
    """

    def __init__(
        self,
        kv: PagedKV,
        request: int,
        query: torch.Tensor,
        position: int,
        scale: float,
        window: int | None,
        sinks: torch.Tensor | None,
    ) -> None:
        self.kv, self.request, self.scale, self.window = kv, request, scale, window
        self.rows, self.heads, self.head_dim = query.shape
        self.kv_heads, self.value_dim = kv.value.shape[2:]
        self.dtype = query.dtype
        self.query = self._grouped(query.to(torch.float64))
        group = self.heads // self.kv_heads
        self.positions = torch.arange(position, position + self.rows).repeat(group)
        self.sinks = None
        if sinks is not None:
            self.sinks = self._grouped(sinks.to(torch.float64).expand(self.rows, self.heads).unsqueeze(-1)).squeeze(-1)
        self.first = 0 if window is None else max(0, position - window + 1)
        self.last = max(self.first, position + self.rows)

    def attend(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return output, its bound ``[rows, heads, value_dim]``, LSE and its bound ``[rows, heads]``."""
        spans = list(self._spans())
        scores = [self._scores(span) for span in spans[:1]]
        lse = self._log_sum_exp(spans, scores)
        finite_lse = torch.where(lse.isneginf(), 0.0, lse).unsqueeze(-1)
        value = torch.zeros(*lse.shape, self.value_dim, dtype=torch.float64)
        twin, mass_error = torch.zeros_like(value), torch.zeros_like(lse)
        for index, span in enumerate(spans):
            tile = scores[0] if index == 0 else self._scores(span)
            keys, values = (cache.to(torch.float64).transpose(0, 1) for cache in self.kv.read(self.request, *span))
            weights = torch.exp(tile - finite_lse)
            value += torch.matmul(weights, values)
            error = torch.expm1(self._score_error(keys, tile))
            mass_error += (weights * error).sum(dim=-1)
            twin += self._numerator_error(weights, error, tile, values)
        output_bound, lse_bound = self._bounds(value, lse, twin, mass_error)
        return (
            self._ungrouped(value),
            self._ungrouped(output_bound),
            self._ungrouped(lse.unsqueeze(-1)).squeeze(-1),
            self._ungrouped(lse_bound.unsqueeze(-1)).squeeze(-1),
        )

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Ranges of keys that fit in memory together."""
        width = min(
            SCORE_TILE // (self.heads * self.rows),
            CACHE_TILE // (self.kv_heads * (self.head_dim + self.value_dim)),
        )
        for start in range(self.first, self.last, max(1, width)):
            yield start, min(start + max(1, width), self.last)

    def _scores(self, span: tuple[int, int]) -> torch.Tensor:
        """Scaled scores of one range of keys, minus infinity where a row does not see the key."""
        keys = self.kv.read(self.request, *span)[0].to(torch.float64).permute(1, 2, 0)
        scores = torch.matmul(self.query, keys).mul_(self.scale)
        distance = self.positions.unsqueeze(-1) - torch.arange(*span)
        hidden = distance < 0
        if self.window is not None:
            hidden |= distance >= self.window
        return scores.masked_fill_(hidden, -math.inf)

    def _log_sum_exp(self, spans: list[tuple[int, int]], first: list[torch.Tensor]) -> torch.Tensor:
        lse = torch.full(self.query.shape[:2], -math.inf, dtype=torch.float64)
        for index, span in enumerate(spans):
            lse = torch.logaddexp(lse, torch.logsumexp(first[0] if index == 0 else self._scores(span), dim=-1))
        return lse if self.sinks is None else torch.logaddexp(lse, self.sinks)

    def _score_error(self, keys: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """How far a float32 score may be off: its dot product, by Cauchy-Schwarz, and two roundings of the result."""
        query_norms = self.query.norm(dim=-1, keepdim=True) * (abs(self.scale) * accumulation_error(self.head_dim))
        rounding = torch.where(scores.isneginf(), 0.0, scores).abs_().mul_(2 * FLOAT32_ROUNDOFF)
        return rounding.add_(query_norms * keys.norm(dim=-1).unsqueeze(1))

    def _numerator_error(
        self, weights: torch.Tensor, score_error: torch.Tensor, scores: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Error of the sum of weights times values: the same sum over absolute values, times what rounds.

        Rounding points: the score and its exponential, the weight when it is cast to the dtype of the values (with an
        absolute part where it underflows; a device may cast it before or after it divides by the sum), and the float32
        accumulation over the keys.
        """
        keys = self.last - self.first
        rounding = unit_roundoff(self.dtype) + EXPONENTIAL_ERROR + accumulation_error(keys)
        per_key = weights * (score_error + rounding)
        per_key += torch.where(scores.isneginf(), 0.0, underflow_step(self.dtype))
        return torch.matmul(per_key, values.abs())

    def _bounds(
        self, value: torch.Tensor, lse: torch.Tensor, twin: torch.Tensor, mass_error: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds of output and LSE from the errors of numerator and denominator."""
        keys = max(1, self.last - self.first)
        mass = mass_error + EXPONENTIAL_ERROR + accumulation_error(keys) + 4 * FLOAT32_ROUNDOFF
        mass = torch.where(mass < 1, mass / (1 - mass), math.inf)
        quotient = (twin * (1 + mass).unsqueeze(-1)).add_(value.abs() * mass.unsqueeze(-1))
        rounding = unit_roundoff(self.dtype)
        output = quotient * (1 + rounding) + value.abs() * rounding + underflow_step(self.dtype)
        output.masked_fill_(mass.isposinf().unsqueeze(-1), math.inf)  # not 0 times infinity
        sees_nothing = self.positions < 0
        output[:, sees_nothing] = 0.0
        magnitude = 1 + math.log(keys) + torch.where(lse.isneginf(), 0.0, lse).abs()
        return output, torch.where(sees_nothing, 0.0, mass + 4 * FLOAT32_ROUNDOFF * magnitude)

    def _grouped(self, rows: torch.Tensor) -> torch.Tensor:
        """``[rows, heads, dim]`` to ``[kv_heads, group * rows, dim]``."""
        return rows.permute(1, 0, 2).reshape(self.kv_heads, -1, rows.shape[-1])

    def _ungrouped(self, grouped: torch.Tensor) -> torch.Tensor:
        """``[kv_heads, group * rows, dim]`` to ``[rows, heads, dim]``."""
        return grouped.reshape(self.heads, self.rows, -1).permute(1, 0, 2)
