"""Floating numbers of 8 and 4 bits.

The grids are those of the OCP formats: float8 e5m2 and e4m3fn, float4 e2m1 and e1m2. Casts saturate: what is larger
than the largest number becomes that, which CANN's kernels rely on where a block's exponent is rounded down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.quantisation import scalar_types as types
from npudiff.device.simulator.quantisation.integers import rounded

RoundMode = Literal["rint", "round", "floor"]

ROUND_MODES: tuple[RoundMode, ...] = ("rint", "round", "floor")
"""Halves to even, halves away from zero, and down."""


@dataclass(frozen=True)
class SmallFloat:
    """A format."""

    name: str
    """As torch and torch_npu spell it."""
    mantissa: int
    """Bits behind the point."""
    lowest_exponent: int
    """Of normal numbers; the numbers below have its step."""
    highest_exponent: int
    """Of the largest number."""
    largest: float
    dtype: torch.dtype
    """Of the tensor: uint8 for pairs of 4 bits, the first number in the lower ones."""

    @property
    def packed(self) -> bool:
        """Whether two numbers lie in a byte."""
        return self.dtype == torch.uint8

    def on_grid(self, values: Tensor, mode: RoundMode = "rint") -> Tensor:
        """Round to numbers that the format has.

        Parameters
        ----------
        values : Tensor
            float32.
        mode : str
            One of ``ROUND_MODES``.

        Returns
        -------
        Tensor
            float32: the sign of zero stays, NaN stays, infinity becomes the largest number.
        """
        magnitude = values.abs().clamp(max=self.largest)
        exponent = (torch.frexp(magnitude).exponent - 1).clamp(min=self.lowest_exponent)
        step = power_of_two(exponent - self.mantissa)
        steps = torch.copysign(magnitude, values) / step
        whole = steps.floor() if mode == "floor" else rounded(steps, _TIES[mode])
        return torch.copysign((whole * step).abs().clamp(max=self.largest), values)

    def cast(self, values: Tensor, mode: RoundMode = "rint") -> Tensor:
        """Round, and return the tensor that an operator gives: float8, or bytes with half the last axis."""
        numbers = self.on_grid(values, mode)
        if not self.packed:
            return numbers.to(self.dtype)
        grid = self._grid()
        codes = torch.bucketize(numbers.abs(), grid).to(torch.uint8) | torch.signbit(numbers).to(torch.uint8) << 3
        codes = codes.where(~numbers.isnan(), torch.tensor(active_profile().nan_as_float4, dtype=torch.uint8))
        return codes[..., ::2] | codes[..., 1::2] << 4

    def numbers(self, tensor: Tensor) -> Tensor:
        """Return what :meth:`cast` gave as float32, unpacked."""
        if not self.packed:
            return tensor.float()
        codes = torch.stack((tensor & 15, tensor >> 4), -1).flatten(-2)
        magnitudes = self._grid()[(codes & 7).long()]
        return torch.where(codes > 7, -magnitudes, magnitudes)

    def _grid(self) -> Tensor:
        """Return the eight magnitudes that 3 bits stand for, in order."""
        per_exponent = 1 << self.mantissa
        subnormal = torch.arange(per_exponent) * 2.0 ** (self.lowest_exponent - self.mantissa)
        exponents = range(self.lowest_exponent, self.highest_exponent + 1)
        normal = [(1 + torch.arange(per_exponent) / per_exponent) * 2.0**exponent for exponent in exponents]
        return torch.cat([subnormal, *normal])


def power_of_two(exponents: Tensor) -> Tensor:
    """Return float32 powers of two for integers from -127 to 127, exactly."""
    bits = (exponents.to(torch.int32) + 127) << 23
    return torch.where(exponents == -127, torch.tensor(1 << 22, dtype=torch.int32), bits).view(torch.float32)


_TIES: dict[RoundMode, Literal["half_to_even", "half_away_from_zero"]] = {
    "rint": "half_to_even",
    "round": "half_away_from_zero",
}

FLOAT8_E5M2 = SmallFloat("float8_e5m2", 2, -14, 15, 57344.0, torch.float8_e5m2)
FLOAT8_E4M3FN = SmallFloat("float8_e4m3fn", 3, -6, 8, 448.0, torch.float8_e4m3fn)
FLOAT4_E2M1 = SmallFloat("float4_e2m1", 1, 0, 2, 6.0, torch.uint8)
FLOAT4_E1M2 = SmallFloat("float4_e1m2", 2, 0, 0, 1.75, torch.uint8)

BY_NUMBER = {
    types.FLOAT8_E5M2: FLOAT8_E5M2,
    types.NPU_FLOAT8_E5M2: FLOAT8_E5M2,
    types.FLOAT8_E4M3FN: FLOAT8_E4M3FN,
    types.NPU_FLOAT8_E4M3FN: FLOAT8_E4M3FN,
    types.NPU_FLOAT4_E2M1: FLOAT4_E2M1,
    types.NPU_FLOAT4_E1M2: FLOAT4_E1M2,
}
"""Formats by the number that a ``dst_type`` has, torch's or torch_npu's."""
