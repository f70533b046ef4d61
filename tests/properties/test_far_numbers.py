"""Numbers of any exponent, logits beyond exponentials, and rows of NaN: what they find, and that they are legal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import npudiff
from npudiff.device import ascend, targets
from npudiff.device.ascend.dynamic_quant import quantised, smoothed
from npudiff.device.ascend.moe_gating import best, by_expert, scored, weighted
from npudiff.draw.data import Stream
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties._shared import magnitudes
from npudiff.properties.moe_finalize import MoeFinalizeCase
from npudiff.properties.moe_gating import MoeGatingCase
from npudiff.run.discovery import load_component
from npudiff.run.engine import run_job

check_case = MoeGatingCase.check


def outcome(component, function, **within):
    """Look for a kernel that is wrong, as a run with the default budget does."""
    item = npudiff.implementation(component, name="mine", supports=within)(function)
    job = Job(Subject(load_component(component), item, targets.sim(None)), EQUIVALENCE, item.constraints)
    return run_job(job, Budget(examples=100, seed=2))


@pytest.mark.parametrize("dtype", magnitudes.EXPONENTS)
def test_the_largest_number_of_a_row_has_an_exponent_of_its_own(dtype):
    exponents = magnitudes.EXPONENTS[dtype]
    rows = Stream(0, "rows").normal((64, 5), torch.float32)
    rows[1] = 0
    made = magnitudes.of_exponents(rows, dtype, Stream(0, "exponents")).to(dtype).to(torch.float64)
    assert bool(made.isfinite().all())
    assert torch.equal(made[1], torch.zeros(5, dtype=torch.float64))
    largest = torch.cat([made[:1], made[2:]]).abs().amax(dim=1)
    found = largest.log2().floor().to(torch.int64).tolist()
    assert {exponents.start, exponents.stop - 1} <= {*found, *(one - 1 for one in found)}  # rounding may add one
    assert len(set(found)) > 15
    assert set(found) <= set(range(exponents.start, exponents.stop + 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_devices_make_of_the_ends_is_normal_float32(dtype):
    least, most = (2.0**end for end in (magnitudes.EXPONENTS[dtype].start, magnitudes.EXPONENTS[dtype].stop))
    normal = torch.finfo(torch.float32)
    factors = (0.05, 2.0)  # of smooth
    for number in (least * factors[0] / 127, 127 / (most * factors[1])):
        assert number >= normal.smallest_normal
    for number in (most * factors[1], 127 / (least * factors[0])):
        assert number <= normal.max


def floored(inputs, target):
    """Take no scale below that of 1e-5."""
    states = smoothed(inputs.to(target.device))
    levels = 2 ** (inputs.bits - 1) - 1
    largest = states.abs().amax(dim=1)
    scale = torch.where(largest == 0, 1.0, largest.clamp(min=1e-5) / levels)
    return {"quantised": torch.round(states / scale.unsqueeze(1)).to(torch.int8), "scale": scale}


@pytest.mark.slow
def test_a_quantisation_that_has_a_least_scale_is_found():
    wide = {"width": (64, 1000)}
    assert outcome("dynamic_quant", floored, **wide, recipe=("gaussian", "tiny", "zero rows", "large")).failure is None
    failure = outcome("dynamic_quant", floored, **wide).failure
    assert failure.case.recipe == "any exponent"
    assert failure.case.tokens == 1


@pytest.mark.slow
def test_a_right_quantisation_holds_for_every_exponent():
    def right(inputs, target):
        return quantised(smoothed(inputs.to(target.device)), inputs.bits)

    assert outcome("dynamic_quant", right, recipe=("any exponent",)).verdict is Verdict.HOLDS


@pytest.mark.slow
def test_a_softmax_that_subtracts_no_maximum_is_found():
    def function(inputs, target):
        scores = scored(inputs)
        if inputs.scoring == "softmax":
            powers = inputs.logits.float().exp()
            scores = powers / powers.sum(dim=1, keepdim=True)
        index = best(inputs, scores)
        return by_expert(inputs, weighted(inputs, scores.gather(1, index)), index)

    assert outcome("moe_gating", function, recipe=("gaussian", "peaked", "flat", "ties")).failure is None
    failure = outcome("moe_gating", function).failure
    assert (failure.case.recipe, failure.case.tokens, failure.case.top_k) == ("far", 1, 1)


def test_logits_beyond_exponentials_are_for_softmax():
    check_case(MoeGatingCase(2, recipe="far"))
    with pytest.raises(ValueError, match="recipe far is for softmax"):
        check_case(MoeGatingCase(2, recipe="far", scoring="sigmoid"))


def with_weight_0(inputs, target):
    """Bring back the last row for what is left out, with weight 0."""
    del target
    rows = inputs.expanded_rows[inputs.src_to_dst_row.long()].float()
    weights = inputs.weights.masked_fill(inputs.src_to_dst_row < 0, 0.0).float()
    total = (rows * weights.unsqueeze(2)).sum(dim=1)
    return (total if inputs.residual is None else total + inputs.residual.float()).to(inputs.expanded_rows.dtype)


@pytest.mark.slow
def test_a_sum_in_which_0_times_a_row_that_is_left_out_takes_part_is_found():
    assert outcome("moe_finalize", with_weight_0, poison=("large",)).failure is None
    failure = outcome("moe_finalize", with_weight_0).failure
    assert (failure.case.poison, failure.case.tokens, failure.case.top_k) == ("nan", 1, 1)
    assert ascend.token_unpermute.constraints.boxes == Constraints.of({"poison": ("large",)}).boxes


def test_poison_is_in_the_rows_that_no_place_names_and_nowhere_else():
    component, plain = load_component("moe_finalize"), MoeFinalizeCase(4, 2, spare_rows=3)
    for case in (plain, replace(plain, dropped="some"), replace(plain, weights="zero for padding")):
        inputs = component.inputs(replace(case, poison="nan"))
        unnamed = sorted(set(range(len(inputs.expanded_rows))) - set(inputs.src_to_dst_row.flatten().tolist()))
        poisoned = inputs.expanded_rows.isnan().all(dim=1).nonzero().flatten().tolist()
        assert poisoned == unnamed
        assert int(inputs.expanded_rows.isnan().sum()) == len(unnamed) * case.width
    assert component.values(replace(plain, spare_rows=0))["poison"] == ()
