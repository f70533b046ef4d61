"""The reference of causal convolutions, against transformers, by hand, and against another order of sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import causal_conv1d_fn, causal_conv1d_update

from npudiff.properties.causal_conv import CausalConvCase, Run, build_inputs
from npudiff.reference.causal_conv import CausalConvInputs, causal_conv

PROMPT = CausalConvCase((Run(17),), mode="prompt", history="none", channels=48, biased=True, seed=4)


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("activation", [False, True])
def test_transformers_agrees_on_a_prompt(width, activation):
    inputs = build_inputs(replace(PROMPT, width=width, activation=activation))
    weight, bias = inputs.weight.float().t().contiguous(), inputs.bias.float()
    theirs = causal_conv1d_fn(inputs.x.float().t()[None], weight, bias, activation="silu" if activation else None)
    expected = causal_conv(inputs)
    error = (theirs[0].t().double() - expected["output"].value).abs()
    assert bool((error <= expected["output"].bound).all())
    assert float(error.max()) < 1e-5
    line = int(inputs.line_of[0])
    assert torch.equal(expected["lines"].value[line, : width - 1], inputs.x[17 - width + 1 :])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_transformers_agrees_on_steps(length):
    """Its state has a row more than the history: one that no weight meets."""
    inputs = build_inputs(replace(PROMPT, mode="step", requests=(Run(length),)))
    line, weight = int(inputs.line_of[0]), inputs.weight.float().t().contiguous()
    state = torch.nn.functional.pad(inputs.lines[line, :3].float(), (0, 0, 1, 0)).t()[None].contiguous()
    theirs = causal_conv1d_update(
        inputs.x.float().t()[None].contiguous(), state, weight, inputs.bias.float(), activation="silu"
    )
    expected = causal_conv(inputs)
    assert float((theirs[0].t().double() - expected["output"].value).abs().max()) < 1e-5
    assert torch.equal(state[0, :, 1:].t().double(), expected["lines"].value[line, :3].double())


def by_hand(**changes):
    given = {
        "x": torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16),
        "weight": torch.tensor([[1000.0], [100.0], [10.0], [1.0]], dtype=torch.bfloat16),
        "bias": None,
        "lines": torch.tensor([[[7.0], [5.0], [3.0], [4.0], [6.0], [8.0]]], dtype=torch.bfloat16),
        "lengths": (2,),
        "line_of": torch.tensor([0], dtype=torch.int32),
        "activation": False,
    }
    return causal_conv(CausalConvInputs(**{**given, **changes}))


def test_a_step_by_hand():
    expected = by_hand()
    assert expected["output"].value.flatten().tolist() == [7531.0, 5312.0]
    assert expected["lines"].value.flatten().tolist() == [3.0, 1.0, 2.0, 4.0, 6.0, 8.0]


def test_a_draft_goes_on_behind_what_was_accepted_and_keeps_all_of_itself():
    expected = by_hand(mode="draft", accepted=torch.tensor([2], dtype=torch.int32))
    assert expected["output"].value.flatten().tolist() == [5341.0, 3412.0]  # behind 5, 3, 4
    assert expected["lines"].value.flatten().tolist() == [3.0, 4.0, 1.0, 2.0, 6.0, 8.0]


def test_a_prompt_without_history_begins_with_zeros():
    none = torch.tensor([False])
    expected = by_hand(mode="prompt", has_history=none)
    assert expected["output"].value.flatten().tolist() == [1.0, 12.0]
    assert expected["lines"].value.flatten().tolist() == [0.0, 1.0, 2.0, 4.0, 6.0, 8.0]


def test_padding_has_no_line_and_nothing_is_said_of_its_rows():
    expected = by_hand(line_of=torch.tensor([-1], dtype=torch.int32))
    assert bool(expected["output"].bound.isposinf().all())
    assert expected["lines"].value.flatten().tolist() == [7.0, 5.0, 3.0, 4.0, 6.0, 8.0]


def test_who_rounds_before_the_activation_needs_the_stage():
    """A sum in bfloat16 is off by more than one rounding of the result."""
    case = replace(PROMPT, requests=(Run(128),), history="all", biased=False)
    for rounding, holds in (("once", False), ("stages", True)):
        inputs = build_inputs(replace(case, rounding=rounding))
        z = torch.cat([inputs.lines[int(inputs.line_of[0]), :3], inputs.x]).float()
        sums = sum(z[j : j + 128] * one for j, one in enumerate(inputs.weight.float()))
        output = torch.nn.functional.silu(sums.bfloat16().float()).bfloat16().double()
        expected = causal_conv(inputs)["output"]
        assert bool(((output - expected.value).abs() <= expected.bound).all()) is holds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.ones(4, 2)}, "have 1 channels"),
        ({"mode": "other"}, "mode is one of"),
        ({"accepted": torch.tensor([1])}, "of a draft"),
        ({"has_history": torch.tensor([True])}, "only a prompt"),
        ({"lengths": (3,)}, "are not of 2 rows"),
        ({"line_of": torch.tensor([1])}, "different ones of the pool"),
        ({"line_of": torch.tensor([0, 0]), "lengths": (1, 1)}, "different ones of the pool"),
        ({"mode": "draft", "accepted": torch.tensor([5])}, "lines have 7 rows or more"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        by_hand(**changes)
