"""The choice of experts: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, bounds_of, compare, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, Property, Subject
from npudiff.model.constraints import Axis, Box, Constraints, check_axes
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.properties._shared.token_order import in_another_order
from npudiff.reference.moe_gating import GROUP_SCORES, SCORINGS, MoeGatingInputs, moe_gating
from npudiff.text import counted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALINGS = (1.0, 2.5, 0.5, 3.0)
RECIPES = ("gaussian", "peaked", "flat", "ties", "far")
"""gaussian: independent logits. peaked: eight times as large. flat: a hundredth. ties: few different logits, so that
many experts are worth the same. far: peaked, and all of a token shifted so far that exponentials leave float32, which
changes no softmax; only for those, since sigmoids that far out have nothing to tell them apart."""
SHIFTS = (100.0, -100.0, 200.0, -200.0)
EXPERTS = (8, 16, 24, 64, 128, 160, 256, 288)
GROUPS = (1, 1, 2, 4, 8)

AXES = {
    "tokens": Axis("rows", range(1, 2**16 + 1)),
    "experts": Axis("routed experts", range(1, 2049)),
    "chosen": Axis("experts of a token", range(1, 2049)),
    "dtype": Axis("dtype of logits and weights", tuple(DTYPES)),
    "scoring": Axis("how scores come from logits", SCORINGS),
    "bias": Axis("whether experts have a bias for the choice", (False, True)),
    "groups": Axis("groups of experts", range(1, 1025)),
    "kept_groups": Axis("groups from which experts are taken", range(1, 1025)),
    "group_score": Axis("what a group is worth", GROUP_SCORES),
    "renormalise": Axis("whether weights add up to 1 before they are scaled", (False, True)),
    "scaling": Axis("factor of the weights", SCALINGS),
    "recipe": Axis("how the logits are made", RECIPES),
    "rows": rows.AXIS,
}

_MAX_ELEMENTS = 2**26

MOST_ELEMENTS = 2**17
"""Logits up to which a case may have more rows than it must."""


MOST_KEPT = 64
"""Experts of the kept groups up to which all of them may be chosen: what is left out otherwise is the worst of them."""


@dataclass(frozen=True)
class MoeGatingCase:
    """One call, as sizes, configuration and a recipe; see the axes for their meaning."""

    tokens: int
    experts: int = 8
    chosen: int = 1
    dtype: str = "float32"
    scoring: str = "softmax"
    bias: bool = False
    groups: int = 1
    kept_groups: int = 1
    group_score: str = "sum of two"
    renormalise: bool = False
    scaling: float = 1.0
    recipe: str = "gaussian"
    rows: str = "contiguous"
    seed: int = 0


def cases(constraints: Constraints) -> st.SearchStrategy[MoeGatingCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> MoeGatingCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "chosen", "experts", "tokens")
    experts = choose.value(box, "experts", EXPERTS[3:] if choose.far == "chosen" else EXPERTS)
    allowed = choose.options(box, "tokens", (1, 2, 3, 7, 17, 65, 257))
    tokens = choose.pick([count for count in allowed if count * experts <= MOST_ELEMENTS] or [min(allowed)])
    groups = _fitting(choose, within(GROUPS, box.get("groups")), lambda count: experts % count == 0
                      and (count == 1 or experts // count > 2))  # fmt: skip
    kept = _fitting(choose, within((1, 2, 4, 8), box.get("kept_groups")), lambda count: count <= groups)
    room = experts // groups * kept
    all_kept = (room,) if kept < groups and room <= MOST_KEPT else ()
    scoring = choose.value(box, "scoring", SCORINGS)
    recipe = choose.value(box, "recipe", RECIPES if scoring == "softmax" else RECIPES[:-1])
    assume(recipe != "far" or scoring == "softmax")
    return MoeGatingCase(
        tokens=tokens,
        experts=experts,
        chosen=_fitting(choose, choose.options(box, "chosen", (1, 2, 4, 6, 8, *all_kept)), lambda count: count <= room),
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        scoring=scoring,
        bias=choose.value(box, "bias", (False, True)),
        groups=groups,
        kept_groups=kept,
        group_score=choose.value(box, "group_score", GROUP_SCORES),
        renormalise=choose.value(box, "renormalise", (False, True)),
        scaling=choose.value(box, "scaling", SCALINGS),
        recipe=recipe,
        rows=choose.value(box, "rows", rows.ROWS),
        seed=choose.pick(range(1024)),
    )


def _fitting(choose: Chooser, options: Sequence[int], fits: Callable[[int], bool]) -> int:
    fitting = [count for count in options[:4096] if fits(count)]
    assume(fitting)
    return int(choose.pick(fitting))


def build_inputs(case: MoeGatingCase) -> MoeGatingInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]
    bias = None
    if case.bias:
        size = 0.3 if case.scoring == "sigmoid" else 2.0 / case.experts
        bias = (Stream(case.seed, "bias").normal((case.experts,), torch.float32) * size).to(dtype)
    return MoeGatingInputs(
        logits=rows.with_row_stride(_logits(case).to(dtype), case.rows),
        bias=bias,
        chosen=case.chosen,
        scoring=case.scoring,
        groups=case.groups,
        kept_groups=case.kept_groups,
        group_score=case.group_score,
        renormalise=case.renormalise,
        scaling=case.scaling,
    )


def _logits(case: MoeGatingCase) -> torch.Tensor:
    """Logits; but for ties, those of a token differ by more than the grid of the random numbers."""
    stream = Stream(case.seed, "logits")
    logits = stream.normal((case.tokens, case.experts), torch.float32)
    if case.recipe == "ties":
        return (logits * 2).round() / 2
    fine = torch.from_numpy(stream.random_uint64(case.tokens * case.experts) >> 44).to(torch.float32)
    logits += fine.reshape(case.tokens, case.experts) * 2.0**-32
    logits *= {"peaked": 8.0, "flat": 0.01, "far": 8.0}.get(case.recipe, 1.0)
    if case.recipe == "far":
        shifts = torch.tensor(SHIFTS)[torch.arange(case.tokens) % len(SHIFTS)]
        logits += shifts.unsqueeze(1)
    return logits


def values(case: MoeGatingCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    used: dict[str, Collection[object]] = {name: (getattr(case, name),) for name in AXES}
    return used if case.groups > 1 else used | {"group_score": ()}


def features(case: MoeGatingCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "groups": case.groups > case.kept_groups,
        "bias": case.bias,
        case.scoring: True,
        "several experts": case.chosen > 1,
        "all experts": case.chosen == case.experts // case.groups * case.kept_groups,
        "scaled": case.scaling != 1,
        "renormalised": case.renormalise,
        "16 bit": case.dtype != "float32",
        "sliced rows": case.rows == "sliced" and case.tokens > 1,
        case.recipe: case.recipe != "gaussian",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: MoeGatingCase) -> str:
    """Return the case as one short line."""
    parts = [
        f"{counted(case.tokens, 'token')} to {case.chosen} of {case.experts}",
        case.scoring,
        "bias" if case.bias else "",
        f"{case.kept_groups} of {case.groups} groups by {case.group_score}" if case.groups > 1 else "",
        "renormalised" if case.renormalise else "",
        f"scaling {case.scaling:g}" if case.scaling != 1 else "",
        case.dtype,
        case.recipe if case.recipe != "gaussian" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: MoeGatingCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    check_axes(case, AXES, free=("groups", "kept_groups", "scaling"))
    if case.tokens * case.experts > _MAX_ELEMENTS:
        raise ValueError(f"there would be more than {_MAX_ELEMENTS} logits")
    if case.recipe == "far" and case.scoring != "softmax":
        raise ValueError(f"recipe far is for softmax, got {case.scoring}")
    if not 1e-3 <= case.scaling <= 1e3:
        raise ValueError(f"scaling must lie in 0.001..1000, got {case.scaling}")
    if not 1 <= case.kept_groups <= case.groups or case.experts % case.groups:
        raise ValueError(f"{case.kept_groups} of {case.groups} groups cannot be kept of {case.experts} experts")
    if case.groups > 1 and case.experts // case.groups <= 2:
        raise ValueError("a group has more than two experts")
    if not 1 <= case.chosen <= case.experts // case.groups * case.kept_groups:
        raise ValueError(f"chosen lies beyond the experts that are left, got {case.chosen}")


def coordinates(inputs: MoeGatingInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token and expert."""
    tokens, experts = inputs.logits.shape
    token = torch.arange(tokens)
    if output == "chosen":
        return {"token": token}
    size = experts // inputs.groups
    expert = torch.arange(experts)
    return {"token": token.unsqueeze(1), "expert": expert.unsqueeze(0), "group": (expert // size).unsqueeze(0)}


def _tokens_do_not_mix(subject: Subject, case: MoeGatingCase) -> Comparison:
    order = Stream(case.seed, "order").permutation(case.tokens)
    return in_another_order(subject, build_inputs(case), order, ("logits",))


def _experts_are_alike(subject: Subject, case: MoeGatingCase) -> Comparison:
    """Experts in another order have the same weights there."""
    inputs = build_inputs(case)
    order = Stream(case.seed, "experts").permutation(case.experts)
    outputs = subject.run(inputs)
    before = {**outputs, "weights": outputs["weights"][:, order]}
    bias = None if inputs.bias is None else inputs.bias[order]
    other = replace(inputs, logits=inputs.logits[:, order].contiguous(), bias=bias)
    return compare_runs(bounds_of(subject.expected(other)), before, subject.run(other), "experts in another order")


def _weights_add_up(subject: Subject, case: MoeGatingCase) -> Comparison:
    inputs = build_inputs(case)
    weights = subject.run(inputs)["weights"].to(torch.float64)
    size = torch.full((case.tokens,), case.scaling, dtype=torch.float64)
    bound = subject.expected(inputs)["weights"].bound.sum(dim=1)
    return compare({"weights": Derived(size, bound)}, {"weights": weights.sum(dim=1)}, "sums of a token's weights")


def _sizes(model: Model) -> Box:
    return {
        "tokens": FEW,
        "experts": (model.experts,),
        "chosen": (model.top_k,),
        "scoring": (model.scoring,),
        "bias": (model.router_bias,),
        "groups": (model.router_groups,),
        "kept_groups": (model.kept_groups,),
        "renormalise": (True,),
        "scaling": (model.scaling,),
        "dtype": ("float32",),
    }


component = Component(
    name="moe_gating",
    summary="which experts a token goes to, and with what weights",
    case_type=MoeGatingCase,
    outputs=("weights", "chosen"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=moe_gating,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="groups",
    relations=(
        Property("tokens_do_not_mix", "the order of tokens does not matter", _tokens_do_not_mix,
                 within={"tokens": range(2, 2**16 + 1)}),
        Property("experts_are_alike", "the order of experts does not matter", _experts_are_alike,
                 within={"groups": (1,), "recipe": ("gaussian", "peaked", "far")}),
        Property("weights_add_up", "renormalised weights add up to the scaling", _weights_add_up,
                 within={"renormalise": (True,), "recipe": ("gaussian", "peaked", "flat", "far")}),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["moe_gating"],
)  # fmt: skip
