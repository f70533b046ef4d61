"""Pools that are larger than numbers of 32 bits count: the pages that are used lie behind 2**31 elements.

The memory before them is mapped and never written, so that a case costs address space and the time to read zeros. A
kernel whose offsets are int32 reads elsewhere there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from npudiff.model.case import axis

ELEMENTS = 2**31
"""Elements before the first page that is used."""

_BYTES = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def far_pool_axis() -> Any:  # noqa: ANN401 - a field of bool
    """Declare the field ``far_pool``: drawn where it is asked for only, since its cases read gigabytes of zeros."""
    return axis(
        "whether the pages that are used lie behind 2**31 elements of the pool", (False, True), False, drawn=(False,),
        shown="pages behind 2**31 elements", region="far pool",
    )  # fmt: skip


def pages_before(far: bool, page_elements: int) -> int:
    """Return the pages that lie before those that are used; none where the pool is not far."""
    return -(-ELEMENTS // page_elements) if far else 0


def behind(pages: torch.Tensor, before: int) -> torch.Tensor:
    """Return pages ``[pages, ...]`` behind as many that are zeros; the same tensor where these are none."""
    if not before:
        return pages
    shape = (before + len(pages), *pages.shape[1:])
    words = _BYTES[pages.dtype.itemsize]
    zeros = np.zeros(
        shape, dtype=str(words).removeprefix("torch.")
    )  # of the system, which maps them when they are used
    pool = torch.from_numpy(zeros).view(pages.dtype)
    pool[before:] = pages
    return pool
