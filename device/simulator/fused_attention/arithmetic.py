"""What the steps of a tiled softmax round: float32 sums, the vector unit's float16, int8 in both products.

Sources: CANN's ``fia_block_vec_nonquant.h`` for :class:`Floats`; ``prompt_flash_attention_s1s2_bns1_x910_base.h`` for
:class:`Halves`, with and without int8; ``incre_flash_attention_preload_mla.h`` for :class:`LatentInt8`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from npudiff.device.simulator.fused_attention.rounding import narrow

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN_SCORE = -1e12
_LOWEST_HALF = -65504.0
_LARGEST = 127.0
_FIXED_POINT = 2.0**-10
_LEAST_PROBABILITY = 2.0**-52


class Arithmetic(Protocol):
    """The steps for one sequence. Tensors are float32, [kv heads, group * rows, ...], with what a step rounded."""

    @property
    def hidden(self) -> float:
        """The score of a hidden key."""

    def scores(self, queries: Tensor, keys: Tensor, rows: range, scale: float) -> Tensor:
        """Multiply queries of some rows by keys [kv heads, keys, dim]; scaled."""

    def shifted(self, scores: Tensor) -> Tensor:
        """Round scores to which a shift has been added."""

    def weigh(self, probabilities: Tensor, values: Tensor) -> Tensor:
        """Multiply the probabilities of a tile by its values [kv heads, keys, dim]."""

    def add(self, weighted: Tensor, rescale: Tensor, product: Tensor) -> Tensor:
        """Rescale what was summed before, and add a tile."""

    def divide(self, weighted: Tensor, total: Tensor) -> Tensor:
        """Divide by the sums of probabilities [..., 1]."""


@dataclass(frozen=True)
class Floats:
    """float32, but for probabilities, which become the dtype of the values."""

    hidden: float = HIDDEN_SCORE

    def scores(self, queries: Tensor, keys: Tensor, rows: range, scale: float) -> Tensor:
        """Multiply and scale."""
        del rows
        return torch.bmm(queries, keys.float().transpose(1, 2)).mul_(scale)

    def shifted(self, scores: Tensor) -> Tensor:
        """Round nothing."""
        return scores

    def weigh(self, probabilities: Tensor, values: Tensor) -> Tensor:
        """Round probabilities before they are normalised."""
        return torch.bmm(narrow(probabilities, values.dtype).float(), values.float())

    def add(self, weighted: Tensor, rescale: Tensor, product: Tensor) -> Tensor:
        """Multiply and add."""
        return product.add_(weighted * rescale)

    def divide(self, weighted: Tensor, total: Tensor) -> Tensor:
        """Divide."""
        return weighted / total


@dataclass(frozen=True)
class ProductScales:
    """What makes numbers of the sums of int8, and int8 of probabilities; one number each."""

    scores: float
    """Multiplies the sums of the first product (``dequant_scale1``)."""
    probabilities: float
    """Multiplies probabilities, which then become int8 (``quant_scale1``)."""
    values: float
    """Multiplies the sums of the second product (``dequant_scale2``)."""


@dataclass(frozen=True)
class Halves:
    """float16 behind every step but the sums of probabilities; with scales both products are of int8."""

    scales: ProductScales | None = None
    hidden: float = _LOWEST_HALF

    def scores(self, queries: Tensor, keys: Tensor, rows: range, scale: float) -> Tensor:
        """Multiply, and scale what has been rounded."""
        del rows
        sums = torch.bmm(queries, keys.float().transpose(1, 2))
        factor = 1.0 if self.scales is None else self.scales.scores
        return _half(_half(sums * factor) * _half_number(scale))

    def shifted(self, scores: Tensor) -> Tensor:
        """Round to float16."""
        return _half(scores)

    def weigh(self, probabilities: Tensor, values: Tensor) -> Tensor:
        """Round probabilities to float16, and on to int8, and their products with the values."""
        half = _half(probabilities)
        if self.scales is None:
            return _half(torch.bmm(half, values.float()))
        integers = _half(half * _half_number(self.scales.probabilities)).round().clamp(-128, 127)
        return _half(torch.bmm(integers, values.float()) * self.scales.values)

    def add(self, weighted: Tensor, rescale: Tensor, product: Tensor) -> Tensor:
        """Multiply, round, add, round."""
        return _half(_half(weighted * _half(rescale)) + product)

    def divide(self, weighted: Tensor, total: Tensor) -> Tensor:
        """Divide by the sums in float16."""
        return _half(weighted / narrow(total, torch.float16).float())


@dataclass(frozen=True)
class LatentInt8:
    """int8 queries and keys with a rotated part in bfloat16 behind them; probabilities become int8 tile by tile.

    Sums of the second product are in float16, in units of 1024; the largest probability of a tile is 127.
    """

    row_scale: Tensor
    """float32 [kv heads, group, rows, 1]: the scale of each query times that of all keys."""
    value_scale: float
    rope_dim: int
    """Columns of the rotated part, the last ones."""
    hidden: float = HIDDEN_SCORE

    def scores(self, queries: Tensor, keys: Tensor, rows: range, scale: float) -> Tensor:
        """Add the product of rotated parts to the exact one of int8, and scale both."""
        plain = queries.shape[-1] - self.rope_dim
        of_keys = keys.float().transpose(1, 2)
        sums = torch.bmm(queries[..., :plain], of_keys[:, :plain]) + torch.bmm(queries[..., plain:], of_keys[:, plain:])
        factor = self.row_scale[:, :, rows.start : rows.stop] * torch.tensor(scale, dtype=torch.float32)
        return sums * factor.reshape(*queries.shape[:2], 1)

    def shifted(self, scores: Tensor) -> Tensor:
        """Return what no form has."""
        return scores

    def weigh(self, probabilities: Tensor, values: Tensor) -> Tensor:
        """Round probabilities to int8 by way of float16, and their products with the values to float16."""
        peak = probabilities.amax(-1, keepdim=True) + _LEAST_PROBABILITY
        integers = _half(probabilities * (_LARGEST / peak)).round().clamp(-128, 127)
        return _half(_half(torch.bmm(integers, values.float()) * _FIXED_POINT) * _half(peak))

    def add(self, weighted: Tensor, rescale: Tensor, product: Tensor) -> Tensor:
        """Multiply, round, add, round."""
        return _half(_half(weighted * _half(rescale)) + product)

    def divide(self, weighted: Tensor, total: Tensor) -> Tensor:
        """Divide, and multiply by the scale of the values, in float32."""
        one = torch.tensor(self.value_scale, dtype=torch.float32) * torch.tensor(1 / _LARGEST, dtype=torch.float32)
        return weighted * (1 / _FIXED_POINT) / total * one


def _half(values: Tensor) -> Tensor:
    return values.half().float()


def _half_number(value: float) -> float:
    return float(torch.tensor(value).half())
