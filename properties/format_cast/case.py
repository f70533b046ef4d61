"""Cases of casting a tensor to FRACTAL_NZ and back: what is drawn, and what it says about itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import Axis
from npudiff.properties._shared.moved_data import DTYPES
from npudiff.reference.format_cast import TILE_ROWS, VIEWS, tile_width, tiles

_SIZES = range(1, 2**16 + 1)

AXES = {
    "rank": Axis("axes of the tensor; the last two are a matrix", (2, 3, 4)),
    "leading": Axis("size of an axis before the last two", _SIZES),
    "rows": Axis("rows of a matrix; a tile has 16", _SIZES),
    "columns": Axis("columns of a matrix; a tile has 32 of one byte, else 16", _SIZES),
    "dtype": Axis("dtype of the tensor", tuple(DTYPES)),
    "view": Axis("what of the tensor is cast: all, its later half of rows or columns, or its transpose", VIEWS),
}

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class FormatCastCase:
    """A tensor, and the part of it that is cast."""

    rows: int
    columns: int
    """Sizes of the last two axes."""
    leading: tuple[int, ...] = ()
    """Sizes of the axes before them."""
    dtype: str = "bfloat16"
    view: str = "whole"
    """See the axes."""
    seed: int = 0
    """Seed of the data."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return (*self.leading, self.rows, self.columns)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the tensor."""
        return DTYPES[self.dtype]


def values(case: FormatCastCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {
        "rank": (len(case.shape),),
        "leading": set(case.leading),
        "rows": (case.rows,),
        "columns": (case.columns,),
        "dtype": (case.dtype,),
        "view": (case.view,),
    }


def features(case: FormatCastCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    width = tile_width(case.torch_dtype)
    across, down, _, _ = tiles(case.rows, case.columns, case.torch_dtype)
    checks = {
        "padded": bool(case.rows % TILE_ROWS or case.columns % width),
        "columns padded": case.columns % width != 0,
        "narrower than a tile": case.columns < width,
        "several tiles both ways": min(across, down) > 1,
        "C0 32": width == 32,
        "view": case.view != "whole",
        "several matrices": max(case.leading, default=1) > 1,
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: FormatCastCase) -> str:
    """Return the case as one short line."""
    parts = [
        " x ".join(map(str, case.shape)),
        case.dtype,
        case.view if case.view != "whole" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: FormatCastCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    if not 2 <= len(case.shape) <= 4 or not all(1 <= size <= 65_536 for size in case.shape):
        raise ValueError(f"a tensor has 2 to 4 axes of 1..65536, got {case.shape}")
    if case.dtype not in DTYPES or case.view not in VIEWS or not 0 <= case.seed < 2**63:
        raise ValueError(f"unknown dtype or view, or seed out of range: {case.dtype}, {case.view}, {case.seed}")
    if math.prod(case.leading) * tiles_elements(case) > _MAX_ELEMENTS:
        raise ValueError(f"the storage would have more than {_MAX_ELEMENTS} elements")


def tiles_elements(case: FormatCastCase) -> int:
    """Return the elements of one matrix in FRACTAL_NZ, padding included."""
    return math.prod(tiles(case.rows, case.columns, case.torch_dtype))
