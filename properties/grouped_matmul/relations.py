"""What must hold of grouped matrix products, whatever the right answer is."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Property, Subject
from npudiff.properties.grouped_matmul.case import GroupedMatmulCase
from npudiff.properties.grouped_matmul.inputs import build_inputs
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.grouped_matmul import counts_of


def _experts_in_another_order(subject: Subject, case: GroupedMatmulCase) -> Comparison:
    """Groups change places, and their matrices with them."""
    inputs = build_inputs(case)
    order = Stream(case.seed, "order").permutation(case.experts)
    counts = counts_of(inputs.group_list, inputs.group_list_type, case.experts)
    starts = counts.cumsum(0) - counts
    moved = [row for expert in order for row in range(int(starts[expert]), int(starts[expert] + counts[expert]))]
    weights = inputs.weights
    scale, bias = (None if part is None else part[order] for part in (weights.scale, weights.bias))
    offset = None if weights.offset is None else weights.offset[order]
    other = replace(
        inputs,
        states=inputs.states[moved],
        token_scale=None if inputs.token_scale is None else inputs.token_scale[moved],
        weights=ExpertWeights(weights.values[order], weights.bits, scale, offset, bias),
        group_list=counts[order],
        group_list_type="counts",
    )
    subject.require(replace(case, group_list="counts", beyond=0, rows="contiguous", transposed=False), "as counts")
    before = {name: output[moved] for name, output in subject.run(inputs).items()}
    return compare_runs(bounds_of(subject.expected(other)), before, subject.run(other), "experts in another order")


def _rows_beyond_change_nothing(subject: Subject, case: GroupedMatmulCase) -> Comparison:
    """Rows that belong to no group may hold anything."""
    more = replace(case, beyond=case.beyond + 3)
    subject.require(more, "with rows beyond the last group")
    inputs = build_inputs(case)
    fuller = build_inputs(more)
    states = fuller.states.clone()
    states[: len(inputs.states)] = inputs.states
    states[case.rows_of_all :] = 127 if states.dtype == torch.int8 else float("nan")
    scale = fuller.token_scale
    if scale is not None and inputs.token_scale is not None:
        scale = torch.cat([inputs.token_scale, scale[len(inputs.token_scale) :]])
    other = subject.run(replace(fuller, states=states, token_scale=scale))
    bounds = bounds_of(subject.expected(inputs))
    return compare_runs(bounds, subject.run(inputs), {"output": other["output"][: len(inputs.states)]}, "rows beyond")


RELATIONS = (
    Property("experts_in_another_order", "experts change places with their rows, and nothing else does",
             _experts_in_another_order, within={"split": ("rows",), "experts": range(2, 1025)}),
    Property("rows_beyond_change_nothing", "rows of no group may hold anything", _rows_beyond_change_nothing,
             within={"split": ("rows",), "beyond": (0,)}),
)  # fmt: skip
