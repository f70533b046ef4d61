"""The choice of experts: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare
from npudiff.judge.relations import Changed, relation, tokens_do_not_mix
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box, Numbers
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_experts
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

MOST_ELEMENTS = 2**17
"""Logits up to which a case may have more rows than it must."""

MOST_KEPT = 64
"""Experts of the kept groups up to which all of them may be chosen: what is left out otherwise is the worst of them."""


def _experts(case: MoeGatingCase) -> Sequence[int]:
    if case.huge:
        return (4, 3)
    return EXPERTS[3:] if case.far == "top_k" else EXPERTS


def _top_ks(case: MoeGatingCase) -> Sequence[int]:
    """Experts of a token; of many experts mostly 8, for which kernels are written, and now and then all of them."""
    return (1, 2, 4, 6, 8, *([8, 8] if case.experts > MOST_KEPT else []), *case.all_kept)


@dataclass(frozen=True)
class MoeGatingCase(Case):
    """One call, as sizes, configuration and a recipe."""

    tokens: int = axis(
        "rows", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 65, 257),
        affordable=lambda case, tokens: case.affords(tokens * case.experts, MOST_ELEMENTS),
        shown=lambda case: f"{counted(case.tokens, 'token')} to {case.top_k} of {case.experts}",
    )  # fmt: skip
    experts: int = axis(
        "routed experts", range(1, 2049), 8, drawn=_experts,
        shown="",
    )  # fmt: skip
    top_k: int = axis(
        "experts of a token", range(1, 2049), 1, drawn=_top_ks,
        fits=lambda case, top_k: top_k <= case.room, shown="", region="several experts",
        was="chosen",
    )  # fmt: skip
    dtype: str = axis("dtype of logits and weights", tuple(DTYPES), "float32", always=True, region="16 bit")
    scoring: str = axis(
        "how scores come from logits", SCORINGS, "softmax", always=True, region=lambda case: case.scoring
    )
    bias: bool = axis("whether experts have a bias for the choice", (False, True), False, region="bias")
    groups: int = axis(
        "groups of experts", range(1, 1025), 1, drawn=(1, 1, 2, 4, 8),
        fits=lambda case, count: case.experts % count == 0 and (count == 1 or case.experts // count > 2),
        shown=lambda case: f"{case.kept_groups} of {case.groups} groups by {case.group_score}" * (case.groups > 1),
    )  # fmt: skip
    kept_groups: int = axis(
        "groups from which experts are taken", range(1, 1025), 1, drawn=(1, 2, 4, 8),
        fits=lambda case, count: count <= case.groups, shown="",
    )  # fmt: skip
    group_score: str = axis(
        "what a group is worth", GROUP_SCORES, "sum of two", applies=lambda case: case.groups > 1, shown=""
    )
    renormalise: bool = axis(
        "whether weights add up to 1 before they are scaled", (False, True), False,
        shown="renormalised", region="renormalised",
    )  # fmt: skip
    scaling: float = axis(
        "factor of the weights", Numbers(1e-3, 1e3), 1.0, drawn=SCALINGS, shown="scaling {:g}", region="scaled"
    )
    recipe: str = axis(
        "how the logits are made", RECIPES, "gaussian",
        drawn=lambda case: RECIPES if case.scoring == "softmax" else RECIPES[:-1],
        fits=lambda case, recipe: recipe != "far" or case.scoring == "softmax", region="{}",
    )  # fmt: skip
    rows: str = rows.axis(several="tokens")
    seed: int = seed()

    drawn_first = ("experts", "tokens", "groups", "kept_groups", "scoring", "recipe")
    shown_first = ("tokens", "scoring", "bias", "groups", "renormalise", "scaling")
    outliers = ("top_k", "experts", "tokens")
    huge_axes = ("tokens",)

    @property
    def room(self) -> int:
        """Experts of the kept groups."""
        return self.experts // self.groups * self.kept_groups

    @property
    def all_kept(self) -> tuple[int, ...]:
        """All experts of the kept groups, where they are few."""
        return (self.room,) if self.kept_groups < self.groups and self.room <= MOST_KEPT else ()

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.tokens * self.experts > 2**26:
            yield f"there would be more than {2**26} logits"
        if self.recipe == "far" and self.scoring != "softmax":
            yield f"recipe far is for softmax, got {self.scoring}"
        if self.kept_groups > self.groups or self.experts % self.groups:
            yield f"{self.kept_groups} of {self.groups} groups cannot be kept of {self.experts} experts"
        if self.groups > 1 and self.experts // self.groups <= 2:
            yield "a group has more than two experts"
        if self.top_k > self.room:
            yield f"top_k lies beyond the experts that are left, got {self.top_k}"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {"groups": self.groups > self.kept_groups, "all experts": self.top_k == self.room}


def build_inputs(case: MoeGatingCase) -> MoeGatingInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]
    bias = None
    if case.bias:
        size = 0.3 if case.scoring != "softmax" else 2.0 / case.experts
        shift = (0.0, 0.0, 0.0, -3.0, 3.0)[case.seed % 5]  # that of all experts decides nothing
        bias = (Stream(case.seed, "bias").normal((case.experts,), torch.float32) * size + shift).to(dtype)
    return MoeGatingInputs(
        logits=rows.with_row_stride(_logits(case).to(dtype), case.rows),
        bias=bias,
        top_k=case.top_k,
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


def coordinates(inputs: MoeGatingInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token and expert."""
    tokens, experts = inputs.logits.shape
    token = torch.arange(tokens)
    if output == "top_k":
        return {"token": token}
    size = experts // inputs.groups
    expert = torch.arange(experts)
    return {"token": token.unsqueeze(1), "expert": expert.unsqueeze(0), "group": (expert // size).unsqueeze(0)}


def _experts_are_alike(inputs: MoeGatingInputs, case: MoeGatingCase) -> Changed[MoeGatingInputs]:
    """Experts in another order have the same weights there."""
    order = Stream(case.seed, "experts").permutation(case.experts)
    bias = None if inputs.bias is None else inputs.bias[order]
    other = replace(inputs, logits=inputs.logits[:, order].contiguous(), bias=bias)
    return Changed(other, lambda outputs: {**outputs, "weights": outputs["weights"][:, order]})


def _weights_add_up(subject: Subject, case: MoeGatingCase) -> Comparison:
    inputs = build_inputs(case)
    weights = subject.run(inputs)["weights"].to(torch.float64)
    size = torch.full((case.tokens,), case.scaling, dtype=torch.float64)
    bound = subject.expected(inputs)["weights"].bound.sum(dim=1)
    return compare({"weights": Derived(size, bound)}, {"weights": weights.sum(dim=1)}, "sums of a token's weights")


def _sizes(model: Model) -> Box | None:
    if not model.scoring:
        return None
    return {
        "tokens": FEW,
        "experts": (model.experts,),
        "top_k": (model.top_k,),
        "scoring": (model.scoring,),
        "bias": (model.router_bias,),
        "groups": (model.router_groups,),
        "kept_groups": (model.kept_groups,),
        "renormalise": (model.renormalise,),
        "scaling": (model.scaling,),
        "dtype": ("float32",),
    }


component = Component(
    name="moe_gating",
    summary="which experts a token goes to, and with what weights",
    case_type=MoeGatingCase,
    outputs=("weights", "top_k"),
    inputs=build_inputs,
    reference=moe_gating,
    coordinates=coordinates,
    highlighted_region="groups",
    relations=(
        tokens_do_not_mix("logits"),
        relation("experts_are_alike", "the order of experts does not matter", _experts_are_alike,
                 within={"groups": (1,), "recipe": ("gaussian", "peaked", "far")}),
        Property("weights_add_up", "renormalised weights add up to the scaling", _weights_add_up,
                 within={"renormalise": (True,), "recipe": ("gaussian", "peaked", "flat", "far")}),
    ),
    profiles=of_experts(_sizes),
    baselines=BASELINES["moe_gating"],
)  # fmt: skip
