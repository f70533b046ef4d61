"""Rows in groups: a list of counts or of cumulative ends, in a tensor that no host looks into.

What is wrong with its content is therefore no rejection: hardware computes something, or faults.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.errors import DeviceFault, UndefinedBehaviour


def group_of_rows(operator: str, argument: str, counts: Tensor, rows: int) -> Tensor:
    """Return the group of each row that is in one; rows after them are in none.

    Parameters
    ----------
    operator, argument : str
        Names for messages.
    counts : Tensor
        [G], integers: how many rows each group has.
    rows : int
        How many rows there are.

    Returns
    -------
    Tensor
        int64, as long as the sum of counts.

    Raises
    ------
    UndefinedBehaviour
        A count is negative.
    DeviceFault
        Groups have more rows than there are.
    """
    if bool((counts < 0).any()):
        raise UndefinedBehaviour(f"{operator}: {argument} gives a group a negative number of rows")
    total = int(counts.sum())
    if total > rows:
        raise DeviceFault(f"{operator}: {argument} counts {total} rows and there are {rows}")
    return torch.repeat_interleave(torch.arange(len(counts)), counts.to(torch.int64))


def counts_of_ends(operator: str, argument: str, ends: Tensor, *, empty_groups: bool) -> Tensor:
    """Return how many rows each group has, of the cumulative ends of groups.

    Parameters
    ----------
    operator, argument : str
        Names for messages.
    ends : Tensor
        [G], integers.
    empty_groups : bool
        Whether two ends may be equal.

    Returns
    -------
    Tensor
        int64, [G].

    Raises
    ------
    UndefinedBehaviour
        Ends do not grow.
    """
    counts = torch.diff(ends.to(torch.int64), prepend=torch.zeros(1, dtype=torch.int64))
    if bool((counts < (0 if empty_groups else 1)).any()):
        how = "do not decrease" if empty_groups else "increase"
        raise UndefinedBehaviour(
            f"{operator}: {argument} is {ends.tolist()}; its cumulative ends {how} on a legal call"
        )
    return counts
