from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.properties.moe_experts import MoeExpertsCase, build_inputs
from npudiff.reference.dynamic_quant import as_terms, by_largest
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.inexact import Inexact
from npudiff.reference.moe_experts import Experts, Gate, MoeExpertsInputs, moe_experts
from npudiff.reference.swiglu import Activation

TOKENS, HIDDEN, WIDTH, EXPERTS, TOP_K = 9, 24, 16, 5, 3


def numbers(*shape, name="numbers", size=1.0):
    return Stream(11, name).normal(shape, torch.float32) * size


def given(gate, **changes):
    """Experts whose numbers bfloat16 has, so that a float64 model computes with the same."""
    up = ExpertWeights(numbers(EXPERTS, HIDDEN, 2 * WIDTH, name="up", size=HIDDEN**-0.5).bfloat16())
    down = ExpertWeights(numbers(EXPERTS, WIDTH, HIDDEN, name="down", size=WIDTH**-0.5).bfloat16())
    topk_ids = torch.stack(
        [torch.tensor(Stream(token, "chosen").permutation(EXPERTS)[:TOP_K]) for token in range(TOKENS)]
    )
    arguments = {
        "states": numbers(TOKENS, HIDDEN, name="states", size=4.0).bfloat16(),
        "topk_ids": topk_ids.to(torch.int32),
        "weights": numbers(TOKENS, TOP_K, name="weights").abs().bfloat16(),
        "here": torch.arange(EXPERTS),
        "routed": Experts(up, down, gate),
    }
    return MoeExpertsInputs(**(arguments | changes))


def run(module, inputs):
    for name, weights in (("gate_up_proj", inputs.routed.up), ("down_proj", inputs.routed.down)):
        parameter = getattr(module, name)
        values = weights.values if parameter.shape == weights.values.shape else weights.values.transpose(1, 2)
        parameter.data = values.double().contiguous()
    return module(inputs.states.double(), inputs.topk_ids.long(), inputs.weights.double())


def test_it_is_the_experts_of_qwen3_in_transformers():
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = SimpleNamespace(num_experts=EXPERTS, hidden_size=HIDDEN, moe_intermediate_size=WIDTH, hidden_act="silu",
                             _experts_implementation="eager")  # fmt: skip
    inputs = given(Gate())
    right = run(Qwen3MoeExperts(config), inputs)
    assert torch.allclose(moe_experts(inputs)["output"].value, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [None, 1.5])
def test_it_is_the_experts_of_step_in_transformers(limit):
    from transformers.models.step3p7.modeling_step3p7 import Step3p7Experts

    config = SimpleNamespace(num_local_experts=EXPERTS, hidden_size=HIDDEN, moe_intermediate_size=WIDTH,
                             hidden_act="silu", _experts_implementation="eager")  # fmt: skip
    inputs = given(Gate(limit=limit))
    right = run(Step3p7Experts(config, limit), inputs)
    assert torch.allclose(moe_experts(inputs)["output"].value, right, rtol=1e-12, atol=1e-12)


def test_it_is_the_experts_of_gpt_oss_in_transformers():
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = SimpleNamespace(num_local_experts=EXPERTS, hidden_size=HIDDEN, intermediate_size=WIDTH, swiglu_alpha=1.702,
                             swiglu_limit=2.0, _experts_implementation="eager")  # fmt: skip
    inputs = given(Gate(Activation.SWIGLU_OAI, 2.0, layout="interleaved"))
    biases = [numbers(EXPERTS, columns, name=f"{columns}") for columns in (2 * WIDTH, HIDDEN)]
    routed = inputs.routed
    routed = replace(routed, up=replace(routed.up, bias=biases[0]), down=replace(routed.down, bias=biases[1]))
    module = GptOssExperts(config)
    module.gate_up_proj_bias.data, module.down_proj_bias.data = (bias.double() for bias in biases)
    inputs = replace(inputs, routed=routed)
    assert torch.allclose(moe_experts(inputs)["output"].value, run(module, inputs), rtol=1e-12, atol=1e-12)


def test_it_is_the_mixture_of_deepseek_in_transformers_with_its_shared_expert():
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts, DeepseekV3MLP

    config = SimpleNamespace(num_local_experts=EXPERTS, n_routed_experts=EXPERTS, hidden_size=HIDDEN, hidden_act="silu",
                             moe_intermediate_size=WIDTH, _experts_implementation="eager")  # fmt: skip
    shared = Experts(
        ExpertWeights(numbers(1, HIDDEN, 2 * WIDTH, name="shared up").bfloat16()),
        ExpertWeights(numbers(1, WIDTH, HIDDEN, name="shared down").bfloat16()),
    )
    inputs = given(Gate(), shared=shared)
    dense = DeepseekV3MLP(config, intermediate_size=WIDTH)
    matrix = shared.up.values[0].double().T.contiguous()
    dense.gate_proj.weight.data, dense.up_proj.weight.data = matrix[:WIDTH], matrix[WIDTH:]
    dense.down_proj.weight.data = shared.down.values[0].double().T.contiguous()
    right = run(DeepseekV3Experts(config), inputs) + dense(inputs.states.double())
    assert torch.allclose(moe_experts(inputs)["output"].value, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["w8a8", "w4a8"])
def test_whole_numbers_are_near_the_same_layer_without_quantisation_of_rows(form):
    """The numbers themselves are the middle of what a device may have: integers are off them by roundings alone."""
    inputs = build_inputs(MoeExpertsCase(7, hidden=256, width=128, experts=4, top_k=2, form=form))

    def plain(weights):
        return ExpertWeights((weights.values.double() * weights.scale.double()).float())

    routed = replace(inputs.routed, up=plain(inputs.routed.up), down=plain(inputs.routed.down))
    right = moe_experts(replace(inputs, routed=routed))["output"].value
    expected = moe_experts(inputs)["output"]
    difference = (expected.value - right).abs()
    assert bool((difference <= expected.bound).all())
    assert float(expected.bound.mean()) < 0.25 * float(right.square().mean().sqrt())


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_as_terms_are_the_middle_of_what_they_may_be(bits):
    states = Inexact.exact(numbers(6, 200).bfloat16())
    terms, size = as_terms(states, bits)
    steps, scale = by_largest(states, bits)
    assert torch.equal(size.value, scale.value)
    integers = steps.value.round()
    assert bool(((terms.value - integers).abs() <= terms.error).all())
    assert bool(((terms.error == 0) | (terms.error == 0.5)).all())
    assert 0.0 < float((terms.error > 0).double().mean()) < 0.15


def test_a_row_of_zeros_that_may_be_something_else_is_no_larger_than_that():
    states = Inexact(torch.zeros(3, 4, dtype=torch.float64), torch.tensor([[0.0] * 4, [1e-9] * 4, [1e-9, 0, 0, 0]]))
    steps, _ = by_largest(states, 8)
    assert steps.error[:, 0].tolist() == [0, math.inf, math.inf]
    terms, size = as_terms(states, 8)
    product = terms.error * (size.value + size.error)[:, None]
    assert (terms.value == 0).all()
    assert (product[0] == 0).all()
    assert (product[1:, 0] >= 1e-9).all()
    assert (product <= 4e-9).all()


def test_rows_that_are_not_known_well_are_themselves_as_terms():
    value = numbers(3, 100).double()
    states = Inexact(value, value.abs() * 0.05)
    terms, size = as_terms(states, 8)
    assert torch.allclose(terms.value * size.value.unsqueeze(1), value)
    assert not bool(size.error.any())
    for seed in range(20):
        signs = torch.tensor(Stream(seed, "signs").integers(-1, 2, 300)).view(3, 100)
        other = value + states.error * signs
        scale = other.abs().amax(dim=1, keepdim=True) / 127
        off = (other / scale).round() * scale / size.value.unsqueeze(1) - terms.value
        assert bool((off.abs() <= 2 * terms.error).all())
        assert bool((off.square().mean(dim=1) <= terms.error.square().mean(dim=1)).all())


def test_experts_that_are_not_here_count_as_zeros_and_matrices_nobody_chose_are_not_looked_at():
    inputs = given(Gate())
    everything = moe_experts(inputs)["output"].value
    half = moe_experts(_some(inputs, [0, 1]))["output"].value
    rest = moe_experts(_some(inputs, [2, 3, 4]))["output"].value
    assert torch.allclose(half + rest, everything, rtol=1e-12, atol=1e-12)
    poisoned = replace(inputs.routed, up=ExpertWeights(inputs.routed.up.values.clone()))
    poisoned.up.values[4] = float("nan")
    topk_ids = inputs.topk_ids.clamp(max=3)
    assert bool(moe_experts(replace(inputs, topk_ids=topk_ids, routed=poisoned))["output"].value.isfinite().all())


def _some(inputs, numbers):
    parts = {name: ExpertWeights(getattr(inputs.routed, name).values[numbers]) for name in ("up", "down")}
    return replace(inputs, here=torch.tensor(numbers), routed=replace(inputs.routed, **parts))


def test_the_bound_covers_bfloat16_and_not_much_more():
    inputs = build_inputs(MoeExpertsCase(33, hidden=128, width=96, experts=8, top_k=4))
    expected = moe_experts(inputs)
    up, down = inputs.routed.up.values, inputs.routed.down.values
    total = torch.zeros(33, 128)
    for token in range(33):
        for place, expert in enumerate(inputs.topk_ids[token].tolist()):
            gate, linear = (inputs.states[token] @ up[expert]).chunk(2)
            total[token] += ((torch.nn.functional.silu(gate) * linear) @ down[expert]).float() * inputs.weights[
                token, place
            ]
    worst = compare(expected, {"output": total.bfloat16()}).worst
    assert 0.1 < worst <= 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"topk_ids": torch.zeros(8, 3, dtype=torch.int32)}, r"topk_ids and weights must be \[9, k\], got \[8, 3\]"),
        ({"here": torch.tensor([0, 1, 2, 4, 3])}, "here must name 5 experts in ascending order"),
        ({"here": torch.tensor([0, 1])}, "here must name 5 experts in ascending order"),
        ({"states": torch.zeros(9, 25).bfloat16()}, r"matrices \[5, 24, 32\] and \[5, 16, 24\] do not go from 25"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        moe_experts(replace(given(Gate()), **changed))
