"""What a case of a padded batch is: one frozen descriptor of a buffer of chunks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import Axis, check_axes
from npudiff.properties._shared import rows
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
POISONS = ("stale", "large", "nan", "infinite")
"""What padded rows hold, and their weights: numbers as of any row, 4096, NaN, or infinity."""
EARLIER = ("all", "none")
"""How many rows were real in the batch before: all of a chunk, or none."""

AXES = {
    "ranks": Axis("chunks of the buffer", range(1, 65)),
    "chunk": Axis("rows of a chunk, padded ones included", range(1, 2**16 + 1)),
    "split": Axis("whether a chunk is a later part of a batch that was split over ranks", (False, True)),
    "experts": Axis("experts of the model", range(1, 2049)),
    "chosen": Axis("experts of a row", range(1, 513)),
    "width": Axis("elements of a row", range(1, 2**16 + 1)),
    "dtype": Axis("dtype of states and weights", tuple(DTYPES)),
    "poison": Axis("what padded rows hold", POISONS),
    "earlier": Axis("rows that were real in the batch before", EARLIER),
    "rows": rows.AXIS,
}

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class Batch:
    """Where a chunk comes from: how many rows of its batch are real, and with which row of it the chunk begins."""

    total: int
    offset: int = 0


@dataclass(frozen=True)
class PaddedTokensCase:
    """One call, as the batches of its chunks, sizes, and what padding holds; see the axes for their meaning."""

    batches: tuple[Batch, ...]
    chunk: int = 2
    experts: int = 4
    chosen: int = 1
    width: int = 64
    dtype: str = "bfloat16"
    poison: str = "stale"
    earlier: str = "all"
    rows: str = "contiguous"
    seed: int = 0

    @property
    def ranks(self) -> int:
        """Chunks of the buffer."""
        return len(self.batches)

    @property
    def all_rows(self) -> int:
        """Rows of the buffer."""
        return self.ranks * self.chunk

    @property
    def real(self) -> list[int]:
        """Real rows of each chunk."""
        return [min(max(batch.total - batch.offset, 0), self.chunk) for batch in self.batches]


def values(case: PaddedTokensCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    used: dict[str, Collection[object]] = {name: (getattr(case, name, None),) for name in AXES}
    return used | {"split": {batch.offset > 0 for batch in case.batches}}


def features(case: PaddedTokensCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    padded = [real < case.chunk for real in case.real]
    ends = [rank for rank, real in enumerate(case.real) if real]
    checks = {
        "padding": any(padded),
        "real rows are no prefix": any(padded[: ends[-1]]) if ends else False,
        "a rank without real rows": 0 in case.real,
        "no padding": not any(padded),
        "part of a batch": any(batch.offset for batch in case.batches),
        "several experts": case.chosen > 1,
        "nan or infinite": any(padded) and case.poison in ("nan", "infinite"),
        "sliced rows": case.rows == "sliced" and case.all_rows > 1,
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: PaddedTokensCase) -> str:
    """Return the case as one short line."""
    chunks = [_described(case, rank) for rank in range(min(case.ranks, 4))]
    parts = [
        f"{counted(case.ranks, 'rank')} of {counted(case.chunk, 'row')}",
        ", ".join(chunks) + (", …" if case.ranks > len(chunks) else ""),
        f"to {case.chosen} of {case.experts}",
        f"width {case.width}",
        case.dtype,
        case.poison if case.poison != "stale" else "",
        f"{case.earlier} before" if case.earlier != "all" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def _described(case: PaddedTokensCase, rank: int) -> str:
    batch = case.batches[rank]
    if not batch.offset and batch.total <= case.chunk:
        return f"{batch.total} real"
    return f"{case.real[rank]} real (from {batch.offset} on of {batch.total})"


def check_case(case: PaddedTokensCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    if not 1 <= case.ranks <= 64:
        raise ValueError(f"ranks must lie in 1..64, got {case.ranks}")
    check_axes(case, AXES)
    if case.chosen > case.experts:
        raise ValueError(f"chosen must lie in 1..{case.experts}, got {case.chosen}")
    for batch in case.batches:
        if not 0 <= batch.total < 2**31 or not 0 <= batch.offset < 2**31:
            raise ValueError(f"total and offset of a batch must lie in 0..2**31 - 1, got {batch}")
    if case.all_rows * max(case.chosen * case.width, case.experts) > _MAX_ELEMENTS:
        raise ValueError(f"there would be more than {_MAX_ELEMENTS} elements")
