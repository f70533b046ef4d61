from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.inexact import SOFTPLUS_ABSOLUTE, Inexact
from npudiff.reference.moe_gating import MoeGatingInputs, chosen_experts, moe_gating


def logits(tokens=50, experts=16, name="logits", dtype=torch.float32):
    return Stream(11, name).normal((tokens, experts), torch.float32).to(dtype)


def dense(weights, index, experts):
    return torch.zeros(len(index), experts, dtype=weights.dtype).scatter(1, index, weights)


def agrees(inputs, weights, index):
    expected = moe_gating(inputs)
    assert float(expected["weights"].bound.isinf().float().mean()) < 0.3
    return compare(expected, {"weights": dense(weights.to(inputs.logits.dtype), index, inputs.logits.shape[1])}).worst


def test_a_token_by_hand():
    rows = torch.tensor([[2.0, -1.0, 0.5, 1.0]])
    s = [1 / (1 + math.exp(-x)) for x in (2.0, -1.0, 0.5, 1.0)]
    bias = torch.tensor([-0.5, 0.9, 0.0, 0.0])
    given = MoeGatingInputs(rows, bias, 2, "sigmoid", renormalise=True, scaling=3.0)
    total = s[1] + s[3]  # 0.27 + 0.9 and 0.73 are the largest
    right = [0.0, 3 * s[1] / total, 0.0, 3 * s[3] / total]
    assert moe_gating(given)["weights"].value[0].tolist() == pytest.approx(right)
    plain = moe_gating(replace(given, bias=None, renormalise=False, scaling=1.0))["weights"].value[0].tolist()
    assert plain == pytest.approx([s[0], 0.0, 0.0, s[3]])
    e = [math.exp(x) for x in (2.0, -1.0, 0.5, 1.0)]
    soft = moe_gating(MoeGatingInputs(rows, None, 1))["weights"].value[0].tolist()
    assert soft == pytest.approx([e[0] / sum(e), 0, 0, 0])


def test_roots_of_softplus_by_hand_and_by_torch_in_float32():
    rows = torch.tensor([[2.0, -1.0, 0.5, 1.0]])
    s = [math.sqrt(math.log1p(math.exp(x))) for x in (2.0, -1.0, 0.5, 1.0)]
    given = MoeGatingInputs(rows, torch.tensor([0.0, 2.0, 0.0, 0.0]), 2, "sqrtsoftplus", renormalise=True, scaling=1.5)
    right = [1.5 * s[0] / (s[0] + s[1]), 1.5 * s[1] / (s[0] + s[1]), 0.0, 0.0]
    assert moe_gating(given)["weights"].value[0].tolist() == pytest.approx(right)
    many = MoeGatingInputs(logits() * 4, None, 3, "sqrtsoftplus")
    scores = torch.nn.functional.softplus(many.logits).sqrt()
    assert agrees(many, *scores.topk(3, dim=1)) <= 1
    naive = torch.log(1 + torch.exp(many.logits)).sqrt()
    assert (agrees(many, *naive.topk(3, dim=1)) <= 1) == (SOFTPLUS_ABSOLUTE > 0)  # a choice of one line
    for wrong in (scores.square(), torch.sigmoid(many.logits), scores * 1.0001):
        assert agrees(many, *wrong.topk(3, dim=1)) > 1


def test_groups_by_hand():
    """Group 0 has the best expert, group 1 the best two."""
    rows = torch.tensor([[3.0, -2.0, -3.0, 1.5, 1.4, -3.5]])
    given = MoeGatingInputs(rows, None, 1, "sigmoid", groups=2, kept_groups=1)
    assert moe_gating(given)["weights"].value[0].nonzero().flatten().tolist() == [3]
    given = replace(given, group_score="largest")
    assert moe_gating(given)["weights"].value[0].nonzero().flatten().tolist() == [0]
    given = replace(given, top_k=4, kept_groups=2)
    assert moe_gating(given)["weights"].value[0].nonzero().flatten().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("renormalise", [False, True])
def test_it_is_the_router_of_deepseek_in_transformers(renormalise):
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = SimpleNamespace(num_experts_per_tok=4, num_local_experts=16, hidden_size=16, routed_scaling_factor=2.5,
                             n_group=4, topk_group=2, norm_topk_prob=renormalise)  # fmt: skip
    router = DeepseekV3TopkRouter(config)
    bias = 0.3 * logits(1, name="bias")[0]
    router.weight.data, router.e_score_correction_bias = torch.eye(16), torch.nn.Buffer(bias)
    rows = logits()
    with torch.no_grad():
        _, weights, index = router(rows)
    given = MoeGatingInputs(rows, bias, 4, "sigmoid", 4, 2, "sum of two", renormalise, 2.5)
    assert agrees(given, weights, index) <= 1


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_router_of_qwen_in_transformers(renormalise, dtype):
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    config = SimpleNamespace(num_experts_per_tok=4, num_experts=16, hidden_size=16, norm_topk_prob=renormalise)
    router = Qwen3MoeTopKRouter(config)
    router.weight.data = torch.eye(16, dtype=dtype)
    rows = logits(dtype=dtype)
    with torch.no_grad():
        _, weights, index = router(rows)
    assert agrees(MoeGatingInputs(rows, None, 4, renormalise=renormalise), weights, index) <= 1


def test_it_is_the_router_of_step_in_transformers():
    from transformers.models.step3p7.modeling_step3p7 import Step3p7TopKRouter

    router = Step3p7TopKRouter(SimpleNamespace(num_experts_per_tok=4, num_local_experts=16, hidden_size=16))
    bias = 0.3 * logits(1, name="bias")[0]
    router.weight.data, router.e_score_correction_bias = torch.eye(16), torch.nn.Buffer(bias)
    rows = logits()
    with torch.no_grad():
        _, weights, index = router(rows)
    assert agrees(MoeGatingInputs(rows, bias, 4, "sigmoid", renormalise=True), weights, index) <= 1


def test_of_experts_that_are_worth_the_same_either_may_be_chosen():
    rows = torch.tensor([[1.0, 0.5, 0.5, 0.0], [1.0, 0.5, 0.25, 0.0]])
    expected = moe_gating(MoeGatingInputs(rows, None, 2))
    assert expected["weights"].bound.isinf().all(dim=1).tolist() == [True, False]
    assert expected["top_k"].value.tolist() == [2, 2]
    everything = moe_gating(MoeGatingInputs(rows, None, 4))
    assert not bool(everything["weights"].bound.isinf().any()), "all are chosen, whatever their order"


@pytest.mark.parametrize(("steps", "unsure"), [(1, True), (5, False)])
def test_a_bias_is_added_in_float32_and_what_is_a_few_steps_apart_is_decided(steps, unsure):
    """A step is what float32 has at 1000: each of two sums is off by half of one, and by the little that scores are."""
    bias = torch.tensor([1000.0, 1000.0 + steps * 2.0**-14, 0.0])
    expected = moe_gating(MoeGatingInputs(torch.zeros(1, 3), bias, 1, scoring="sigmoid"))
    assert bool(expected["weights"].bound.isinf().any()) is unsure


def test_groups_that_are_worth_the_same_are_either_kept():
    rows = torch.tensor([[3.0, 1.0, 0.0, 3.0, 1.0, 0.5]])
    given = MoeGatingInputs(rows, None, 1, groups=2, kept_groups=1)
    assert bool(moe_gating(given)["weights"].bound.isinf().all())
    assert not bool(moe_gating(replace(given, kept_groups=2, top_k=2))["weights"].bound.isinf().any())


def test_what_is_not_chosen_weighs_nothing():
    expected = moe_gating(MoeGatingInputs(logits(), None, 4))["weights"]
    assert (expected.value != 0).sum(dim=1).tolist() == [4] * 50
    sure = expected.bound.isfinite().all(dim=1)
    assert int(sure.sum()) > 40
    assert torch.equal(expected.bound[sure] == 0, expected.value[sure] == 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scoring": "tanh"}, "no scoring tanh"),
        ({"group_score": "mean"}, "or group score mean"),
        ({"bias": torch.zeros(3)}, r"bias must be \[16\], got \[3\]"),
        ({"groups": 3}, "1 of 3 groups cannot be kept of 16 experts"),
        ({"groups": 2, "kept_groups": 3}, "3 of 2 groups"),
        ({"top_k": 17}, r"top_k must lie in 1\.\.16, got 17"),
        ({"groups": 4, "kept_groups": 1, "top_k": 5}, r"top_k must lie in 1\.\.4, got 5"),
        ({"groups": 16}, "groups of one expert"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        moe_gating(MoeGatingInputs(**{"logits": logits(), "bias": None, "top_k": 1} | changed))


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_weights_of_logits_with_errors_are_within_what_these_bring(scoring):
    given_logits = Stream(9, "logits").normal((50, 8), torch.float32).double()
    given = MoeGatingInputs(
        given_logits.float(), None, 3, scoring=scoring, renormalise=scoring == "sigmoid", scaling=2.5
    )
    error = 0.01 * Stream(9, "errors").normal((50, 8), torch.float32).abs().double()
    choice = chosen_experts(given, Inexact(given_logits, error))
    exact = chosen_experts(given, Inexact.exact(given_logits))
    assert torch.equal(choice.experts, exact.experts)
    assert bool((choice.unsure >= exact.unsure).all())
    assert 0 < int(choice.unsure.sum()) < 25
    worst = 0.0
    for seed in range(100):
        moved = given_logits + error * Stream(seed, "signs").normal((50, 8), torch.float32).sign()
        other = chosen_experts(given, Inexact.exact(moved))
        alike = ~choice.unsure
        assert torch.equal(other.experts.sort(dim=1).values[alike], exact.experts.sort(dim=1).values[alike])
        dense = [torch.zeros(50, 8).double().scatter(1, one.experts, one.weights.value) for one in (other, exact)]
        bound = torch.zeros(50, 8).double().scatter(1, choice.experts, choice.weights.error)
        ratio = (dense[0] - dense[1]).abs() / bound.clamp(min=1e-12)
        worst = max(worst, float(ratio[alike].max()))
    assert 0.2 < worst <= 1


@pytest.mark.parametrize("guard", [0.0, 1e-20])
def test_a_sum_of_tiny_weights_may_have_what_models_add_to_it(guard):
    """With a bias an expert is chosen whose probability is about as small as that."""
    given = MoeGatingInputs(torch.tensor([[0.0, -41.0, -60.0]]), torch.tensor([0.0, 2.0, 0.0]), 1, renormalise=True)
    expected = moe_gating(given)["weights"]
    score = torch.softmax(given.logits.double(), -1)[0, 1]
    assert abs(score / (score + guard) - expected.value[0, 1]) <= expected.bound[0, 1]
    assert abs(score / (score + 1e-18) - expected.value[0, 1]) > expected.bound[0, 1]
