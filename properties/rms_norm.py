"""RMS normalisation: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation, rows_taken, tokens_do_not_mix
from npudiff.model.component import Component
from npudiff.model.constraints import Box, Numbers, least
from npudiff.properties._shared import magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_models
from npudiff.reference.rms_norm import ROUNDINGS, WEIGHT_OFFSETS, RmsNormInputs, rms_norm

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
RECIPES = ("gaussian", "outlier", "tiny", "large", "small", "zero rows")
"""outlier: one element of a row is 64 times larger. tiny: values around the square root of epsilon, which then decides.
large: squares far beyond the range of float16. small: subnormal in float16, or such that squares vanish. zero rows:
some rows hold nothing but zeros."""
WEIGHTS = ("near 1", "wide", "tiny")
"""near 1: around the weight that changes nothing. wide: magnitudes up to 16, where 1 + w rounds. tiny: below 2**-9,
where 1 + w in bfloat16 is 1."""

MOST_ELEMENTS = 2**19
"""Elements of the states up to which a case may have more rows than it must."""


@dataclass(frozen=True)
class RmsNormCase(Case):
    """One call of a norm, as sizes and recipes."""

    tokens: int = axis(
        "rows", rows.COUNTS, drawn=(1, 2, 3, 7, 16, 17, 65, 257, 1025), shown="",
        affordable=lambda case, tokens: case.affords(tokens * case.hidden_size, MOST_ELEMENTS),
    )  # fmt: skip
    # Shrinking goes down by one option or two, and stops where neither fails: powers of two and other sizes take turns,
    # so that what one of the two kinds does wrong shrinks to the smallest of its kind.
    hidden_size: int = axis(
        "elements of a row", range(1, 2**16 + 1), 64,
        drawn=(2, 3, 16, 192, 64, 576, 128, 1000, 512, 1536, 4096, 7168, 12_289),
        affordable=lambda case, size: size * least(case.box.get("tokens", (1,))) <= 8 * MOST_ELEMENTS,
        shown=lambda case: f"{case.tokens} x {case.hidden_size}",
    )  # fmt: skip
    dtype: str = axis("dtype of states and weight", tuple(DTYPES), "bfloat16", always=True)
    residual: bool = axis("whether a residual is added first", (False, True), False, region="residual")
    kind: str = axis("plain weight, or a Gemma weight to which 1 is added", tuple(WEIGHT_OFFSETS), "plain", region="{}")
    recipe: str = axis("how states are made", RECIPES, "gaussian", region="{}")
    weights: str = axis("how the weight is made", WEIGHTS, "near 1", shown="{} weight", region="{} weight")
    epsilon: float = axis(
        "added to the mean of squares", Numbers(1e-12, 1), 1e-6, drawn=(1e-6, 1e-5), shown="epsilon {:g}"
    )
    rounding: str = axis(
        "whether a device may round between stages, or once at the end only", ROUNDINGS, "stages",
        drawn=("stages",),  # the stricter bound is for those who ask for it
        shown="one rounding",
    )  # fmt: skip
    rows: str = rows.axis(several="tokens")
    seed: int = seed()

    drawn_first = ("hidden_size",)
    outliers = ("tokens", "hidden_size")
    huge_axes = ("tokens", "hidden_size")
    shown_first = ("hidden_size", "dtype", "kind")

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.tokens * self.hidden_size > 2**26:
            yield f"the states would have more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "one token": self.tokens == 1,
            "size is no power of two": self.hidden_size & (self.hidden_size - 1) != 0,
        }


def build_inputs(case: RmsNormCase) -> RmsNormInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]
    return RmsNormInputs(
        hidden=rows.with_row_stride(_states(case, "hidden").to(dtype), case.rows),
        residual=rows.with_row_stride(_states(case, "residual").to(dtype), case.rows, rows.GAPS[1])
        if case.residual
        else None,
        weight=_weight(case).to(dtype),
        epsilon=case.epsilon,
        kind=case.kind,
        rounding=case.rounding,
    )


def _states(case: RmsNormCase, name: str) -> torch.Tensor:
    stream = Stream(case.seed, name)
    states = stream.normal((case.tokens, case.hidden_size), torch.float32)
    if case.recipe == "outlier":
        places = magnitudes.places_of_largest(stream, case.hidden_size, case.tokens)
        states[places] *= 64
    if case.recipe == "small":
        return magnitudes.small(states, DTYPES[case.dtype])
    factors = {"tiny": case.epsilon**0.5, "large": 2000.0}
    states *= factors.get(case.recipe, 1.0)
    if case.recipe == "zero rows":
        states[::2] = 0.0
    return states


def _weight(case: RmsNormCase) -> torch.Tensor:
    noise = Stream(case.seed, "weight").normal((case.hidden_size,), torch.float32)
    centre = 1.0 - WEIGHT_OFFSETS[case.kind]
    if case.weights == "wide":
        return noise * 4
    return centre + noise * (0.1 if case.weights == "near 1" else 2.0**-11)


def coordinates(inputs: RmsNormInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token and column."""
    token = torch.arange(inputs.hidden.shape[0]).unsqueeze(1)
    column = torch.arange(inputs.hidden.shape[1]).unsqueeze(0)
    return {"token": token} if output == "rstd" else {"token": token, "column": column}


def _first_token_alone(inputs: RmsNormInputs, case: RmsNormCase) -> Changed[RmsNormInputs]:
    residual = None if inputs.residual is None else inputs.residual[:1]
    alone = replace(inputs, hidden=inputs.hidden[:1], residual=residual)
    return Changed(alone, rows_taken(slice(1)), case=replace(case, tokens=1))


def _sizes(model: Model) -> Box | None:
    if model.epsilon is None:
        return None
    sizes = (model.hidden, model.query_rank or 1536, 512) if model.latent else (model.hidden,)
    return {"hidden_size": sizes, "kind": (model.norm,), "epsilon": (model.epsilon,), "dtype": ("bfloat16",)}


component = Component(
    name="rms_norm",
    summary="RMS normalisation, plain or Gemma, with a residual that is added before or without",
    case_type=RmsNormCase,
    outputs=("output", "rstd", "sum"),
    inputs=build_inputs,
    reference=rms_norm,
    coordinates=coordinates,
    highlighted_region="residual",
    relations=(
        tokens_do_not_mix("hidden", "residual"),
        relation("first_token_alone", "a token's company does not matter", _first_token_alone,
                 within={"tokens": rows.SEVERAL}, needs={"tokens": (1,)}),
    ),
    example_ratio=0.7,
    profiles=of_models(_sizes),
    baselines=BASELINES["rms_norm"],
)  # fmt: skip
