"""Checks of operator arguments: one vocabulary, one phrasing and one rule of error codes for all families."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from npudiff.device.simulator.errors import DeviceFault, ErrorCode, NotSimulated, OperatorRejected, UndefinedBehaviour

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor

FLOATS = ("float16", "bfloat16", "float32")
"""Dtypes of most floating arguments."""


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype without ``torch.``."""
    return str(tensor.dtype).removeprefix("torch.")


def _size(size: int) -> str:
    return "any" if size < 0 else str(size)


@dataclass(frozen=True)
class ArgumentChecks:
    """The checks of one operator. They raise ``OperatorRejected`` unless their docstring names another error.

    A check takes the name of an argument, the value, and what is allowed. The error has the ``code`` of the call;
    without one a wrong dtype has ``ErrorCode.PARAMETER``, in every operator, and all else has ``default``.
    """

    operator: str
    """Its name, for messages."""
    default: ErrorCode = field(kw_only=True)
    """The code of a rejection whose check names none."""

    def rejected(
        self, argument: str, given: object, allowed: str, code: ErrorCode | None = None, words: str = ""
    ) -> OperatorRejected:
        """Return the error for an argument that the operator refuses; ``words`` are torch_npu's own."""
        return OperatorRejected(self.operator, argument, given, allowed, code or self.default, words)

    def not_simulated(self, argument: str, given: object, simulated: str) -> NotSimulated:
        """Return the error for an argument that the simulator does not implement."""
        return NotSimulated(self.operator, argument, given, simulated)

    def dtype(self, argument: str, tensor: Tensor, *names: str, code: ErrorCode = ErrorCode.PARAMETER) -> None:
        """Require one of some dtypes, named without ``torch.``."""
        if dtype_name(tensor) not in names:
            raise self.rejected(argument, dtype_name(tensor), " or ".join(names), code)

    def same_dtype(self, argument: str, tensor: Tensor, name: str, other: Tensor) -> None:
        """Require the dtype of another argument, which ``name`` names."""
        if tensor.dtype != other.dtype:
            allowed = f"{dtype_name(other)}, as {name}"
            raise self.rejected(argument, dtype_name(tensor), allowed, ErrorCode.PARAMETER)

    def rank(
        self,
        argument: str,
        tensor: Tensor,
        ranks: int | range | Sequence[int],
        meaning: str = "",
        code: ErrorCode | None = None,
    ) -> None:
        """Require a rank, or one of some; ``meaning`` names the axes."""
        ranks = (ranks,) if isinstance(ranks, int) else ranks
        if tensor.dim() not in ranks:
            listed = f"{ranks[0]} to {ranks[-1]}" if isinstance(ranks, range) else " or ".join(map(str, ranks))
            allowed = f"rank {listed}, {meaning}" if meaning else f"rank {listed}"
            raise self.rejected(argument, f"of rank {tensor.dim()}, {list(tensor.shape)}", allowed, code)

    def shape(
        self, argument: str, tensor: Tensor, *shapes: Sequence[int], meaning: str, code: ErrorCode | None = None
    ) -> None:
        """Require one of some shapes, in which -1 is any size; ``meaning`` says them in letters."""
        given = tuple(tensor.shape)
        for shape in shapes:
            if len(shape) == len(given) and all(want in (-1, size) for want, size in zip(shape, given, strict=True)):
                return
        listed = " or ".join(f"[{', '.join(map(_size, shape))}]" for shape in shapes)
        raise self.rejected(argument, f"of shape {list(given)}", f"{listed}, {meaning}", code)

    def not_empty(self, argument: str, tensor: Tensor, code: ErrorCode | None = None) -> None:
        """Require a tensor with elements."""
        if not tensor.numel():
            raise self.rejected(argument, f"empty, of shape {list(tensor.shape)}", "a tensor with elements", code)

    def even(self, argument: str, tensor: Tensor, axis: int, code: ErrorCode | None = None) -> None:
        """Require an axis that has two halves."""
        if tensor.shape[axis] % 2:
            raise self.rejected(argument, f"of shape {list(tensor.shape)}", f"an even size of axis {axis}", code)

    def contiguous(self, *, code: ErrorCode | None = None, **tensors: Tensor | None) -> None:
        """Require tensors without gaps, where they are given."""
        for argument, tensor in tensors.items():
            if tensor is not None and not tensor.is_contiguous():
                given = f"not contiguous, strides {tensor.stride()}"
                raise self.rejected(argument, given, "a contiguous tensor", code)

    def simulated_contiguous(self, simulated: str, **tensors: Tensor) -> None:
        """Raise ``NotSimulated`` for tensors with gaps, which hardware may take; ``simulated`` says what is taken."""
        for argument, tensor in tensors.items():
            if not tensor.is_contiguous():
                raise self.not_simulated(argument, f"not contiguous, strides {tensor.stride()}", simulated)

    def addressed_as_contiguous(self, **tensors: Tensor | None) -> None:
        """Raise ``UndefinedBehaviour`` for tensors with gaps, where the operator addresses memory as if it had none.

        The documentation forbids such tensors and no source shows a check; vllm-ascend saw wrong rows and
        crashes where its connectors gave them to ``npu_scatter_pa_kv_cache`` and ``npu_gather_pa_kv_cache``.
        """
        for argument, tensor in tensors.items():
            if tensor is not None and not tensor.is_contiguous():
                found = f"{argument} is not contiguous, strides {tensor.stride()} of {list(tensor.shape)}"
                raise UndefinedBehaviour(f"{self.operator}: {found}; the operator reads and writes as if it were")

    def choice(
        self,
        argument: str,
        given: object,
        allowed: Collection[object],
        code: ErrorCode | None = None,
        words: str = "",
    ) -> None:
        """Require one of a few values; ``words`` are torch_npu's own."""
        if given not in allowed:
            raise self.rejected(argument, repr(given), " or ".join(map(repr, allowed)), code, words)

    def between(self, argument: str, given: int, low: int, high: int, code: ErrorCode | None = None) -> None:
        """Require a number from ``low`` to ``high``, both included."""
        if not low <= given <= high:
            raise self.rejected(argument, given, f"{low} to {high}", code)

    def axis(self, argument: str, given: int, rank: int) -> int:
        """Require an axis that a tensor of this rank has, and return it counted from the front."""
        self.between(argument, given, -rank, rank - 1)
        return given % rank

    def indices(self, argument: str, indices: Tensor, count: int, meaning: str, low: int = 0) -> None:
        """Raise ``DeviceFault`` for the first element that is no index of ``count`` things, which ``meaning`` names.

        Hardware does not look; it reads or writes there.
        """
        outside = ((indices < low) | (indices >= count)).nonzero()
        if len(outside):
            where = outside[0].tolist()
            value = indices[tuple(where)].item()
            raise DeviceFault(f"{self.operator}: {argument}{where} is {value}, there are {count} {meaning}")
