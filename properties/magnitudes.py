"""Numbers near the ends of a dtype: where squares, sums and products leave it although every right result is inside."""

from __future__ import annotations

import torch

LARGE = {torch.float16: 2.0**12, torch.bfloat16: 2.0**100, torch.float32: 2.0**100}
"""Factors for normal numbers of at most 3.7. float16: up to a quarter of its largest number, so that a sum of a few
leaves it where it is not made in float32. Others: squares leave float32."""

SMALL = {torch.float16: 2.0**-18, torch.bfloat16: 2.0**-100, torch.float32: 2.0**-100}
"""Factors for normal numbers. float16: subnormal numbers, which a kernel may lose that takes them for zero; whether a
device keeps those of the wider dtypes is not known, so there only squares vanish."""
