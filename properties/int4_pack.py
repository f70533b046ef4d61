"""Packing of integers of four bits: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare
from npudiff.judge.relations import Changed, relation
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_experts
from npudiff.properties._shared.rows import COUNTS
from npudiff.reference.int4_pack import ENCODINGS, INTEGERS_OF_A_WORD, Int4PackInputs, int4_pack

SOURCES = ("integers", "high bits", "offset binary")
"""integers: from -8 to 7. high bits: something else stands above the four bits that count. offset binary: from 0 to
15, the integer plus 8, as checkpoints of WNA16 have them."""
RECIPES = ("all values", "extremes", "negative even", "positive", "one column")
"""all values: each of the sixteen. extremes: -8 and 7. negative even: even columns are negative, odd ones are not.
positive: none is negative. one column: all others are zero."""
LAYOUTS = ("row major", "transposed", "sliced")
"""transposed: a view of matrices that lie the other way, as a checkpoint has them. sliced: without the first rows of
larger ones, as the part of a rank."""

MOST_ELEMENTS = 2**17
"""Integers up to which a case may have more rows than it must."""


@dataclass(frozen=True)
class Int4PackCase(Case):
    """One call, as sizes and recipes."""

    rows: int = axis(
        "rows of a matrix", COUNTS, drawn=(1, 2, 3, 7, 8, 16, 24, 33, 64, 128, 300),
        affordable=lambda case, rows: case.affords(rows * case.columns * case.matrices, MOST_ELEMENTS),
        shown=lambda case: f"{case.matrices} {'matrix' if case.matrices == 1 else 'matrices'} of "
        f"{case.rows} x {case.columns}",
    )  # fmt: skip
    columns: int = axis(
        "columns of a matrix, along which integers are packed", range(8, 2**16 + 1, 8), 8,
        drawn=lambda case: (8, 16, 24, 64, 72, 88, 136, *(() if case.far else (1024, 4104))), shown="",
    )  # fmt: skip
    matrices: int = axis(
        "matrices, as of experts; one has rank 2", range(1, 1025), 1,
        drawn=lambda case: (1, 1, 2) if case.huge else (1, 1, 2, 3, 8, 17), shown="",
        region="several matrices",
    )  # fmt: skip
    source: str = axis("what the elements that are given hold", SOURCES, "integers", always=True, region="{}")
    recipe: str = axis("how the integers are made", RECIPES, "all values", region="{}")
    layout: str = axis("how the given matrices lie in memory", LAYOUTS, "row major", region="{}")
    seed: int = seed()

    drawn_first = ("columns", "matrices", "rows")
    outliers = ("matrices", "rows", "columns")
    huge_axes = ("rows",)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.matrices * self.rows * self.columns > 2**26:
            yield f"there would be more than {2**26} integers"


def build_inputs(case: Int4PackCase) -> Int4PackInputs:
    """Build the inputs of a case."""
    values = integers(case)
    encoding = ENCODINGS[case.source == "offset binary"]
    if case.source == "offset binary":
        values = values + 8
        if case.seed % 2:
            values = values + _above(case, values)
    if case.source == "high bits":
        values = values + _above(case, values)
    values = values.to(torch.int32)
    if case.matrices == 1:
        values = values[0]
    if case.layout == "transposed":
        values = values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if case.layout == "sliced":
        values = torch.cat([values[..., :1, :], values], dim=-2)[..., 1:, :]
    return Int4PackInputs(values, encoding)


def integers(case: Int4PackCase) -> torch.Tensor:
    """Return the integers of a case, int64 ``[matrices, rows, columns]``."""
    shape = (case.matrices, case.rows, case.columns)
    words = Stream(case.seed, "values").random_uint64(case.matrices * case.rows * case.columns) >> 8
    values = torch.from_numpy(words.astype("int64")).view(shape) % 16 - 8
    if case.recipe == "extremes":
        return torch.where(values < 0, -8, 7)
    if case.recipe == "positive":
        return values % 8
    if case.recipe == "negative even":
        return values % 8 - 8 * (torch.arange(case.columns) % 2 == 0)
    if case.recipe == "one column":
        column = Stream(case.seed, "column").integers(0, case.columns, 1)[0]
        return torch.where(torch.arange(case.columns) == column, values, 0)
    return values


def _above(case: Int4PackCase, values: torch.Tensor) -> torch.Tensor:
    """Bits above the lowest four, which nobody may look at."""
    words = Stream(case.seed, "high bits").random_uint64(values.numel()).view("int64") >> 36
    return 16 * torch.from_numpy(words).view(values.shape)


def coordinates(inputs: Int4PackInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the words: matrix, row, and the first column of a word."""
    del output  # there is one
    names = ("matrix", "row", "first column")[-inputs.values.dim() :]
    steps = (*[1] * (inputs.values.dim() - 1), INTEGERS_OF_A_WORD)
    places = [torch.arange(0, size, step) for size, step in zip(inputs.values.shape, steps, strict=True)]
    return dict(zip(names, torch.meshgrid(*places, indexing="ij"), strict=True))


def _unpacking_gives_them_back(subject: Subject, case: Int4PackCase) -> Comparison:
    """Read the words as a kernel does, by shifts, and compare with the integers that the case is made of."""
    words = subject.run(build_inputs(case))["words"].to(torch.int64)
    read = (words.unsqueeze(-1) >> torch.arange(0, 32, 4)) & 15
    read = ((read ^ 8) - 8).flatten(-2)
    given = integers(case)[0] if case.matrices == 1 else integers(case)
    right = {"words": Derived(given, torch.zeros(given.shape, dtype=torch.float64), torch.int64)}
    return compare(right, {"words": read}, "integers before and after")


def _groups_in_another_order(inputs: Int4PackInputs, case: Int4PackCase) -> Changed[Int4PackInputs]:
    order = Stream(case.seed, "order").permutation(case.columns // INTEGERS_OF_A_WORD)
    groups = inputs.values.reshape(*inputs.values.shape[:-1], -1, INTEGERS_OF_A_WORD)
    moved = groups[..., order, :].flatten(-2).clone()  # a tensor of its own, and no view of one that has an axis more
    return Changed(replace(inputs, values=moved), lambda outputs: {"words": outputs["words"][..., order]})


def _sizes(model: Model) -> Box:
    return {"matrices": (1,), "rows": (model.width,), "columns": (2 * model.width, model.hidden)}


component = Component(
    name="int4_pack",
    summary="integers of four bits, packed eight to a word: the first column in the lowest bits",
    case_type=Int4PackCase,
    outputs=("words",),
    inputs=build_inputs,
    reference=int4_pack,
    coordinates=coordinates,
    highlighted_region="several matrices",
    relations=(
        Property("unpacking_gives_them_back", "integers that were packed are there when words are unpacked",
                 _unpacking_gives_them_back),
        relation("groups_do_not_mix", "eight columns make a word of their own", _groups_in_another_order, bits=True,
                 within={"columns": range(16, 2**16 + 1, 8)}),
    ),
    profiles=of_experts(_sizes),
    baselines=BASELINES["int4_pack"],
)  # fmt: skip
