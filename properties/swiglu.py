"""Gated activations: their cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from npudiff.draw.cases import Case, axis, derived, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation, tokens_do_not_mix
from npudiff.model.component import Component
from npudiff.model.constraints import Box, Numbers
from npudiff.properties._shared import magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_experts
from npudiff.reference.swiglu import LAYOUTS, ROUNDINGS, Activation, SwigluInputs, swiglu
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ACTIVATIONS = tuple(activation.value for activation in Activation)
LIMITS = (7.0, 10.0, 1.5, 7.1, 0.5, 1000.0)
"""The default of every backend and values that are not: one that 16 bits do not hold, and one that nothing reaches."""
ALPHAS = (1.702, 1.0, 0.5)
BIASES = (1.0, 0.0, 0.5)
RECIPES = ("gaussian", "beyond", "at limit", "large", "tiny", "small", "zero rows", "overflow")
"""gaussian: within the limit. beyond: three times the limit. at limit: gates and ups at the limit and 1 % on both sides
of it, of both signs. large: products near the end of the dtype, where there is no limit. tiny: below 1e-3. small:
subnormal in float16. zero rows: some rows hold nothing but zeros. overflow: products beyond float16."""

MOST_ELEMENTS = 2**18
"""Elements of the states up to which a case may have more rows than it must."""


def _limit(meaning: str, experts: str, shown: str) -> Any:  # noqa: ANN401 - a field of floats
    """Declare the limit of one kind of experts: of those at hand, there is one or there is none."""

    def drawn(case: SwigluCase) -> Sequence[float | None]:
        if experts != case.experts:
            return (None, None, *LIMITS)
        return LIMITS if case.limited else (None,)

    def fits(case: SwigluCase, limit: float | None) -> bool:
        return experts != case.experts or case.limited == (limit is not None)

    return axis(
        meaning, Numbers(1e-3, 1e4), None, optional=True, drawn=drawn, fits=fits, shown=shown, always=True
    )  # fmt: skip


@dataclass(frozen=True)
class SwigluCase(Case):
    """One call, as sizes, configuration and a recipe."""

    tokens: int = axis(
        "rows", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 65, 257),
        affordable=lambda case, tokens: case.affords(tokens * case.width, MOST_ELEMENTS),
        shown=lambda case: f"{counted(case.tokens, 'token')} x {case.width}",
    )  # fmt: skip
    width: int = axis(
        "gates of a row, and as many ups", range(1, 2**16 + 1), 64, drawn=(1, 2, 16, 17, 33, 64, 96, 1000, 1280),
        shown="", region=lambda case: "odd width" if case.width % 2 else "",
    )  # fmt: skip
    dtype: str = axis("dtype of the states", tuple(DTYPES), "bfloat16", always=True)
    activation: str = axis(
        "what the configuration calls it", ACTIVATIONS, "silu", always=True, region=lambda case: case.activation
    )
    limit: float | None = _limit("limit of routed experts", "routed", "limit {:g}")
    shared_limit: float | None = _limit("limit of shared experts and dense layers", "shared", "shared limit {:g}")
    experts: str = axis(
        "for whom the activation is", ("routed", "shared"), "routed", drawn=("routed", "routed", "shared"),
        shown="{} experts", region="{} experts",
    )  # fmt: skip
    alpha: float = axis(
        "factor in the sigmoid of swiglu_oai", Numbers(-100, 100), 1.702, drawn=ALPHAS,
        applies=lambda case: case.activation == "swiglu_oai", shown="alpha {:g}", always=True,
    )  # fmt: skip
    bias: float = axis(
        "what swiglu_oai adds to the up", Numbers(-100, 100), 1.0, drawn=BIASES,
        applies=lambda case: case.activation == "swiglu_oai", shown="bias {:g}",
    )  # fmt: skip
    layout: str = axis("where gates and ups lie", LAYOUTS, "halves", region="{}")
    recipe: str = axis(
        "how the states are made", RECIPES, "gaussian",
        fits=lambda case, recipe: recipe != "overflow" or case.dtype == "float16", region="{}",
    )  # fmt: skip
    rounding: str = axis(
        "whether a device may round between operations, or once at the end only", ROUNDINGS, "stages",
        drawn=("stages",),  # the stricter bound is for those who ask for it
        shown="one rounding",
    )  # fmt: skip
    rows: str = rows.axis(several="tokens")
    seed: int = seed()

    outliers = ("tokens", "width")
    huge_axes = ("tokens", "width")
    # The recipe beside the sizes, so that shrinking can trade one for the other.
    drawn_first = ("width", "tokens", "recipe", "experts", "limited", "limit", "shared_limit")
    shown_first = (
        "tokens", "activation", "limit", "shared_limit", "experts", "alpha", "bias", "layout", "dtype",
    )  # fmt: skip

    @derived("whether a limit applies to the experts at hand", (False, True), drawn=(False, True, True))
    def limited(self) -> bool:
        """Whether a limit applies to the experts at hand."""
        return (self.shared_limit if self.experts == "shared" else self.limit) is not None

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if 2 * self.tokens * self.width > 2**26:
            yield f"the states would have more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "limited": self.limited and self.recipe in ("at limit", "beyond"),
            "limits differ": self.limit != self.shared_limit,
        }


def build_inputs(case: SwigluCase) -> SwigluInputs:
    """Build the inputs of a case."""
    parts = (_numbers(case, "gate"), _numbers(case, "up"))
    states = torch.stack(parts, dim=-1).flatten(1) if case.layout == "interleaved" else torch.cat(parts, dim=1)
    return SwigluInputs(
        states=rows.with_row_stride(states.to(DTYPES[case.dtype]), case.rows),
        activation=Activation(case.activation),
        routed_limit=case.limit,
        shared_limit=case.shared_limit,
        shared=case.experts == "shared",
        alpha=case.alpha,
        bias=case.bias,
        layout=case.layout,
        rounding=case.rounding,
    )


def _numbers(case: SwigluCase, name: str) -> torch.Tensor:
    """Gates or ups, float32 ``[tokens, width]``; around the limit that applies, or where a common default lies."""
    stream = Stream(case.seed, name)
    limit = (case.shared_limit if case.experts == "shared" else case.limit) or LIMITS[0]
    if case.recipe == "at limit":
        near = torch.tensor([limit * sign * step for sign in (1, -1) for step in (1.0, 0.99, 1.01, 1.3)])
        picked = torch.from_numpy(stream.random_uint64(case.tokens * case.width).astype("int64") % len(near))
        return near[picked].reshape(case.tokens, case.width)
    numbers = stream.normal((case.tokens, case.width), torch.float32)
    if case.recipe == "small":
        return magnitudes.small(numbers, DTYPES[case.dtype])
    if case.recipe == "large" and name == "up":
        return magnitudes.large(numbers, DTYPES[case.dtype], 1 / 16)
    if case.recipe == "overflow" and name == "up":
        return magnitudes.large(numbers, DTYPES[case.dtype], 1 / 2)
    factors = {"beyond": 3 * limit, "tiny": 2.0**-12, "large": 16.0, "overflow": 16.0}
    numbers *= factors.get(case.recipe, min(2.0, limit / 4))
    if case.recipe == "zero rows":
        numbers[::2] = 0.0
    return numbers


def coordinates(inputs: SwigluInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: token and column."""
    del output  # there is one
    tokens, columns = inputs.states.shape
    return {"token": torch.arange(tokens).unsqueeze(1), "column": torch.arange(columns // 2).unsqueeze(0)}


def _limit_out_of_reach(inputs: SwigluInputs, case: SwigluCase) -> Changed[SwigluInputs]:
    free, far = replace(case, limit=None, shared_limit=None), replace(case, limit=1000.0, shared_limit=1000.0)
    without = replace(inputs, routed_limit=None, shared_limit=None)
    return Changed(replace(inputs, routed_limit=1000.0, shared_limit=1000.0), case=(free, far), before=without)


def _others_limit(inputs: SwigluInputs, case: SwigluCase) -> Changed[SwigluInputs]:
    other = replace(case, limit=0.5) if case.experts == "shared" else replace(case, shared_limit=0.5)
    return Changed(replace(inputs, routed_limit=other.limit, shared_limit=other.shared_limit), case=other)


def _sizes(model: Model) -> Box | None:
    if not model.activation:
        return None
    return {
        "tokens": FEW,
        "width": tuple(dict.fromkeys(one for one in (model.width, model.shared_width, model.dense_width) if one)),
        "activation": (model.activation,),
        "limit": tuple(dict.fromkeys((*model.limits, *([model.shared_limit] if model.shared_limit else [])))),
        "alpha": (model.alpha,),
        "bias": (1.0,),
        "dtype": ("bfloat16",),
    }


component = Component(
    name="swiglu",
    summary="gated activations: SwiGLU, limits after or before the gate, and which of them a configuration means",
    case_type=SwigluCase,
    outputs=("output",),
    inputs=build_inputs,
    reference=swiglu,
    coordinates=coordinates,
    highlighted_region="limited",
    relations=(
        tokens_do_not_mix("states"),
        relation("limit_out_of_reach", "a limit that nothing reaches changes nothing", _limit_out_of_reach,
                 within={"recipe": ("gaussian", "tiny"), "limited": (True,)}, needs={"limited": (False,)}),
        relation("others_limit", "the limit of shared experts is nothing to routed ones, and the other way round",
                 _others_limit),
    ),
    profiles=of_experts(_sizes),
    baselines=BASELINES["swiglu"],
)  # fmt: skip
