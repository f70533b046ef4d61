"""What a case of linear layers that are divided among ranks says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.properties._shared import rows
from npudiff.reference.sharded_linear import BIAS_CHUNKS, FORMATS
from npudiff.reference.tensor_parallel import FORMS, LAYERS
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PROJECTIONS = ("one", "gate_up", "qkv", "shared_kv")
"""one: a matrix. gate_up: two that are as wide. qkv: queries, and keys and values that are half as wide. shared_kv: the
same with fewer heads of keys and values than ranks, so that ranks in a row hold the same ones."""
SCALES = ("channel", "group")
SCALE_DTYPES = ("float32", "states")
"""channel: one scale per column of a weight. group: one for each ``group_size`` elements of it."""
OFFSETS = (0, 7, 61, -61)
RECIPES = ("gaussian", "cancelling", "zero rows", "one rank")
"""gaussian: normal numbers. cancelling: sums of parts of the inner axis are large, and take each other back. zero rows:
every second token holds nothing but zeros. one rank: all but the first part of the inner axis of a divided layer."""
PADDINGS = {"zeros": 0.0, "nan": float("nan"), "large": 300.0}

GROUPS = {"w4a8": 256, "w4a16": 32}
"""Elements that share a scale: the first is the only one that the operator has."""
WORD = 8
RANKS = (1, 2, 3, 4, 8)
MOST_ELEMENTS = 2**20
"""Elements of a matrix up to which a case may be larger than it must."""


def _groups(case: TensorParallelCase, name: str) -> bool:
    return case.scales == "group" and case.format == name


def _hiddens(case: TensorParallelCase) -> Sequence[int]:
    if _groups(case, "w4a8") and case.layer != "row":
        return (256, 512)
    if _groups(case, "w4a16"):
        return (64, 80, 96, 136)
    return (32, 16, 64, 48, 8, 128, 264)


def _widths(case: TensorParallelCase) -> Sequence[int]:
    if _groups(case, "w4a8") and case.layer != "column":
        return (256,)
    return (64, 96) if _groups(case, "w4a16") else (16, 32, 64, 8, 48, 120)


def _fits_ranks(case: TensorParallelCase, ranks: int) -> bool:
    """Whether each rank has as many parts of the inner axis as all others, where a checkpoint has sums over parts."""
    parts = BIAS_CHUNKS % ranks == 0 and case.width * ranks % BIAS_CHUNKS == 0
    return case.format != "w4a8" or case.layer == "column" or parts


def _forms(case: TensorParallelCase) -> Sequence[str]:
    return ("whole", "sequence", "own_tokens") if case.layer == "row" else ("whole", "sequence")


def _projections(case: TensorParallelCase) -> Sequence[str]:
    return {"row": ("one",), "column_row": ("one", "gate_up")}.get(case.layer, PROJECTIONS)


def _formats(case: TensorParallelCase) -> Sequence[str]:
    """Those of groups oftener where parts of the inner axis may be unequal."""
    return (*FORMATS, "w4a16") if case.layer == "row" else FORMATS


def _given_padding(case: TensorParallelCase) -> bool:
    """Whether ranks are given rows behind the last token."""
    own = case.form == "own_tokens" or (case.form == "sequence" and case.layer in ("column", "column_row"))
    return own and case.tokens % case.ranks != 0


@dataclass(frozen=True)
class TensorParallelCase(Case):
    """One layer or two, as sizes, format and recipes."""

    tokens: int = axis(
        "rows", rows.COUNTS, drawn=(1, 2, 3, 5, 8, 7, 17, 33),
        affordable=lambda case, tokens: case.affords(tokens * (case.hidden + case.width * case.ranks * 3), 2**17),
        shown=lambda case: f"{counted(case.tokens, 'token')}",
    )  # fmt: skip
    ranks: int = axis(
        "processes that divide the layers", RANKS, 1, drawn=(1, 2, 2, 2, 4, 2, 3, 4, 8), fits=_fits_ranks,
        affordable=lambda case, ranks: case.hidden * case.width * ranks <= MOST_ELEMENTS, shown="{} ranks",
    )  # fmt: skip
    layer: str = axis("what is divided", LAYERS, "row", shown="{}", always=True, region=lambda case: case.layer)
    form: str = axis(
        "who has which tokens between layers", FORMS, "whole", drawn=_forms, shown="{}", region=lambda case: case.form
    )
    format: str = axis(
        "what weights and states are", FORMATS, "float", drawn=_formats, shown="{}", region=lambda case: case.format
    )
    scales: str = axis(
        "what of an int4 weight has a scale", SCALES, "channel",
        drawn=lambda case: (*SCALES, "group") if case.format in GROUPS else SCALES[:1], shown="a scale per {}",
        region="groups",
    )  # fmt: skip
    projections: str = axis(
        "what stands in the matrix whose columns are divided", PROJECTIONS, "one", drawn=_projections, region="{}"
    )
    hidden: int = axis("elements of a row that is not divided", range(8, 2**14, 8), 32, drawn=_hiddens)
    width: int = axis("elements that a rank has of a row that is divided", range(8, 2**14, 8), 16, drawn=_widths)
    tail: int = axis(
        "elements behind the last whole part of the inner axis", range(0, 256, 8), 0,
        drawn=lambda case: (0, 8, 32, 72, 8) if case.layer == "row" and _groups(case, "w4a16") and
        case.form != "own_tokens" else (0,), shown="{} more", region="unequal parts",
    )  # fmt: skip
    dtype: str = axis("dtype of the states and the result", tuple(DTYPES), "bfloat16", always=True)
    biased: bool = axis("whether layers have a bias", (False, True), False, drawn=(False, True, True), shown="bias",
                        region="bias")  # fmt: skip
    offset: int = axis(
        "integer that 0 becomes", range(-100, 101), 0, drawn=OFFSETS, applies=lambda case: case.format == "w8a8_static",
        shown="offset {}", region="offset",
    )  # fmt: skip
    recipe: str = axis("how numbers are made", RECIPES, "gaussian", region="{}")
    padding: str = axis(
        "what rows hold that are behind the last token", tuple(PADDINGS), "zeros", applies=_given_padding,
        shown="{} behind", region="{} behind",
    )  # fmt: skip
    scale_dtype: str = axis(
        "what scales of dynamic W8A8 are numbers of: float32, as checkpoints have them, or the dtype of the states, as "
        "backends load them", SCALE_DTYPES, "float32",
        applies=lambda case: case.format == "w8a8_dynamic" and case.dtype == "bfloat16", shown="scales of the {}",
        region="scales of the {}",
    )  # fmt: skip
    seed: int = seed()

    drawn_first = ("layer", "form", "format", "scales", "hidden", "width", "ranks", "projections", "tokens")
    outliers = ("tokens",)

    @property
    def divided(self) -> int:
        """Elements of the row that is divided, of each projection that is as wide as the first."""
        return self.width * self.ranks + self.tail

    @property
    def group_size(self) -> int:
        """Elements that share a scale; 0 where all of a column do."""
        return GROUPS[self.format] if self.scales == "group" else 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each projection."""
        full, heads = self.divided, self.divided // self.copies[-1]
        return {"one": (full,), "gate_up": (full, full)}.get(self.projections, (2 * full, heads, heads))

    @property
    def copies(self) -> tuple[int, ...]:
        """Ranks in a row that hold the same columns of a projection."""
        if self.projections != "shared_kv":
            return {"one": (1,), "gate_up": (1, 1)}.get(self.projections, (1, 1, 1))
        same = self.ranks // 2 if self.ranks % 4 == 0 else self.ranks
        return (1, same, same)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.form not in _forms(self) or self.projections not in _projections(self):
            yield f"{self.layer} has no form {self.form} or projections {self.projections}"
        if self.scales == "group" and self.format not in GROUPS:
            yield f"{self.format} has no groups"
        if not _fits_ranks(self, self.ranks):
            yield f"{self.ranks} ranks cannot share {BIAS_CHUNKS} parts of the inner axis"
        if self.tail and not (self.layer == "row" and _groups(self, "w4a16") and self.form != "own_tokens"):
            yield "only the inner axis of a layer with groups has unequal parts"
        if _groups(self, "w4a8") and (self.hidden % 256 * (self.layer != "row") or
                                      self.width % 256 * (self.layer != "column")):  # fmt: skip
            yield "an inner axis with groups has whole groups of 256"
        if _groups(self, "w4a16") and (self.hidden <= 32 or self.width < 64 or self.width % 32):
            yield "an inner axis with groups is longer than one, and a part of it has whole ones"
        if self.hidden * self.divided > 2**24 or self.tokens * (self.hidden + 3 * self.divided) > 2**26:
            yield "that would be more than a test should be"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        divided = self.form != "whole"
        return {
            "several ranks": self.ranks > 1,
            "tokens do not divide": divided and self.tokens % self.ranks != 0,
            "fewer tokens than ranks": divided and self.tokens < self.ranks,
        }
