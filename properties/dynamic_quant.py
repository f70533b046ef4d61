"""Quantisation of rows by their largest element: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation, tokens_do_not_mix
from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared import empty_parts, magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_experts
from npudiff.reference.dynamic_quant import LEVELS, DynamicQuantInputs, dynamic_quant
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SMOOTH = ("none", "for all", "per expert")
RECIPES = ("gaussian", "outlier", "negative", "tiny", "zero rows", "two values", "large", "any exponent")
"""outlier: one element of a row is 64 times larger. negative: the largest element of every row is negative. tiny:
below 2**-8. zero rows: some rows hold nothing but zeros. two values: only one magnitude, of both signs. large: near the
end of the range of float16. any exponent: the largest element of each row has an exponent of its own."""

_EMPTY = ("none", "first", "middle", "none", "last", "middle", "none", "all but one")
"""Shrinking goes down by one option or two: from each it comes to none."""

_WIDTHS = (1, 3, 8, 17, 16, 24, 64, 1000, 2048, 7168)
"""Elements of a row. Shrinking goes down by one option or two, and stops where neither fails: powers of two and other
widths take turns, so that what one of the two kinds does wrong shrinks to the smallest of its kind."""

MOST_ELEMENTS = 2**18
"""Elements of the states up to which a case may have more rows than it must."""


@dataclass(frozen=True)
class DynamicQuantCase(Case):
    """One call, as sizes and recipes."""

    tokens: int = axis(
        "rows", rows.COUNTS,
        drawn=lambda case: (3, 7, 17, 65, 257) if case.far == "experts" else (1, 2, 3, 7, 17, 65, 257),
        affordable=lambda case, tokens: case.affords(tokens * case.width, MOST_ELEMENTS),
        shown=lambda case: f"{counted(case.tokens, 'token')} x {case.width}",
    )  # fmt: skip
    width: int = axis(
        "elements of a row", range(1, 2**16 + 1), 64,
        drawn=lambda case: (8, 16, 3) if case.huge else _WIDTHS[:7] if case.far == "experts" else _WIDTHS,
        shown="", region=lambda case: "odd width" if case.width % 2 else "",
    )  # fmt: skip
    dtype: str = axis("dtype of the states", tuple(DTYPES), "bfloat16", always=True)
    bits: int = axis(
        "bits of an integer", tuple(LEVELS), 8, drawn=(8, 8, 4),
        assumes=lambda case, bits: bits == 8 or case.width % 8 == 0, shown="int{}", always=True, region="int{}",
    )  # fmt: skip
    smooth: str = axis(
        "factors before: none, a row of them for all, or one per expert", SMOOTH, "none",
        drawn=lambda case: ("per expert",) if case.far == "experts" else (*SMOOTH, SMOOTH[-1]),
        shown="smooth {}", region="smooth",
    )  # fmt: skip
    experts: int = axis(
        "experts among which the rows are divided, where each has factors", range(1, 1025), 1,
        drawn=lambda case: (1, 2, 3, 8) if case.smooth == "per expert" else (1,),
        fits=lambda case, experts: experts <= case.tokens, applies=lambda case: case.smooth == "per expert",
        shown="{} expert(s)", always=True, region="several experts",
    )  # fmt: skip
    recipe: str = axis("how the states are made", RECIPES, "gaussian", drawn=(*RECIPES, RECIPES[-1]), region="{}")
    rows: str = rows.axis(several="tokens")
    seed: int = seed()
    empty_experts: str = axis(
        "which experts have no rows, where each has factors", empty_parts.KINDS, "none",
        drawn=lambda case: [kind for kind in _EMPTY if empty_parts.fits(kind, case.experts)],
        fits=lambda case, kind: empty_parts.fits(kind, case.experts),
        applies=lambda case: case.smooth == "per expert", shown="{} empty", region="experts without rows",
    )  # fmt: skip

    drawn_first = ("width", "tokens", "bits", "smooth", "experts", "empty_experts")
    shown_first = ("tokens", "bits", "dtype", "smooth", "experts", "empty_experts")
    outliers = ("experts", "tokens", "width")
    huge_axes = ("tokens", "width")

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.tokens * self.width > 2**26:
            yield f"the states would have more than {2**26} elements"
        if self.bits == 4 and self.width % 8:
            yield f"int4 needs a width that 8 divides, got {self.width}"
        if self.experts > self.tokens or (self.experts > 1 and self.smooth != "per expert"):
            yield f"{self.experts} experts have a row and factors each, got {self.tokens} rows and smooth {self.smooth}"
        if not empty_parts.fits(self.empty_experts, self.experts):
            yield f"of {self.experts} experts none can be empty as {self.empty_experts}"


def build_inputs(case: DynamicQuantCase) -> DynamicQuantInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]
    smooth = None
    if case.smooth != "none":
        spread = Stream(case.seed, "smooth").normal((case.experts, case.width), torch.float32)
        smooth = (1 + 0.25 * spread).to(dtype)
    ends = None
    if case.smooth == "per expert":
        ends = torch.tensor(_ends(case), dtype=torch.int32)
    return DynamicQuantInputs(rows.with_row_stride(_states(case).to(dtype), case.rows), smooth, ends, case.bits)


def _ends(case: DynamicQuantCase) -> list[int]:
    """The row behind the last one of each expert; every expert has a row but those that are to be empty."""
    empty = empty_parts.which(case.empty_experts, case.experts)
    borders = sorted(Stream(case.seed, "ends").permutation(case.tokens - 1)[: case.experts - len(empty) - 1])
    ends = iter([*(1 + border for border in borders), case.tokens])
    found = [0]
    for expert in range(case.experts):
        found.append(found[-1] if expert in empty else next(ends, case.tokens))
    return found[1:]


def _states(case: DynamicQuantCase) -> torch.Tensor:
    stream = Stream(case.seed, "states")
    states = stream.normal((case.tokens, case.width), torch.float32)
    places = magnitudes.places_of_largest(stream, case.width, case.tokens)
    if case.recipe == "outlier":
        states[places] *= 64
    if case.recipe == "negative":
        states[places] = -8.0
    if case.recipe == "two values":
        states = torch.sign(states) + (states == 0)
    if case.recipe == "zero rows":
        states[::2] = 0.0
    if case.recipe == "any exponent":
        return magnitudes.of_exponents(states, DTYPES[case.dtype], Stream(case.seed, "exponents"))
    return states * {"tiny": 2.0**-10, "large": 8000.0}.get(case.recipe, 1.0)


def coordinates(inputs: DynamicQuantInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token, expert and column."""
    tokens, width = inputs.states.shape
    token = torch.arange(tokens)
    places = {"token": token}
    if inputs.expert_ends is not None:
        places["expert"] = torch.bucketize(token, inputs.expert_ends.to(torch.int64), right=True)
    if output == "scale":
        return places
    return {name: place.unsqueeze(1) for name, place in places.items()} | {"column": torch.arange(width).unsqueeze(0)}


def _twice_the_row(inputs: DynamicQuantInputs, case: DynamicQuantCase) -> Changed[DynamicQuantInputs]:
    """Doubling is exact: integers stay the same, and scales double."""
    del case
    return Changed(
        replace(inputs, states=inputs.states * 2), lambda outputs: {**outputs, "scale": 2 * outputs["scale"]}
    )


def _sizes(model: Model) -> Box:
    return {"tokens": FEW, "width": (model.hidden, model.width), "bits": (8,), "dtype": ("bfloat16",)}


component = Component(
    name="dynamic_quant",
    summary="quantisation of rows to int8 or int4, by a scale that comes from the largest element of each",
    case_type=DynamicQuantCase,
    outputs=("quantised", "scale"),
    inputs=build_inputs,
    reference=dynamic_quant,
    illegal=(
        wrong_element("a negative end", "expert_ends", constant(-1)),
        wrong_element("an end beyond the last row", "expert_ends", lambda inputs: len(inputs.states) + 1, lambda _: -1),
    ),
    coordinates=coordinates,
    highlighted_region="int4",
    relations=(
        tokens_do_not_mix("states", within={"smooth": ("none", "for all")}),
        relation("twice_the_row", "states twice as large have scales twice as large, and the same integers",
                 _twice_the_row, within={"recipe": ("gaussian", "outlier", "negative", "two values")}),
    ),
    profiles=of_experts(_sizes),
    baselines=BASELINES["dynamic_quant"],
)  # fmt: skip
