"""Bringing the rows of a token's experts back together: cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import relation
from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.model.illegal import beyond, wrong_element
from npudiff.properties._shared import magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_experts
from npudiff.reference.moe_finalize import MoeFinalizeInputs, moe_finalize
from npudiff.reference.moe_routing import NOWHERE
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DROPPED = ("none", "some", "all of a token")
WEIGHTS = ("renormalised", "any sign", "zero for padding")
"""renormalised: positive ones that add up to 1 or so. any sign: normal numbers. zero for padding: those of the last
third of the tokens are zero, whose rows hold large numbers."""
MAGNITUDES = ("usual", "large", "small", "overflow")
"""large: near the end of the dtype, where every right sum still is inside. small: subnormal in float16. overflow: at
the end of float16, beyond which sums with a residual go."""
LARGE = 4096.0
"""What rows of padded tokens hold, whose weights are zero: finite, and seen where it is added."""
POISONS = {"large": LARGE, "nan": math.nan}
"""What rows hold that nobody asks for. NaN is seen where such a row is multiplied by 0 instead of left out."""

MOST_ELEMENTS = 2**18
"""Elements of all copies up to which a case may have more tokens than it must."""


@dataclass(frozen=True)
class MoeFinalizeCase(Case):
    """One call, as sizes and recipes."""

    tokens: int = axis(
        "rows of the result", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 65, 257, 1025),
        affordable=lambda case, tokens: case.affords(tokens * case.top_k * case.width, MOST_ELEMENTS),
        shown=lambda case: f"{counted(case.tokens, 'token')} of {counted(case.top_k, 'expert')}",
    )  # fmt: skip
    top_k: int = axis("experts of a token", range(1, 513), 1, drawn=(1, 2, 3, 4, 6, 8), shown="", was="chosen")
    width: int = axis(
        "elements of a row",
        range(1, 2**16 + 1),
        64,
        drawn=lambda case: (1, 16, 3, 16) if case.huge else (64, 16, 32, 80, 1000),
        shown="width {}",
        always=True,
    )
    dtype: str = axis("dtype of rows and weights", tuple(DTYPES), "bfloat16", always=True)
    dropped: str = axis("which copies are left out", DROPPED, "none", shown="{} left out", region="left out")
    spare_rows: int = axis(
        "rows that nobody asks for", range(2**16), 0, drawn=(0, 1, 5), shown="{} spare row(s)", region="rows to spare"
    )
    weights: str = axis("how the weights are made", WEIGHTS, "renormalised", shown="weights {}")
    residual: bool = axis(
        "whether the result of shared experts is added", (False, True), False, region="residual", was="skip"
    )
    magnitude: str = axis(
        "how large the rows are", MAGNITUDES, "usual",
        fits=lambda case, size: size != "overflow" or case.dtype == "float16",
        shown="{} rows", region="{} rows",
    )  # fmt: skip
    rows: str = rows.axis()
    seed: int = seed()
    poison: str = axis(
        "what rows hold that no place names: large finite values, or NaN", tuple(POISONS), "large",
        applies=lambda case: case.spare_rows > 0 or case.dropped != "none", shown="poison {}", region="{}",
    )  # fmt: skip

    drawn_first = ("top_k", "width", "tokens")
    shown_first = ("tokens", "dropped", "spare_rows")
    outliers = ("top_k", "top_k", "tokens", "width")
    huge_axes = ("tokens", "width")

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if (self.tokens * self.top_k + self.spare_rows) * self.width > 2**26:
            yield f"there would be more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "several experts": self.top_k > 1,
            "padding": self.weights == "zero for padding" and self.tokens > 2,
            "one token": self.tokens == 1,
        }


def build_inputs(case: MoeFinalizeCase) -> MoeFinalizeInputs:
    """Build the inputs of a case: copies lie in any order, and rows that no place names are poison."""
    dtype, copies = DTYPES[case.dtype], case.tokens * case.top_k
    states = Stream(case.seed, "rows").normal((copies + case.spare_rows, case.width), torch.float32)
    if case.magnitude != "usual":
        sums = (
            magnitudes.TO_THE_END
            if case.magnitude == "overflow"
            else 3.5
            if case.weights == "renormalised"
            else 1 / case.top_k
        )  # of weights that add up to 1, or of 3.7 each
        small = case.magnitude == "small"
        states = magnitudes.small(states, dtype) if small else magnitudes.large(states, dtype, sums)
    src_to_dst_row = torch.from_numpy(Stream(case.seed, "places").permutations(1, copies + case.spare_rows)[0, :copies])
    src_to_dst_row = src_to_dst_row.view(case.tokens, case.top_k)
    weights = _weights(case)
    if case.weights == "zero for padding":
        states[src_to_dst_row[_padded(case)].flatten()] = LARGE
    left_out = _left_out(case)
    named = torch.zeros(len(states), dtype=torch.bool)
    named[src_to_dst_row[~left_out]] = True
    states[~named] = POISONS[case.poison]
    residual = _residual(case, dtype) if case.residual else None
    return MoeFinalizeInputs(
        expanded_rows=rows.with_row_stride(states.to(dtype), case.rows),
        src_to_dst_row=src_to_dst_row.masked_fill(left_out, NOWHERE).to(torch.int32),
        weights=weights.to(dtype),
        residual=None if residual is None else rows.with_row_stride(residual, case.rows, rows.GAPS[1]),
    )


def _residual(case: MoeFinalizeCase, dtype: torch.dtype) -> torch.Tensor:
    numbers = Stream(case.seed, "skip").normal((case.tokens, case.width), torch.float32)
    return (magnitudes.large(numbers, dtype, 2.0) if case.magnitude == "overflow" else numbers).to(dtype)


def _padded(case: MoeFinalizeCase) -> slice:
    return slice(case.tokens - case.tokens // 3, None)


def _weights(case: MoeFinalizeCase) -> torch.Tensor:
    weights = Stream(case.seed, "weights").normal((case.tokens, case.top_k), torch.float32)
    if case.weights == "any sign":
        return weights
    weights = weights.exp() / weights.exp().sum(dim=1, keepdim=True)
    if case.weights == "zero for padding":
        weights[_padded(case)] = 0.0
    return weights


def _left_out(case: MoeFinalizeCase) -> torch.Tensor:
    """Copies that are left out, bool ``[tokens, top_k]``."""
    words = torch.from_numpy(Stream(case.seed, "dropped").random_uint64(case.tokens * case.top_k) >> 2).to(torch.int64)
    some = (words % 3 == 0).view(case.tokens, case.top_k)
    if case.dropped == "none":
        return torch.zeros_like(some)
    some[0] = case.dropped == "all of a token"
    some[0, -1] = True
    return some


def coordinates(inputs: MoeFinalizeInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: token, copies of it that are here, and column."""
    del output  # there is one
    return {
        "token": torch.arange(len(inputs.src_to_dst_row)).unsqueeze(1),
        "copies": (inputs.src_to_dst_row != NOWHERE).sum(dim=1, keepdim=True),
        "column": torch.arange(inputs.expanded_rows.shape[1]).unsqueeze(0),
    }


def _choices_in_reverse(inputs: MoeFinalizeInputs, case: MoeFinalizeCase) -> MoeFinalizeInputs:
    del case
    return replace(
        inputs, src_to_dst_row=inputs.src_to_dst_row.flip(1).contiguous(), weights=inputs.weights.flip(1).contiguous()
    )


def _rows_in_another_order(inputs: MoeFinalizeInputs, case: MoeFinalizeCase) -> MoeFinalizeInputs:
    """Rows in another order, and places that say so."""
    order = torch.tensor(Stream(case.seed, "order").permutation(len(inputs.expanded_rows)))
    where = torch.argsort(order).to(torch.int32)
    src_to_dst_row = torch.where(
        inputs.src_to_dst_row == NOWHERE, NOWHERE, where[inputs.src_to_dst_row.clamp(min=0).long()]
    )
    return replace(inputs, expanded_rows=inputs.expanded_rows[order], src_to_dst_row=src_to_dst_row.to(torch.int32))


def _sizes(model: Model) -> Box:
    return {"tokens": FEW, "top_k": (model.top_k,), "width": (model.hidden,), "dtype": ("bfloat16",)}


component = Component(
    name="moe_finalize",
    summary="the weighted sum of what a token's experts return, wherever their rows are",
    case_type=MoeFinalizeCase,
    outputs=("output",),
    inputs=build_inputs,
    reference=moe_finalize,
    illegal=(wrong_element("a row beyond the last one", "src_to_dst_row", beyond("expanded_rows")),),
    coordinates=coordinates,
    highlighted_region="left out",
    relations=(
        relation("order_of_choices", "the order in which a token names its experts does not matter",
                 _choices_in_reverse, within={"top_k": range(2, 513)}),
        relation("place_of_rows", "where rows lie does not matter", _rows_in_another_order),
    ),
    profiles=of_experts(_sizes),
    baselines=BASELINES["moe_finalize"],
)  # fmt: skip
