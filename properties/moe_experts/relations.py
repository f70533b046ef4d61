"""What must hold of experts, whatever the right answer is."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Property, Subject
from npudiff.properties._shared.token_order import in_another_order
from npudiff.properties.moe_experts.case import MoeExpertsCase
from npudiff.properties.moe_experts.inputs import build_inputs
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.moe_experts import Experts, MoeExpertsInputs


def _tokens_do_not_mix(subject: Subject, case: MoeExpertsCase) -> Comparison:
    order = Stream(case.seed, "order").permutation(case.tokens)
    return in_another_order(subject, build_inputs(case), order, ("states", "chosen", "weights"))


def _experts_in_another_order(subject: Subject, case: MoeExpertsCase) -> Comparison:
    """Experts change numbers, and their matrices places; nobody's answer changes."""
    inputs = build_inputs(case)
    order = torch.tensor(Stream(case.seed, "order").permutation(case.experts))
    numbers = torch.argsort(order)  # the new number of each expert
    here = numbers[inputs.here]
    places = torch.argsort(here)
    renamed = replace(
        inputs,
        chosen=numbers[inputs.chosen.long()].to(torch.int32),
        here=here[places],
        routed=_taken(inputs.routed, places),
    )
    bounds = bounds_of(subject.expected(inputs))
    return compare_runs(bounds, subject.run(inputs), subject.run(renamed), "experts with other numbers")


def _taken(experts: Experts, places: torch.Tensor) -> Experts:
    return replace(experts, up=_matrices(experts.up, places), down=_matrices(experts.down, places))


def _matrices(weights: ExpertWeights, places: torch.Tensor) -> ExpertWeights:
    scale, bias = (None if part is None else part[places] for part in (weights.scale, weights.bias))
    return ExpertWeights(weights.values[places], weights.bits, scale, weights.offset, bias)


def _in_two_calls(subject: Subject, case: MoeExpertsCase) -> Comparison:
    """Tokens in two calls have what they have in one."""
    inputs = build_inputs(case)
    middle = case.tokens // 2
    parts = [subject.run(_some(inputs, part)) for part in (slice(middle), slice(middle, None))]
    other = {name: torch.cat([part[name] for part in parts]) for name in ("output",)}
    return compare_runs(bounds_of(subject.expected(inputs)), subject.run(inputs), other, "tokens in two calls")


def _some(inputs: MoeExpertsInputs, tokens: slice) -> MoeExpertsInputs:
    return replace(inputs, states=inputs.states[tokens], chosen=inputs.chosen[tokens], weights=inputs.weights[tokens])


RELATIONS = (
    Property("tokens_do_not_mix", "the order of tokens does not matter", _tokens_do_not_mix,
             within={"tokens": range(2, 4097)}),
    Property("experts_in_another_order", "experts change places with their matrices, and nothing else does",
             _experts_in_another_order, within={"experts": range(2, 1025), "here": ("all", "local")}),
    Property("in_two_calls", "tokens in two calls have what they have in one", _in_two_calls,
             within={"tokens": range(2, 4097)}),
)  # fmt: skip
