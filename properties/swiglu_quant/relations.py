"""What must hold between runs of one implementation."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, bounds_of, compare, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import NotApplicable, Property, Subject
from npudiff.properties._shared.token_order import in_another_order
from npudiff.properties.swiglu_quant.case import SwigluQuantCase
from npudiff.properties.swiglu_quant.inputs import build_inputs
from npudiff.reference.swiglu_quant import SwigluQuantInputs


def _tokens_do_not_mix(subject: Subject, case: SwigluQuantCase) -> Comparison:
    """Rows of a group change places among themselves; those that are nobody's stay."""
    inputs = build_inputs(case)
    ends = [case.tokens] if inputs.counts is None else inputs.counts.cumsum(0).tolist()
    order: list[int] = []
    for end in ends:
        start = len(order)
        order += [start + place for place in Stream(case.seed, f"order {start}").permutation(end - start)]
    order += range(case.tokens, case.all_rows)
    return in_another_order(subject, inputs, order, ("states", "token_scale"))


def _twice_the_ups(subject: Subject, case: SwigluQuantCase) -> Comparison:
    """Without a limit the result is proportional to the ups, and doubling is exact."""
    inputs = build_inputs(case)
    once, twice = subject.run(inputs), subject.run(_with_ups_doubled(inputs))
    bounds = bounds_of(subject.expected(inputs))
    right = {
        "quantised": Derived(once["quantised"].to(torch.float64), 2 * bounds["quantised"], torch.int8),
        "scale": Derived(2 * once["scale"].to(torch.float64), 4 * bounds["scale"], torch.float32),
    }
    return compare(right, {name: twice[name] for name in right}, "ups that are twice as large")


def _with_ups_doubled(inputs: SwigluQuantInputs) -> SwigluQuantInputs:
    is_up = torch.zeros(2 * inputs.width, dtype=torch.bool)
    ups = {"left": slice(inputs.width, None), "right": slice(inputs.width), "even": slice(1, None, 2)}
    is_up[ups[inputs.gates]] = True
    if inputs.weight_scale is None:
        return replace(inputs, states=torch.where(is_up, 2 * inputs.states, inputs.states))
    return replace(inputs, weight_scale=torch.where(is_up, 2 * inputs.weight_scale, inputs.weight_scale))


def _rows_to_spare(subject: Subject, case: SwigluQuantCase) -> Comparison:
    """Rows behind those of all groups, copies of the first one, are nobody's business."""
    inputs = build_inputs(case)
    tokens = inputs.token_scale
    more = replace(
        inputs,
        states=torch.cat([inputs.states, inputs.states[:1].expand(3, -1)]),
        token_scale=None if tokens is None else torch.cat([tokens, tokens[:1].expand(3)]),
    )
    outputs = subject.run(more)
    others = {name: output[: case.all_rows] for name, output in outputs.items()}
    return compare_runs(bounds_of(subject.expected(inputs)), subject.run(inputs), others, "with three rows to spare")


def _a_group_in_two(subject: Subject, case: SwigluQuantCase) -> Comparison:
    """The largest group as two that have its scales."""
    inputs = build_inputs(case)
    if inputs.counts is None:
        raise NotApplicable("there are no groups")
    largest = int(inputs.counts.argmax())
    groups = torch.arange(len(inputs.counts))
    twice = torch.cat([groups[: largest + 1], groups[largest:]])
    counts = inputs.counts[twice]
    counts[largest] = inputs.counts[largest] // 2
    counts[largest + 1] -= counts[largest]
    column, smooth = (scale if scale is None else scale[twice] for scale in (inputs.weight_scale, inputs.smooth))
    other = replace(inputs, counts=counts, weight_scale=column, smooth=smooth)
    return compare_runs(bounds_of(subject.expected(inputs)), subject.run(inputs), subject.run(other), "a group in two")


GROUPED = {"groups": range(1, 1024)}

RELATIONS = (
    Property("tokens_do_not_mix", "the order of the tokens of a group does not matter", _tokens_do_not_mix,
             within={"tokens": range(2, 2**16 + 1)}),
    Property("twice_the_ups", "ups twice as large have scales twice as large, and the same integers", _twice_the_ups,
             within={"activation": ("silu",)}),
    Property("rows_to_spare", "rows behind those of all groups change nothing", _rows_to_spare, within=GROUPED),
    Property("a_group_in_two", "a group as two with the same scales gives the same", _a_group_in_two, within=GROUPED),
)  # fmt: skip
