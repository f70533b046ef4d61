"""Gated activations: their cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, Property, Subject
from npudiff.model.constraints import Axis, Box, Constraints, allows, check_axes
from npudiff.properties._shared import magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.properties._shared.token_order import in_another_order
from npudiff.reference.swiglu import LAYOUTS, ROUNDINGS, Activation, SwigluInputs, swiglu
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ACTIVATIONS = tuple(activation.value for activation in Activation)
LIMITS = (7.0, 10.0, 1.5, 7.1, 0.5, 1000.0)
"""The default of every backend and values that are not: one that 16 bits do not hold, and one that nothing reaches."""
ALPHAS = (1.702, 1.0, 0.5)
BIASES = (1.0, 0.0, 0.5)
RECIPES = ("gaussian", "beyond", "at limit", "large", "tiny", "small", "zero rows")
"""gaussian: within the limit. beyond: three times the limit. at limit: gates and ups at the limit and 1 % on both sides
of it, of both signs. large: products near the end of the dtype, where there is no limit. tiny: below 1e-3. small:
subnormal in float16. zero rows: some rows hold nothing but zeros."""

AXES = {
    "tokens": Axis("rows", range(1, 2**16 + 1)),
    "width": Axis("gates of a row, and as many ups", range(1, 2**16 + 1)),
    "dtype": Axis("dtype of the states", tuple(DTYPES)),
    "activation": Axis("what the configuration calls it", ACTIVATIONS),
    "limited": Axis("whether a limit applies to the experts at hand", (False, True)),
    "limit": Axis("limit of routed experts", LIMITS, optional=True),
    "shared_limit": Axis("limit of shared experts and dense layers", LIMITS, optional=True),
    "experts": Axis("for whom the activation is", ("routed", "shared")),
    "alpha": Axis("factor in the sigmoid of swiglu_oai", ALPHAS),
    "bias": Axis("what swiglu_oai adds to the up", BIASES),
    "layout": Axis("where gates and ups lie", LAYOUTS),
    "recipe": Axis("how the states are made", RECIPES),
    "rounding": Axis("whether a device may round between operations, or once at the end only", ROUNDINGS),
    "rows": rows.AXIS,
}

_MAX_ELEMENTS = 2**26

MOST_ELEMENTS = 2**18
"""Elements of the states up to which a case may have more rows than it must."""


@dataclass(frozen=True)
class SwigluCase:
    """One call, as sizes, configuration and a recipe; see the axes for their meaning."""

    tokens: int
    width: int = 64
    dtype: str = "bfloat16"
    activation: str = "silu"
    limit: float | None = None
    shared_limit: float | None = None
    experts: str = "routed"
    alpha: float = 1.702
    bias: float = 1.0
    layout: str = "halves"
    recipe: str = "gaussian"
    rounding: str = "stages"
    rows: str = "contiguous"
    seed: int = 0


def cases(constraints: Constraints) -> st.SearchStrategy[SwigluCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> SwigluCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    width = choose.value(box, "width", (1, 2, 16, 17, 33, 64, 96, 1000, 1280))
    allowed = within((1, 2, 3, 7, 17, 65, 257), box.get("tokens"))[:4096]
    tokens = choose.pick([count for count in allowed if count * width <= MOST_ELEMENTS] or [min(allowed)])
    recipe = choose.value(box, "recipe", RECIPES)  # beside the sizes, so that shrinking can trade one for the other
    experts = choose.value(box, "experts", ("routed", "routed", "shared"))
    limited = choose.value(box, "limited", (False, True, True))
    limits = {
        axis: choose.pick(_limits(box, axis, limited if belongs == experts else None))
        for axis, belongs in (("limit", "routed"), ("shared_limit", "shared"))
    }
    return SwigluCase(
        tokens=tokens,
        width=width,
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        activation=choose.value(box, "activation", ACTIVATIONS),
        **limits,
        experts=experts,
        alpha=choose.value(box, "alpha", ALPHAS),
        bias=choose.value(box, "bias", BIASES),
        layout=choose.value(box, "layout", LAYOUTS),
        recipe=recipe,
        rounding=choose.value(box, "rounding", ("stages",)),  # the stricter bound is for those who ask for it
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )


def _limits(box: Box, axis: str, limited: bool | None) -> Sequence[float | None]:
    """Limits of one kind of experts: of those at hand, there is one or there is none."""
    defaults = {None: (None, None, *LIMITS), False: (None,), True: LIMITS}[limited]
    fitting = [limit for limit in defaults if allows(box.get(axis, defaults), limit)]
    assume(fitting)
    return fitting


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
    factors = {"beyond": 3 * limit, "tiny": 2.0**-12, "large": 16.0}
    numbers *= factors.get(case.recipe, min(2.0, limit / 4))
    if case.recipe == "zero rows":
        numbers[::2] = 0.0
    return numbers


def values(case: SwigluCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    unused = () if case.activation == "swiglu_oai" else ("alpha", "bias")
    own = case.shared_limit if case.experts == "shared" else case.limit
    used: dict[str, Collection[object]] = {name: (getattr(case, name, None),) for name in AXES}
    return used | dict.fromkeys(unused, ()) | {"limited": (own is not None,)}


def features(case: SwigluCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    limit = case.shared_limit if case.experts == "shared" else case.limit
    checks = {
        "limited": limit is not None and case.recipe in ("at limit", "beyond"),
        "shared experts": case.experts == "shared",
        "limits differ": case.limit != case.shared_limit,
        case.activation: True,
        "interleaved": case.layout == "interleaved",
        "odd width": case.width % 2 == 1,
        "sliced rows": case.rows == "sliced" and case.tokens > 1,
        case.recipe: case.recipe != "gaussian",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: SwigluCase) -> str:
    """Return the case as one short line."""
    oai = case.activation == "swiglu_oai"
    parts = [
        f"{counted(case.tokens, 'token')} x {case.width}",
        case.activation,
        f"limit {'none' if case.limit is None else format(case.limit, 'g')}",
        f"shared limit {'none' if case.shared_limit is None else format(case.shared_limit, 'g')}",
        "shared experts" if case.experts == "shared" else "",
        f"alpha {case.alpha:g}" if oai else "",
        f"bias {case.bias:g}" if oai and case.bias != 1 else "",
        case.layout if case.layout != "halves" else "",
        case.dtype,
        case.recipe if case.recipe != "gaussian" else "",
        "one rounding" if case.rounding == "once" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: SwigluCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    check_axes(case, AXES, free=("limit", "shared_limit", "alpha", "bias"))
    if 2 * case.tokens * case.width > _MAX_ELEMENTS:
        raise ValueError(f"the states would have more than {_MAX_ELEMENTS} elements")
    for name in ("limit", "shared_limit"):
        limit = getattr(case, name)
        if limit is not None and not 1e-3 <= limit <= 1e4:
            raise ValueError(f"{name} must be none or lie in 0.001..10000, got {limit}")
    if not 0 <= abs(case.alpha) <= 100 or not abs(case.bias) <= 100:
        raise ValueError(f"alpha or bias out of range: {case.alpha}, {case.bias}")


def coordinates(inputs: SwigluInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: token and column."""
    del output  # there is one
    tokens, columns = inputs.states.shape
    return {"token": torch.arange(tokens).unsqueeze(1), "column": torch.arange(columns // 2).unsqueeze(0)}


def _tokens_do_not_mix(subject: Subject, case: SwigluCase) -> Comparison:
    order = Stream(case.seed, "order").permutation(case.tokens)
    return in_another_order(subject, build_inputs(case), order, ("states",))


def _limit_out_of_reach(subject: Subject, case: SwigluCase) -> Comparison:
    free = replace(case, limit=None, shared_limit=None)
    far = replace(case, limit=1000.0, shared_limit=1000.0)
    for other in (free, far):
        subject.require(other, "with a limit that nothing reaches, and without one")
    inputs = build_inputs(free)
    limited = replace(inputs, routed_limit=far.limit, shared_limit=far.shared_limit)
    return compare_runs(
        bounds_of(subject.expected(inputs)), subject.run(inputs), subject.run(limited), "a limit that nothing reaches"
    )


def _others_limit(subject: Subject, case: SwigluCase) -> Comparison:
    other = replace(case, limit=0.5) if case.experts == "shared" else replace(case, shared_limit=0.5)
    subject.require(other, "with another limit for the other experts")
    inputs, changed = build_inputs(case), build_inputs(other)
    return compare_runs(
        bounds_of(subject.expected(inputs)), subject.run(inputs), subject.run(changed), "the other experts' limit"
    )


def _sizes(model: Model) -> Box:
    return {
        "tokens": FEW,
        "width": (model.width,),
        "activation": (model.activation,),
        "limit": model.limits,
        "alpha": (1.702,),
        "bias": (1.0,),
        "dtype": ("bfloat16",),
    }


component = Component(
    name="swiglu",
    summary="gated activations: SwiGLU, limits after or before the gate, and which of them a configuration means",
    case_type=SwigluCase,
    outputs=("output",),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=swiglu,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="limited",
    relations=(
        Property("tokens_do_not_mix", "the order of tokens does not matter", _tokens_do_not_mix,
                 within={"tokens": range(2, 2**16 + 1)}),
        Property("limit_out_of_reach", "a limit that nothing reaches changes nothing", _limit_out_of_reach,
                 within={"recipe": ("gaussian", "tiny"), "limited": (True,)}, needs={"limited": (False,)}),
        Property("others_limit", "the limit of shared experts is nothing to routed ones, and the other way round",
                 _others_limit),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["swiglu"],
)  # fmt: skip
