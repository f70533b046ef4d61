"""Schemas of this family, as torch_npu 2.13.0 registers them."""

from __future__ import annotations

SCHEMAS: tuple[str, ...] = ()
"""Every schema of the family."""
