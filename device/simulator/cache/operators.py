"""The operators of this family."""

from __future__ import annotations

from device.simulator.library import Operator

OPERATORS: tuple[Operator, ...] = ()
"""Every operator of the family."""
