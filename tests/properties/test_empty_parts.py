"""Empty parts: where they may stand, that they are drawn, and that kernels which drop them from one list are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import npudiff
from draws import drawn
from npudiff.device import ascend, targets
from npudiff.device.ascend.cache_gather import gathered, tokens
from npudiff.device.ascend.dynamic_quant import quantised
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Job
from npudiff.properties._shared import empty_parts
from npudiff.properties.dynamic_quant import DynamicQuantCase, build_inputs
from npudiff.run.discovery import load_component
from npudiff.run.engine import run_job

check_case = DynamicQuantCase.check

ALL = range(1, 9)


def found(component, function, **supports):
    """Look for a kernel that is wrong, as a run with the default budget does."""
    item = npudiff.implementation(component, name="mine", supports=supports)(function)
    job = Job(Subject(load_component(component), item, targets.sim(None)), EQUIVALENCE, item.constraints)
    return run_job(job, Budget(examples=100, seed=2)).failure


@pytest.mark.parametrize("kind", empty_parts.KINDS)
def test_some_part_is_left_and_it_is_another_one_for_each_kind(kind):
    for parts in ALL:
        empty = empty_parts.which(kind, parts)
        assert len(empty) < parts
        assert set(empty) <= set(range(parts))
        assert bool(empty) == (empty_parts.fits(kind, parts) and kind != "none")


def test_the_places_are_the_ends_the_middle_and_all_but_it():
    assert [list(empty_parts.which(kind, 3)) for kind in empty_parts.KINDS] == [[], [0], [1], [2], [0, 2]]
    assert [list(empty_parts.which(kind, 4)) for kind in empty_parts.KINDS] == [[], [0], [1], [3], [0, 1, 3]]
    assert [list(empty_parts.which(kind, 2)) for kind in empty_parts.KINDS] == [[], [0], [0], [1], [0]]


def src_to_dst_row(lengths):
    """Where empty parts stand, before one that is not empty."""
    last = max((place for place, length in enumerate(lengths) if length), default=-1)
    return {"first" if place == 0 else "middle" for place in range(last) if not lengths[place]}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("cache_gather", lambda case: [request.length for request in case.requests]),
        ("sliding_attention", lambda case: [request.query for request in case.requests]),
        ("dynamic_quant", lambda case: rows_of_experts(case) if case.smooth == "per expert" else []),
    ],
)
def test_empty_parts_are_drawn_before_others(name, lengths):
    cases = drawn(load_component(name), Constraints(), 200)
    assert set().union(*(src_to_dst_row(lengths(case)) for case in cases)) == {"first", "middle"}


def rows_of_experts(case):
    ends = build_inputs(case).expert_ends
    return torch.diff(ends, prepend=ends.new_zeros(1)).tolist()


@pytest.mark.parametrize("kind", empty_parts.KINDS)
def test_experts_have_rows_but_those_that_are_to_be_empty(kind):
    case = DynamicQuantCase(6, smooth="per expert", experts=4, empty_experts=kind)
    check_case(case)
    empty = [expert for expert, rows in enumerate(rows_of_experts(case)) if not rows]
    assert empty == list(empty_parts.which(kind, 4))


def test_too_few_experts_are_refused():
    case = DynamicQuantCase(6, smooth="per expert", experts=1, empty_experts="middle")
    with pytest.raises(ValueError, match="none can be empty as middle"):
        check_case(case)


def test_an_operator_whose_ends_rise_is_given_no_expert_without_rows():
    for item in (ascend.npu_dynamic_quant, ascend.npu_dynamic_quant_int4):
        for case in drawn(load_component("dynamic_quant"), item.constraints):
            assert case.empty_experts == "none"


def ends_named_once(inputs, target):
    """Quantise with the factors of experts as numbered by ends that differ."""
    on_device = inputs.to(target.device)
    states = on_device.states.float()
    if on_device.smooth is None:
        return quantised(states, on_device.bits)
    factors = on_device.smooth.float()
    if on_device.expert_ends is not None:
        rows = torch.arange(len(states))
        factors = factors[torch.bucketize(rows, torch.unique(on_device.expert_ends), right=True)]
    return quantised(states * factors, on_device.bits)


def requests_with_tokens(inputs, target):
    """Gather with block tables as numbered by requests that have tokens."""
    on_device = inputs.to(target.device)
    request, token = tokens(on_device)
    row = torch.cumsum(on_device.lengths > 0, 0)[request] - 1
    page = on_device.block_table[row, token // on_device.page_size].long().clamp(min=0)
    return gathered(on_device, page, token % on_device.page_size)


def rows_without_table(inputs, target):
    """Attend with block tables as numbered by requests that have rows."""
    pool = inputs.full
    table = torch.zeros_like(pool.block_table)
    with_rows = [request for request, rows in enumerate(inputs.query_lengths) if rows]
    table[with_rows] = pool.block_table[: len(with_rows)]
    return ascend.torch_native.function(replace(inputs, full=replace(pool, block_table=table)), target)


@pytest.mark.slow
def test_a_kernel_that_drops_experts_without_rows_is_found():
    failure = found("dynamic_quant", ends_named_once)
    assert (failure.case.tokens, failure.case.experts, failure.case.empty_experts) == (3, 3, "middle")


@pytest.mark.slow
def test_a_kernel_that_drops_requests_without_tokens_is_found():
    failure = found("cache_gather", requests_with_tokens, layout=("PA_BSND", "PA_BNSD"))
    assert [request.length for request in failure.case.requests] == [0, 1]


@pytest.mark.slow
def test_a_kernel_that_drops_requests_without_rows_is_found():
    constraints = ascend.torch_native.constraints.boxes[0]
    failure = found("sliding_attention", rows_without_table, **constraints, hybrid=(False,))
    assert [request.query for request in failure.case.requests] == [0, 1]
