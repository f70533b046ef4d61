"""What the operators of mixtures of experts require of an argument, and how its absence is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from npudiff.device.simulator.errors import DeviceFault, ErrorCode, NotSimulated, OperatorRejected
from npudiff.device.simulator.rotary.requirements import FLOATS, dtype_name

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

__all__ = ["FLOATS", "Requirements", "dtype_name"]


@dataclass(frozen=True)
class Requirements:
    """The requirements of one operator; every method raises ``OperatorRejected`` where one is not met."""

    operator: str
    """Its name, for messages."""

    def rejected(
        self, argument: str, given: object, allowed: str, code: ErrorCode = ErrorCode.PARAMETER
    ) -> OperatorRejected:
        """Return the error for an argument that the operator refuses."""
        return OperatorRejected(self.operator, argument, given, allowed, code)

    def not_simulated(self, argument: str, given: object, simulated: str) -> NotSimulated:
        """Return the error for an argument that the simulator does not implement."""
        return NotSimulated(self.operator, argument, given, simulated)

    def rank(self, argument: str, tensor: Tensor, ranks: Sequence[int], code: ErrorCode = ErrorCode.PARAMETER) -> None:
        """Require one of some ranks."""
        if tensor.dim() not in ranks:
            given = f"of rank {tensor.dim()}, {list(tensor.shape)}"
            raise self.rejected(argument, given, f"rank {' or '.join(map(str, ranks))}", code)

    def shape(self, argument: str, tensor: Tensor, shape: Sequence[int], meaning: str) -> None:
        """Require a shape; ``meaning`` says it in letters."""
        if tuple(tensor.shape) != tuple(shape):
            raise self.rejected(argument, f"of shape {list(tensor.shape)}", f"{list(shape)}, {meaning}")

    def dtype(self, argument: str, tensor: Tensor, names: Sequence[str], code: ErrorCode = ErrorCode.PARAMETER) -> None:
        """Require one of some dtypes, named without ``torch.``."""
        if dtype_name(tensor) not in names:
            raise self.rejected(argument, dtype_name(tensor), " or ".join(names), code)

    def choice(
        self, argument: str, given: int, allowed: Collection[int], code: ErrorCode = ErrorCode.PARAMETER
    ) -> None:
        """Require one of a few numbers."""
        if given not in allowed:
            raise self.rejected(argument, given, " or ".join(map(str, allowed)), code)

    def between(self, argument: str, given: int, low: int, high: int, code: ErrorCode = ErrorCode.PARAMETER) -> None:
        """Require a number from ``low`` to ``high``, both included."""
        if not low <= given <= high:
            raise self.rejected(argument, given, f"{low} to {high}", code)

    def inside(self, argument: str, indices: Tensor, count: int, meaning: str, low: int = 0) -> None:
        """Require the elements of a tensor to be indices of ``count`` things, which ``meaning`` names.

        Hardware does not look; it reads or writes there.

        Raises
        ------
        DeviceFault
            The first element that is not, by its place.
        """
        outside = ((indices < low) | (indices >= count)).nonzero()
        if len(outside):
            where = outside[0].tolist()
            value = indices[tuple(where)].item()
            raise DeviceFault(f"{self.operator}: {argument}{where} is {value}, there are {count} {meaning}")
