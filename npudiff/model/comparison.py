"""How outputs compare with what is expected: every element's error over its bound, and the largest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OutputComparison:
    """How one output compares."""

    name: str
    """Name of the output."""
    problem: str | None = None
    """A wrong shape or dtype, in words; then nothing else was compared."""
    ratio: torch.Tensor | None = None
    """float64 ``|actual - value| / bound`` of every element; 0 where both are right or the element is not specified,
    infinity where a non-finite or exact element is wrong."""
    actual: torch.Tensor | None = None
    value: torch.Tensor | None = None
    bound: torch.Tensor | None = None
    """What was compared."""
    gain: torch.Tensor | None = None
    most_gain: torch.Tensor | None = None
    """float64, of the shape of ``ratio`` without its last axis: the gain error of each row, and the largest correct
    one; where the reference says so."""

    @cached_property
    def worst(self) -> float:
        """The largest ratio, of an element or of the gain of a row; above 1 is wrong."""
        if self.problem is not None:
            return float("inf")
        return max(_largest(self.ratio), _largest(self.gain_ratio))

    @cached_property
    def gain_ratio(self) -> torch.Tensor | None:
        """The gain error of each row over the largest correct one."""
        if self.gain is None or self.most_gain is None:
            return None
        return self.gain.abs() / self.most_gain

    @property
    def only_gain(self) -> bool:
        """Whether every element is within its bound, and a row is too long or too short."""
        return self.problem is None and self.worst > 1 >= _largest(self.ratio)

    @property
    def wrong(self) -> torch.Tensor | None:
        """Which elements are wrong."""
        return None if self.ratio is None else self.ratio > 1

    @property
    def exact(self) -> bool:
        """Whether the output asks for equality only."""
        return self.bound is not None and not bool(((self.bound > 0) & self.bound.isfinite()).any())


def _largest(ratio: torch.Tensor | None) -> float:
    return float(ratio.max()) if ratio is not None and ratio.numel() else 0.0


@dataclass(frozen=True)
class Comparison:
    """How all outputs of one run compare."""

    outputs: tuple[OutputComparison, ...]
    """One entry per output that the implementation returned."""
    context: str = ""
    """What was compared with what, for a relation; empty for equivalence."""

    @property
    def worst(self) -> float:
        """The largest error over bound of all outputs."""
        return max((output.worst for output in self.outputs), default=0.0)

    @property
    def exact(self) -> bool:
        """Whether every output asks for equality only."""
        return all(output.exact for output in self.outputs)

    @property
    def holds(self) -> bool:
        """Whether every element is within its bound."""
        return self.worst <= 1

    @property
    def worst_output(self) -> OutputComparison:
        """The first output that is wrong, in the component's order; if none is, the one with the largest ratio."""
        wrong = [output for output in self.outputs if output.worst > 1]
        return wrong[0] if wrong else max(self.outputs, key=lambda output: output.worst)


@dataclass(frozen=True)
class Passed:
    """What is left of a comparison that holds, where nobody needs its tensors."""

    worst: float
    """The largest error over bound of all outputs."""
    exact: bool
    """Whether every output asks for equality only."""
    holds: ClassVar[bool] = True
