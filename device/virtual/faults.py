"""Faults on request, for tests of everything above the device: lost devices, hangs, exhausted memory, wrong values."""

from __future__ import annotations

from typing import Any


def before(operator: str) -> None:
    """Let what was asked for happen to a call that begins."""


def after(operator: str, result: Any) -> None:  # noqa: ANN401
    """Let what was asked for happen to a result."""
