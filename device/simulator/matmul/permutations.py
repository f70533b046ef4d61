"""Orders of three axes: 0 is the batch, and the others are multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode

Order = tuple[int, int, int]

AS_IS: Order = (0, 1, 2)
BATCH_SECOND: Order = (1, 0, 2)
LAST_TWO_SWAPPED: Order = (0, 2, 1)


@dataclass(frozen=True)
class Orders:
    """How the axes of both inputs and of the output lie."""

    x1: Order
    x2: Order
    y: Order

    def operands(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B, M, K] and [B, K, N]."""
        return x1.permute(self.x1), x2.permute(self.x2)

    def sizes(self, x1: Tensor, x2: Tensor) -> tuple[int, int, int, int]:
        """Return B, M, K and N."""
        left, right = self.operands(x1, x2)
        return (*left.shape, right.shape[2])


def checked(check: ArgumentChecks, argument: str, given: Sequence[int] | None, *allowed: Order) -> Order:
    """Return an order of axes that is allowed; ``given`` None is the first of these.

    Raises
    ------
    OperatorRejected
        Another order, in torch_npu's words.
    """
    order = allowed[0] if given is None or not len(given) else tuple(given)
    if order not in allowed:
        listed = " or ".join(str(list(one)) for one in allowed)
        raise check.rejected(argument, list(given or ()), listed, ErrorCode.WRAPPER, f"{argument} should be {listed}")
    return allowed[allowed.index(order)]


def split_batch(y: Tensor, factor: int) -> Tensor:
    """Return [M, B, N] as it is for factor 1, otherwise as [factor, M, B * N / factor]."""
    if factor == 1:
        return y
    rows, batch, columns = y.shape
    return y.reshape(rows, factor, batch // factor * columns).transpose(0, 1)


def output_shape(sizes: tuple[int, int, int, int], factor: int) -> tuple[int, int, int]:
    """Return the shape of :func:`split_batch` for sizes B, M, K and N."""
    batch, rows, _, columns = sizes
    return (rows, batch, columns) if factor <= 1 else (factor, rows, batch * columns // factor)
