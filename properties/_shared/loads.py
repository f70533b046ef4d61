"""Groups that have as many rows: what a kernel takes for one batched product, and what only looks like it."""

from __future__ import annotations

import torch


def equal_groups(rows: int, groups: int, *, but_two: bool) -> torch.Tensor:
    """Return as many rows for each group, int64 ``[groups]``; rows that cannot be divided so are nobody's.

    Parameters
    ----------
    rows, groups : int
        How many there are.
    but_two : bool
        Whether the third group has one row of the second, where there are three: the first and the last one, and the
        sum, are then those of equal groups.
    """
    counts = torch.full((groups,), rows // groups)
    if but_two and groups > 2 and rows >= groups:
        counts[1:3] += torch.tensor([-1, 1])
    return counts
