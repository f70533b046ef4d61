"""How a component is usually tested: round shapes, or random ones, plain data, buffers of zeros, pages in order.

``npudiff score`` measures what such tests find. A component says what is ordinary for it; cases are then drawn within
it, with nothing left of borders, needles and poison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from npudiff.model.anything import AnyInputs
from npudiff.model.constraints import Box


def _as_they_are(inputs: AnyInputs) -> AnyInputs:
    return inputs


@dataclass(frozen=True)
class BaselineSpec:
    """What is ordinary for a component."""

    fixed: Box
    """Axis to the round values that tests usually have; all combinations are cases."""
    sizes: Box
    """Axis to the values from which a random loop draws, evenly."""
    plain: Box = field(default_factory=dict)
    """Axis to the values that ordinary data have: no needles, no poison, nothing at a limit."""
    inputs: Callable[[Any], Any] = _as_they_are
    """Inputs to ordinary inputs of the same meaning: pages in order, zeros where nothing is used."""
