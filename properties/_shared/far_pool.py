"""Pools that are larger than numbers of 32 bits count: the pages that are used lie behind 2**31 elements.

The memory before them is mapped and never written, so that a case costs address space and the time to read zeros. A
kernel whose offsets are int32 reads elsewhere there.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from npudiff.model.case import axis

ELEMENTS = 2**31
"""Elements before the first page that is used."""


class Pooled(Protocol):
    """A case of which a pool is built."""

    @property
    def far_pool(self) -> bool:
        """Whether it is far."""

    @property
    def page_size(self) -> int:
        """Tokens per page."""

    @property
    def kv_heads(self) -> int:
        """Heads of a token."""

    @property
    def head_dim(self) -> int:
        """Elements of a key."""

    @property
    def value_head_dim(self) -> int:
        """Elements of a value."""


def far_pool_axis() -> Any:  # noqa: ANN401 - a field of bool
    """Declare the field ``far_pool``: drawn where it is asked for only, since its cases read gigabytes of zeros."""
    return axis(
        "whether the pages that are used lie behind 2**31 elements of the pool", (False, True), False, drawn=(False,),
        shown="pages behind 2**31 elements", region="far pool",
    )  # fmt: skip


def pages_before(case: Pooled) -> int:
    """Return the pages that lie before those that are used, none where the pool is not far.

    They are ``ELEMENTS`` of the larger of both caches.
    """
    page_elements = case.page_size * case.kv_heads * max(case.head_dim, case.value_head_dim)
    return -(-ELEMENTS // page_elements) if case.far_pool else 0


def behind(pages: torch.Tensor, before: int) -> torch.Tensor:
    """Return pages ``[pages, ...]`` behind as many that are zeros; the same tensor where these are none."""
    if not before:
        return pages
    shape = (before + len(pages), *pages.shape[1:])
    zeros = np.zeros(shape, dtype=f"int{8 * pages.dtype.itemsize}")  # torch would write them, the system need not
    pool = torch.from_numpy(zeros).view(pages.dtype)
    pool[before:] = pages
    return pool
