"""Casting a tensor to FRACTAL_NZ and back: its cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, axis, choice, derived, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import same_bits
from npudiff.judge.relations import Changed, relation
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.moved_data import DTYPES, random_bits
from npudiff.properties._shared.rows import COUNTS
from npudiff.reference.format_cast import (
    TILE_ROWS,
    VIEWS,
    FormatCastInputs,
    addresses,
    format_cast,
    part_of,
    tile_width,
    tiles,
)

SIZES = (1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100)
"""Rows and columns: one away from the border of a tile of 16 or 32, and what fits neither."""

LONG_SIZES = (129, 257, 1025, 4097)
"""Rows or columns of many tiles; one of both is small then."""

MOST_ELEMENTS = 2**24
"""Elements of the storage, above which a case is not drawn; it is reached only by sizes that a user asks for."""

WIDEST_TILE = 32
_SAME_SIZE = {"bfloat16": "float16", "float16": "bfloat16", "float32": "int32", "int32": "float32"}


_SIZES = COUNTS


def _sizes(case: FormatCastCase, axis: str) -> Sequence[int]:
    return LONG_SIZES if case.long == axis and not case.far else SIZES


def _draw_leading(choose: Chooser, box: Box, case: FormatCastCase) -> tuple[int, ...]:
    ranks = (2,) if case.huge else (2, 3, 4)
    return tuple(choose.value(box, "leading", (1, 2, 3)) for _ in range(choose.value(box, "rank", ranks) - 2))


@dataclass(frozen=True)
class FormatCastCase(Case):
    """A tensor, and the part of it that is cast."""

    rows: int = axis(
        "rows of a matrix; a tile has 16", _SIZES, drawn=lambda case: _sizes(case, "rows"),
        shown=lambda case: " x ".join(map(str, case.shape)),
    )  # fmt: skip
    columns: int = axis(
        "columns of a matrix; a tile has 32 of one byte, else 16", _SIZES,
        drawn=lambda case: _sizes(case, "columns"), shown="",
    )  # fmt: skip
    leading: tuple[int, ...] = axis(
        "size of an axis before the last two", _SIZES, (), draw=_draw_leading, each=True,
        value=lambda case: set(case.leading), shown="",
    )  # fmt: skip
    dtype: str = axis("dtype of the tensor", tuple(DTYPES), "bfloat16", always=True)
    view: str = axis(
        "what of the tensor is cast: all, its later half of rows or columns, or its transpose", VIEWS, "whole",
        region="view",
    )  # fmt: skip
    seed: int = seed()

    long = choice((*["neither"] * 6, "rows", "columns"))
    outliers = ("rows", "columns")
    huge_axes = ("rows", "columns")
    drawn_first = ("long", "rows", "columns", "dtype", "view", "seed")

    @derived("axes of the tensor; the last two are a matrix", (2, 3, 4))
    def rank(self) -> int:
        """Axes of the tensor."""
        return len(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return (*self.leading, self.rows, self.columns)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the tensor."""
        return DTYPES[self.dtype]

    @property
    def elements(self) -> int:
        """Elements of the storage, padding included."""
        return math.prod(self.leading) * math.prod(tiles(self.rows, self.columns, self.torch_dtype))

    def is_cheap(self) -> bool:
        """See ``DeclaredCase``."""
        return self.elements <= MOST_ELEMENTS

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.elements > 2**26:
            yield f"the storage would have more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        width = tile_width(self.torch_dtype)
        across, down, _, _ = tiles(self.rows, self.columns, self.torch_dtype)
        return {
            "padded": bool(self.rows % TILE_ROWS or self.columns % width),
            "columns padded": self.columns % width != 0,
            "narrower than a tile": self.columns < width,
            "several tiles both ways": min(across, down) > 1,
            "C0 32": width == 32,
            "several matrices": max(self.leading, default=1) > 1,
        }


def build_inputs(case: FormatCastCase) -> FormatCastInputs:
    """Build the tensor of a case; no element of it is 0, which the padding is."""
    return FormatCastInputs(random_bits(Stream(case.seed, "tensor"), case.shape, case.torch_dtype), case.view)


def coordinates(inputs: FormatCastInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return where each element of an output is in the tensor: matrix, row and column, which go on in the padding."""
    if output == "format":
        return {}
    tensor = inputs.tensor
    rows, columns = tensor.shape[-2:]
    across, down, height, width = tiles(rows, columns, tensor.dtype)
    shape = (down * height, across * width) if output == "storage" else (rows, columns)
    place = torch.cartesian_prod(*map(torch.arange, (tensor.numel() // (rows * columns), *shape)))
    places = {name: place[:, axis] for axis, name in enumerate(("matrix", "row", "column"))}
    if output == "values":
        return {name: part_of(numbers.reshape(tensor.shape), inputs.view) for name, numbers in places.items()}
    if output == "storage":
        return {name: _in_storage(numbers.view(-1, *shape), tensor.dtype) for name, numbers in places.items()}
    return places


def _in_storage(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrices of whole tiles, in order of the addresses of their elements."""
    _, rows, columns = matrices.shape
    order = addresses(rows, columns, dtype).flatten().argsort()
    return matrices.flatten(1)[:, order].flatten()


def _matrices_do_not_mix(subject: Subject, case: FormatCastCase) -> Comparison:
    subject.require(replace(case, leading=()), "one matrix")
    inputs = build_inputs(case)
    matrices = inputs.tensor.reshape(-1, case.rows, case.columns)
    alone = [_storage(subject, matrix) for matrix in matrices]
    whole = subject.run(inputs)["storage"]
    return same_bits({"storage": torch.cat(alone)}, {"storage": whole}, "all matrices against one by one")


def _strips_do_not_mix(subject: Subject, case: FormatCastCase) -> Comparison:
    """Cut a matrix between strips of columns; the storages of both parts follow each other."""
    cut = (case.columns - 1) // WIDEST_TILE * WIDEST_TILE
    subject.require(replace(case, columns=cut), "the columns before the cut")
    subject.require(replace(case, columns=case.columns - cut), "the columns behind the cut")
    inputs = build_inputs(case)
    parts = [_storage(subject, part) for part in (inputs.tensor[..., :cut], inputs.tensor[..., cut:])]
    whole = subject.run(inputs)["storage"]
    return same_bits({"storage": torch.cat(parts)}, {"storage": whole}, "the whole against two parts")


def _in_another_dtype(inputs: FormatCastInputs, case: FormatCastCase) -> Changed[FormatCastInputs]:
    other = _SAME_SIZE[case.dtype]

    def storage(outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {"storage": outputs["storage"].view(DTYPES[other])}

    moved = replace(inputs, tensor=inputs.tensor.view(DTYPES[other]))
    return Changed(moved, storage, storage, case=replace(case, dtype=other))


def _storage(subject: Subject, part: torch.Tensor) -> torch.Tensor:
    """Cast a part of a tensor as a tensor of its own."""
    return subject.run(FormatCastInputs(part.clone(memory_format=torch.contiguous_format)))["storage"]


_WHOLE = {"view": ("whole",)}


component = Component(
    name="format_cast",
    summary="a tensor cast to FRACTAL_NZ and back: what lies in memory, and what is read from it",
    case_type=FormatCastCase,
    outputs=("storage", "format", "values", "restored"),
    inputs=build_inputs,
    reference=format_cast,
    coordinates=coordinates,
    highlighted_region="padded",
    relations=(
        Property("matrices_do_not_mix", "the storage of several matrices is theirs, one after the other",
                 _matrices_do_not_mix, within={"rank": (3, 4), **_WHOLE}, needs={"rank": (2,), **_WHOLE}),
        Property("strips_do_not_mix", "the storage of a matrix is that of its strips of columns, one after the other",
                 _strips_do_not_mix,
                 within={"rank": (2,), "columns": range(WIDEST_TILE + 1, 2**17 + 1), **_WHOLE}),
        relation("only_bits_move", "dtypes of the same size are moved alike", _in_another_dtype, bits=True,
                 within={"dtype": tuple(_SAME_SIZE)}),
    ),
    profiles={
        "deepseek-v3": {"rank": (2,), "rows": (1536,), "columns": (1536,), "dtype": ("int8",), "view": ("whole",)},
    },
    baselines=BASELINES["format_cast"],
)  # fmt: skip
