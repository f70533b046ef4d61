"""What must hold between runs of one implementation: flags, the cutting of requests into steps, and their company.

Each run may be off by the bound, so two may differ by twice that; the reference's bound is used, its value is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.component import Comparison, NotApplicable, Property, Subject
from npudiff.properties.decoder_layer.case import FLAGS, DecoderLayerCase
from npudiff.properties.decoder_layer.inputs import build_inputs, token_places
from npudiff.reference.decoder_layer import DecoderLayerInputs, LayerStep

Outputs = Mapping[str, torch.Tensor]


def _flags_change_nothing(subject: Subject, case: DecoderLayerCase) -> Comparison:
    """The same case through every path that the backend has for this layer; the worst comparison counts."""
    cases = [_flagged(case, *choice) for choice in _other_flags(case)]
    constraints, values = subject.implementation.constraints, subject.component.values
    others = [other for other in cases if constraints.reason_against(values(other)) is None]
    if not others:
        raise NotApplicable("the layer has one path only")
    inputs = build_inputs(case)
    before, bounds = subject.run(inputs), bounds_of(subject.expected(inputs))
    comparisons = [
        compare_runs(
            bounds, before, subject.run(build_inputs(other)), f"with {_named(other)} instead of {_named(case)}"
        )
        for other in others
    ]
    return max(comparisons, key=lambda comparison: comparison.worst)


def _flagged(
    case: DecoderLayerCase,
    use_fia: bool,
    fia_nz: bool,
    mlapo: bool,
    native_norm: bool,
) -> DecoderLayerCase:
    return replace(case, use_fia=use_fia, fia_nz=fia_nz, mlapo=mlapo, native_norm=native_norm)


def _other_flags(case: DecoderLayerCase) -> list[tuple[bool, ...]]:
    own = tuple(bool(getattr(case, flag)) for flag in FLAGS)
    return [choice for choice in itertools.product((False, True), repeat=len(FLAGS)) if choice != own]


def _named(case: DecoderLayerCase) -> str:
    return ", ".join(flag for flag in FLAGS if getattr(case, flag)) or "no flags"


def regrouped(inputs: DecoderLayerInputs, steps: Sequence[LayerStep]) -> tuple[DecoderLayerInputs, torch.Tensor]:
    """Return the same tokens in other steps, and which token of before each one is."""
    src_to_dst_row = list(zip(*(place.tolist() for place in token_places(inputs.steps)), strict=True))
    wanted = zip(*(place.tolist() for place in token_places(tuple(steps))), strict=True)
    order = torch.tensor([src_to_dst_row.index(place) for place in wanted])
    moved = {name: getattr(inputs, name)[order] for name in
             ("hidden", "residual", "positions", "slots", "sliding_slots")}  # fmt: skip
    return replace(inputs, steps=tuple(steps), **moved), order


def _in_other_steps(subject: Subject, case: DecoderLayerCase, steps: Sequence[LayerStep], context: str) -> Comparison:
    inputs = build_inputs(case)
    other, order = regrouped(inputs, steps)
    before = {name: output[order] for name, output in subject.run(inputs).items()}
    bounds = {name: bound[order] for name, bound in bounds_of(subject.expected(inputs)).items()}
    return compare_runs(bounds, before, subject.run(other), context)


def _decode_is_prefill(subject: Subject, case: DecoderLayerCase) -> Comparison:
    every = tuple(range(len(case.requests)))
    return _in_other_steps(
        subject, case, [LayerStep(every, case.lengths, case.lengths)], "all tokens in one step instead of several"
    )


def _chunks_change_nothing(subject: Subject, case: DecoderLayerCase) -> Comparison:
    every = tuple(range(len(case.requests)))
    halves = tuple(-(-length // 2) for length in case.lengths)
    rest = [index for index in every if case.lengths[index] > halves[index]]
    if not rest:
        raise NotApplicable("no request has two tokens")
    lengths = tuple(case.lengths[index] for index in rest)
    second = LayerStep(tuple(rest), tuple(case.lengths[index] - halves[index] for index in rest), lengths)
    return _in_other_steps(subject, case, [LayerStep(every, halves, halves), second], "requests in two halves")


def _requests_do_not_mix(subject: Subject, case: DecoderLayerCase) -> Comparison:
    inputs = build_inputs(case)
    alone = []
    for step in inputs.steps:
        for request, new, total in zip(step.requests, step.query_lengths, step.kv_lengths, strict=True):
            alone.append(LayerStep((request,), (new,), (total,)))
    return _in_other_steps(subject, case, sorted(alone, key=lambda step: step.requests), "one request after the other")


RELATIONS = (
    Property("flags_change_nothing", "flags of the backend change the path, never the result", _flags_change_nothing,
             example_ratio=0.2),
    Property("decode_is_prefill", "decode steps give what one longer prefill gives", _decode_is_prefill,
             within={"decode_steps": range(1, 65)}),
    Property("chunks_change_nothing", "where a request is cut into steps does not matter", _chunks_change_nothing),
    Property("requests_do_not_mix", "a request gives alone what it gives in company", _requests_do_not_mix,
             within={"batch": range(2, 257)}),
)  # fmt: skip
