"""What several of these operators require of an argument, and how its absence is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from npudiff.device.simulator.errors import ErrorCode, NotSimulated, OperatorRejected
from npudiff.device.simulator.profiles import active_profile
from npudiff.device.simulator.rotary.requirements import dtype_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Requirements:
    """The requirements of one operator.

    Every method but ``missing`` raises OperatorRejected where a requirement is not met.
    """

    operator: str
    """Its name, for messages."""

    def refuse(self, argument: str, given: object, allowed: str, code: ErrorCode = ErrorCode.PARAMETER) -> NoReturn:
        """Raise OperatorRejected."""
        raise OperatorRejected(self.operator, argument, given, allowed, code)

    def missing(self, argument: str, given: object, simulated: str) -> NoReturn:
        """Raise NotSimulated."""
        raise NotSimulated(self.operator, argument, given, simulated)

    def one_of(
        self, argument: str, given: object, allowed: Sequence[object], code: ErrorCode = ErrorCode.WRAPPER
    ) -> None:
        """Refuse an attribute that is not among those allowed."""
        if given not in allowed:
            self.refuse(argument, repr(given), " or ".join(map(repr, allowed)), code)

    def dtype(self, argument: str, tensor: Tensor, *names: str) -> None:
        """Refuse a tensor of another dtype; names are those of torch, without its prefix."""
        if dtype_name(tensor) not in names:
            self.refuse(argument, dtype_name(tensor), " or ".join(names))

    def rank(self, argument: str, tensor: Tensor, least: int, most: int, code: ErrorCode = ErrorCode.PARAMETER) -> None:
        """Refuse a tensor of fewer or more axes."""
        if not least <= tensor.dim() <= most:
            allowed = f"rank {least}" if least == most else f"rank {least} to {most}"
            self.refuse(argument, f"of rank {tensor.dim()}", allowed, code)

    def shape(self, argument: str, tensor: Tensor, *shapes: Sequence[int], meaning: str) -> None:
        """Refuse a tensor that has none of some shapes; ``meaning`` says them in letters."""
        if tuple(tensor.shape) not in {tuple(shape) for shape in shapes}:
            allowed = f"{' or '.join(str(list(shape)) for shape in shapes)}, {meaning}"
            self.refuse(argument, f"of shape {list(tensor.shape)}", allowed)

    def axis(self, argument: str, given: int, rank: int) -> int:
        """Return an axis counted from the front; refuse one that a tensor of this rank has not."""
        if not -rank <= given < rank:
            self.refuse(argument, given, f"{-rank} to {rank - 1}")
        return given % rank

    def even(self, argument: str, tensor: Tensor, axis: int, code: ErrorCode = ErrorCode.PARAMETER) -> None:
        """Refuse an axis that has no two halves."""
        if tensor.shape[axis] % 2:
            given = f"of shape {list(tensor.shape)}"
            self.refuse(argument, given, f"an even size of axis {axis}", code)

    def contiguous(self, argument: str, tensor: Tensor) -> None:
        """Refuse a tensor with gaps where the profile says that hardware does, for operators documented so."""
        if active_profile().non_contiguous == "rejected" and not tensor.is_contiguous():
            self.refuse(argument, f"not contiguous, strides {tensor.stride()}", "a contiguous tensor")
