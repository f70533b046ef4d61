"""What several cache operators require of an argument, and how its absence is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from npudiff.device.simulator.errors import ErrorCode, NotSimulated, OperatorRejected, UndefinedBehaviour

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Requirements:
    """The requirements of one operator."""

    operator: str
    """Its name, for messages."""

    def rejected(
        self, argument: str, given: object, allowed: str, code: ErrorCode = ErrorCode.TILING
    ) -> OperatorRejected:
        """Return the error for an argument that the operator refuses."""
        return OperatorRejected(self.operator, argument, given, allowed, code)

    def not_simulated(self, argument: str, given: object, simulated: str) -> NotSimulated:
        """Return the error for an argument that the simulator does not implement."""
        return NotSimulated(self.operator, argument, given, simulated)

    def rank(self, argument: str, tensor: Tensor, ranks: tuple[int, ...], meaning: str) -> None:
        """Refuse a tensor of another rank; ``meaning`` names the axes."""
        if tensor.dim() not in ranks:
            allowed = f"rank {' or '.join(map(str, ranks))}, {meaning}"
            raise self.rejected(argument, f"of rank {tensor.dim()}, {list(tensor.shape)}", allowed)

    def shape(self, argument: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
        """Refuse a tensor of another shape; -1 allows any size."""
        sizes = tuple(tensor.shape)
        if len(sizes) != len(shape) or any(want not in (-1, size) for size, want in zip(sizes, shape, strict=True)):
            wanted = ", ".join("any" if want == -1 else str(want) for want in shape)
            raise self.rejected(argument, f"of shape {list(sizes)}", f"[{wanted}], {meaning}")

    def dtype(self, argument: str, tensor: Tensor, names: tuple[str, ...]) -> None:
        """Refuse a tensor of another dtype; names are those of torch, without its prefix."""
        if dtype_name(tensor) not in names:
            raise self.rejected(argument, dtype_name(tensor), ", ".join(names), ErrorCode.PARAMETER)

    def same_dtype(self, argument: str, tensor: Tensor, other: str, model: Tensor) -> None:
        """Refuse a tensor whose dtype is not that of another argument."""
        if tensor.dtype != model.dtype:
            allowed = f"the dtype of {other}, {dtype_name(model)}"
            raise self.rejected(argument, dtype_name(tensor), allowed, ErrorCode.PARAMETER)

    def contiguous(self, **tensors: Tensor | None) -> None:
        """Report tensors with gaps, for operators that address memory as if there were none.

        The documentation forbids such tensors and no source shows a check; vllm-ascend saw wrong rows and
        crashes where its connectors gave them to ``npu_scatter_pa_kv_cache`` and ``npu_gather_pa_kv_cache``.
        """
        for argument, tensor in tensors.items():
            if tensor is not None and not tensor.is_contiguous():
                found = f"{argument} is not contiguous, strides {tensor.stride()} of {list(tensor.shape)}"
                raise UndefinedBehaviour(f"{self.operator}: {found}; the operator reads and writes as if it were")


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a dtype without the prefix."""
    return str(tensor.dtype).removeprefix("torch.")
