"""Group lists: which rows belong to which expert.

They are tensors on the device, so that nothing looks at them before the kernel does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from npudiff.device.simulator.errors import DeviceFault, UndefinedBehaviour

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.argument_checks import ArgumentChecks

ENDS, COUNTS, PAIRS = range(3)
"""Values of ``group_list_type``: where rows end, how many there are, pairs of expert and count."""


class Group(NamedTuple):
    """Rows from ``start`` to before ``stop`` are of ``expert``."""

    expert: int
    start: int
    stop: int


def check_group_list(check: ArgumentChecks, group_list: Tensor, kind: int, experts: int) -> None:
    """Refuse a list of another dtype or shape.

    Raises
    ------
    OperatorRejected
        Naming group_list or group_list_type.
    """
    check.choice("group_list_type", kind, (ENDS, COUNTS, PAIRS))
    check.dtype("group_list", group_list, "int64")
    shape, meaning = ((experts, 2), "[E, 2]") if kind == PAIRS else ((experts,), "[E]")
    check.shape("group_list", group_list, shape, meaning=f"{meaning}, for group_list_type {kind}")


def read_groups(check: ArgumentChecks, group_list: Tensor, kind: int, experts: int, length: int) -> list[Group]:
    """Return the groups that have rows.

    Parameters
    ----------
    check : ArgumentChecks
        Of the operator, for messages.
    group_list : Tensor
        int64 [E], or [E, 2] for pairs, of which the first without rows ends the list.
    kind : int
        ``ENDS``, ``COUNTS`` or ``PAIRS``.
    experts : int
        How many weights there are.
    length : int
        How many rows there are. Groups may end before; what is behind them belongs to nobody.

    Raises
    ------
    UndefinedBehaviour
        Ends decrease, or a count is negative.
    DeviceFault
        Rows or an expert that do not exist.
    """
    if kind == PAIRS:
        used = int((group_list[:, 1] != 0).long().cumprod(0).sum())
        check.indices("group_list", group_list[:used, :1], experts, "experts")
        numbers, counts = group_list[:used, 0].tolist(), group_list[:used, 1]
    else:
        numbers = list(range(experts))
        counts = group_list.diff(prepend=group_list.new_zeros(1)) if kind == ENDS else group_list
    negative = (counts < 0).nonzero()
    if len(negative):
        place = int(negative[0])
        message = f"group {place} of group_list has {int(counts[place])} rows, with group_list_type {kind}"
        raise UndefinedBehaviour(f"{check.operator}: {message}")
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    if total > length:
        message = f"the groups of group_list have {total} rows, there are {length}, with group_list_type {kind}"
        raise DeviceFault(f"{check.operator}: {message}")
    bounds = [0, *ends.tolist()]
    found = zip(numbers, bounds[:-1], bounds[1:], strict=True)
    return [Group(*group) for group in found if group[2] > group[1]]


def from_ends(ends: list[int]) -> list[Group]:
    """Return all groups of a list of ends on the host, those without rows too."""
    bounds = [0, *ends]
    return [Group(number, bounds[number], end) for number, end in enumerate(ends)]
