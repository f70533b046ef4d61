"""RMS normalisation: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, Property, Subject
from npudiff.model.constraints import Axis, Box, Constraints
from npudiff.properties._shared import magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_models
from npudiff.properties._shared.token_order import in_another_order
from npudiff.reference.rms_norm import ROUNDINGS, WEIGHT_OFFSETS, RmsNormInputs, rms_norm

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
RECIPES = ("gaussian", "outlier", "tiny", "large", "small", "zero rows")
"""outlier: one element of a row is 64 times larger. tiny: values around the square root of epsilon, which then decides.
large: squares far beyond the range of float16. small: subnormal in float16, or such that squares vanish. zero rows:
some rows hold nothing but zeros."""
WEIGHTS = ("near 1", "wide", "tiny")
"""near 1: around the weight that changes nothing. wide: magnitudes up to 16, where 1 + w rounds. tiny: below 2**-9,
where 1 + w in bfloat16 is 1."""

AXES = {
    "tokens": Axis("rows", range(1, 2**16 + 1)),
    "hidden_size": Axis("elements of a row", range(1, 2**16 + 1)),
    "dtype": Axis("dtype of states and weight", tuple(DTYPES)),
    "residual": Axis("whether a residual is added first", (False, True)),
    "kind": Axis("plain weight, or a Gemma weight to which 1 is added", tuple(WEIGHT_OFFSETS)),
    "recipe": Axis("how states are made", RECIPES),
    "weights": Axis("how the weight is made", WEIGHTS),
    "rounding": Axis("whether a device may round between stages, or once at the end only", ROUNDINGS),
    "rows": rows.AXIS,
    "epsilon": Axis("added to the mean of squares", (1e-6, 1e-5)),
}

_MAX_ELEMENTS = 2**26

MOST_ELEMENTS = 2**19
"""Elements of the states up to which a case may have more rows than it must."""


@dataclass(frozen=True)
class RmsNormCase:
    """One call of a norm, as sizes and recipes."""

    tokens: int
    hidden_size: int = 64
    dtype: str = "bfloat16"
    residual: bool = False
    kind: str = "plain"
    recipe: str = "gaussian"
    weights: str = "near 1"
    epsilon: float = 1e-6
    rounding: str = "stages"
    rows: str = "contiguous"
    seed: int = 0


def cases(constraints: Constraints) -> st.SearchStrategy[RmsNormCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> RmsNormCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    fewest = min(_tokens(box, 1))
    sizes = within(_SIZES, box.get("hidden_size"))[:4096]
    hidden_size = choose.pick([size for size in sizes if size * fewest <= 8 * MOST_ELEMENTS] or [min(sizes)])
    return RmsNormCase(
        tokens=choose.pick(_tokens(box, hidden_size)),
        hidden_size=hidden_size,
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        residual=choose.value(box, "residual", (False, True)),
        kind=choose.value(box, "kind", tuple(WEIGHT_OFFSETS)),
        recipe=choose.value(box, "recipe", RECIPES),
        weights=choose.value(box, "weights", WEIGHTS),
        epsilon=choose.value(box, "epsilon", (1e-6, 1e-5)),
        rounding=choose.value(box, "rounding", ("stages",)),  # the stricter bound is for those who ask for it
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )


_SIZES = (2, 3, 16, 192, 64, 576, 128, 1000, 512, 1536, 4096, 7168, 12_289)
"""Elements of a row. Shrinking goes down by one option or two, and stops where neither fails: powers of two and other
sizes take turns, so that what one of the two kinds does wrong shrinks to the smallest of its kind."""


def _tokens(box: Box, hidden_size: int) -> Sequence[int]:
    """Numbers of rows; where the constraints leave none that is cheap, the smallest that they allow."""
    allowed = within((1, 2, 3, 7, 16, 17, 65, 257, 1025), box.get("tokens"))[:4096]
    return [count for count in allowed if count * hidden_size <= MOST_ELEMENTS] or [min(allowed)]


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
        columns = stream.integers(0, case.hidden_size, case.tokens)
        states[range(case.tokens), columns] *= 64
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


def values(case: RmsNormCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {name: (getattr(case, name),) for name in AXES}


def features(case: RmsNormCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "residual": case.residual,
        "gemma": case.kind == "gemma",
        "one token": case.tokens == 1,
        "sliced rows": case.rows == "sliced" and case.tokens > 1,
        "size is no power of two": case.hidden_size & (case.hidden_size - 1) != 0,
        case.recipe: case.recipe != "gaussian",
        f"{case.weights} weight": case.weights != "near 1",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: RmsNormCase) -> str:
    """Return the case as one short line."""
    parts = [
        f"{case.tokens} x {case.hidden_size}",
        case.dtype,
        case.kind if case.kind != "plain" else "",
        "residual" if case.residual else "",
        case.recipe if case.recipe != "gaussian" else "",
        f"{case.weights} weight" if case.weights != "near 1" else "",
        f"epsilon {case.epsilon:g}" if case.epsilon != 1e-6 else "",
        "one rounding" if case.rounding == "once" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: RmsNormCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    if not 1 <= case.tokens <= 2**16 or not 1 <= case.hidden_size <= 2**16:
        raise ValueError(f"tokens and hidden_size must lie in 1..65536, got {case.tokens}, {case.hidden_size}")
    if case.tokens * case.hidden_size > _MAX_ELEMENTS:
        raise ValueError(f"the states would have more than {_MAX_ELEMENTS} elements")
    if case.dtype not in DTYPES or case.kind not in WEIGHT_OFFSETS or case.recipe not in RECIPES:
        raise ValueError(f"unknown dtype, kind or recipe: {case.dtype}, {case.kind}, {case.recipe}")
    rows.check_rows(case.rows)
    if case.rounding not in ROUNDINGS:
        raise ValueError(f"rounding is one of {', '.join(ROUNDINGS)}, got {case.rounding}")
    if case.weights not in WEIGHTS or not 1e-12 <= case.epsilon <= 1 or not 0 <= case.seed < 2**63:
        raise ValueError("weights, epsilon or seed out of range")


def coordinates(inputs: RmsNormInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token and column."""
    token = torch.arange(inputs.hidden.shape[0]).unsqueeze(1)
    column = torch.arange(inputs.hidden.shape[1]).unsqueeze(0)
    return {"token": token} if output == "rstd" else {"token": token, "column": column}


def _tokens_do_not_mix(subject: Subject, case: RmsNormCase) -> Comparison:
    order = Stream(case.seed, "order").permutation(case.tokens)
    return in_another_order(subject, build_inputs(case), order, ("hidden", "residual"))


def _first_token_alone(subject: Subject, case: RmsNormCase) -> Comparison:
    inputs = build_inputs(case)
    subject.require(replace(case, tokens=1), "one token alone")
    residual = None if inputs.residual is None else inputs.residual[:1]
    together = {name: output[:1] for name, output in subject.run(inputs).items()}
    alone = replace(inputs, hidden=inputs.hidden[:1], residual=residual)
    return compare_runs(
        bounds_of(subject.expected(alone)), together, subject.run(alone), "the first token alone against the batch"
    )


def _sizes(model: Model) -> Box | None:
    if model.epsilon is None:
        return None
    sizes = (model.hidden, 1536, 512) if model.latent else (model.hidden,)
    return {"hidden_size": sizes, "kind": (model.norm,), "epsilon": (model.epsilon,), "dtype": ("bfloat16",)}


component = Component(
    name="rms_norm",
    summary="RMS normalisation, plain or Gemma, with a residual that is added before or without",
    case_type=RmsNormCase,
    outputs=("output", "rstd", "sum"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=rms_norm,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="residual",
    relations=(
        Property("tokens_do_not_mix", "the order of tokens does not matter", _tokens_do_not_mix,
                 within={"tokens": range(2, 2**16 + 1)}),
        Property("first_token_alone", "a token's company does not matter", _first_token_alone,
                 within={"tokens": range(2, 2**16 + 1)}, needs={"tokens": (1,)}),
    ),
    example_ratio=0.7,
    profiles=of_models(_sizes),
    baselines=BASELINES["rms_norm"],
)  # fmt: skip
