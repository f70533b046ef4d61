"""Online softmax over tiles of chosen keys, rounding where the kernels for A2 and A3 round.

Sources: ``AmlaVecCompute`` and ``ProcessAmlaNupdate`` of vllm-ascend's ``csrc/attention/sparse_flash_attention``, and
the same place of its ``kv_quant_sparse_flash_attention``, which rescales with factors instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.sparse_attention.rounding import half_away

TILE = 512
"""Slots of keys per tile."""

LOWEST = -2e38
"""The score of a hidden key, and the least maximum."""

_LN2 = math.log(2)
_FRACTION_BITS = 23
_LEAST_SHIFT = -30.0
_SLOPE = 1.5
_NUDGE = 1e-6


@dataclass
class Sums:
    """What a softmax has summed over the tiles so far, for queries [rows, N]."""

    dtype: torch.dtype
    """That of the queries, to which probabilities are rounded."""
    exponents: bool
    """Whether sums of values are in units of powers of two, and are rescaled by adding to their exponents."""
    maximum: Tensor
    """float32 [rows, N, 1]."""
    total: Tensor
    """The same: the sum of probabilities, not rounded."""
    weighted: Tensor
    """float32 [rows, N, dim]: the sum of rounded probabilities times values, in the unit."""
    unit: Tensor
    """float32 [rows, N, 1]: what probabilities were multiplied with."""
    _power: Tensor | None = None
    """float32 [rows, N, 1]: the power of two of the unit; None before the first tile."""
    _rest: Tensor | None = None
    """What rounding the unit left of it."""

    @classmethod
    def start(cls, rows: int, heads: int, dim: int, dtype: torch.dtype, *, exponents: bool) -> Sums:
        """Return the sums of nothing."""
        column = torch.zeros(rows, heads, 1)
        return cls(dtype, exponents, column + LOWEST, column, torch.zeros(rows, heads, dim), column + 1)

    def add(self, scores: Tensor, values: Tensor) -> None:
        """Add a tile: scaled scores [rows, N, keys] and values [rows, keys, dim], float32."""
        maximum = torch.maximum(self.maximum, scores.amax(-1, keepdim=True))
        probabilities = torch.exp(scores - maximum)
        factor = torch.exp(self.maximum - maximum)
        self.total = self.total * factor + probabilities.sum(-1, keepdim=True)
        self.maximum = maximum
        if self.exponents:
            self._change_unit()
            probabilities = probabilities * self.unit
        else:
            self.weighted = self.weighted * factor
        self.weighted = self.weighted + torch.bmm(half_away(probabilities, self.dtype).float(), values)

    def _change_unit(self) -> None:
        """Take the unit of the new maximum: its exponential over the next power of two, rounded to the dtype."""
        quotient = self.maximum * (1 / _LN2)
        power = -torch.floor(quotient.abs() + 0.5).copysign(quotient)
        exact = torch.exp((quotient + power) * _LN2)
        self.unit = half_away(exact, self.dtype).float()
        rest = exact / self.unit
        if self._power is not None and self._rest is not None:
            shift = (power - self._power).clamp(min=_LEAST_SHIFT)
            shift += (self._rest / rest - 1) * _SLOPE + _NUDGE
            self.weighted = _shifted(self.weighted, shift)
        self._power, self._rest = power, rest

    def attention(self) -> Tensor:
        """Return the sums of values divided by those of probabilities, float32 [rows, N, dim]."""
        return self.weighted / (self.total * self.unit)


def _shifted(values: Tensor, shift: Tensor) -> Tensor:
    """Multiply float32 by about ``2 ** shift``: add to the exponents, as integers; 0 remains 0, as what gets too small.

    The kernel starts from 2 ** -80 in place of 0, which has an exponent.
    """
    scaled = shift * 2.0**_FRACTION_BITS
    steps = torch.floor(scaled.abs() + 0.5).copysign(scaled).to(torch.int32)
    bits = values.view(torch.int32)
    magnitude = (bits & 0x7FFFFFFF) + steps
    kept = (values != 0) & (magnitude >= 1 << _FRACTION_BITS)
    return torch.where(kept, (bits + steps).view(torch.float32), 0.0)
