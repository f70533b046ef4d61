"""How the rows of tensors lie: one after the other, or as slices of wider ones."""

from __future__ import annotations

from typing import Any

import torch

from npudiff.model import case as declared
from npudiff.model.anything import AnyCase
from npudiff.reference.views import sliced

COUNTS = range(1, 2**17 + 1)
"""Rows that a case may have: beyond a grid of 65,535 blocks."""

SEVERAL = COUNTS[1:]
"""Rows that may change places."""

ROWS = ("contiguous", "sliced")
"""sliced: states are slices of wider rows, as those of a fused projection are; tables, positions and slots as well."""

GAPS = (24, 40, 56)
"""Elements before the first row of a slice, and between its rows. Tensors that stand side by side have a gap each: then
the stride of one is wrong for the others, also where they are as wide."""


def with_row_stride(tensor: torch.Tensor, rows: str, gap: int = GAPS[0]) -> torch.Tensor:
    """Return a tensor whose rows lie as the case says; tables that are views already stay as they are."""
    return sliced(tensor, gap) if rows == "sliced" and tensor.is_contiguous() else tensor


def axis(several: str = "") -> Any:  # noqa: ANN401 - a field of text
    """Declare the field ``rows`` of a case; slices are a region where there is more than one of what is named."""

    def region(case: AnyCase) -> str:
        return "sliced rows" if case.rows == "sliced" and (not several or getattr(case, several) > 1) else ""

    return declared.axis(
        "whether rows follow each other, or are slices of wider ones", ROWS, ROWS[0], shown="sliced rows", region=region
    )
