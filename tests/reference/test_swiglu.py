from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.swiglu import Activation, SwigluInputs, swiglu

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def states(width=300, tokens=20, size=8.0, dtype=torch.float64, name="states"):
    return (Stream(3, name).normal((tokens, 2 * width), torch.float32) * size).to(dtype)


def inputs(given, activation="silu", limit=7.0, **changes):
    return SwigluInputs(given, Activation(activation), limit, None, **changes)


def value(given, *arguments, **changes):
    return swiglu(inputs(given, *arguments, **changes))["output"].value


def test_single_elements_by_hand():
    rows = torch.tensor([[8.0, -9.0, 2.0, 0.0, -8.0, 9.0, 3.0, 5.0]], dtype=torch.float64)
    silu = [x / (1 + math.exp(-x)) for x in (8.0, -9.0, 2.0, 0.0)]
    ups = (-8.0, 9.0, 3.0, 5.0)
    assert value(rows, "silu", None)[0].tolist() == pytest.approx([s * u for s, u in zip(silu, ups, strict=True)])
    limited = [7.0 * -7.0, silu[1] * 7.0, silu[2] * 3.0, 0.0]
    for name in ("silu", "swiglustep"):
        assert value(rows, name)[0].tolist() == pytest.approx(limited)
    oai = [min(g, 7.0) / (1 + math.exp(-0.5 * min(g, 7.0))) * (max(-7.0, min(u, 7.0)) + 0.25)
           for g, u in zip((8.0, -9.0, 2.0, 0.0), ups, strict=True)]  # fmt: skip
    assert value(rows, "swiglu_oai", alpha=0.5, bias=0.25)[0].tolist() == pytest.approx(oai)
    pairs = rows.view(1, 2, 4).transpose(1, 2).reshape(1, 8)
    assert torch.equal(value(pairs, layout="interleaved"), value(rows))


def test_a_gelu_by_its_tangent_is_that_of_torch_and_no_other():
    rows = states(size=3.0)
    expected = swiglu(inputs(rows.bfloat16(), "gelu_tanh", None, rounding="once"))
    gate, up = rows.bfloat16().float().chunk(2, dim=1)
    right = torch.nn.functional.gelu(gate, approximate="tanh") * up
    as_sigmoid = gate * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)) * up
    for given in (right, as_sigmoid):
        assert compare(expected, {"output": given.bfloat16()}).worst <= 1
    for wrong in (torch.nn.functional.gelu(gate) * up, torch.nn.functional.silu(gate) * up,
                  gate * torch.sigmoid(1.702 * gate) * up):  # fmt: skip
        assert compare(expected, {"output": wrong.bfloat16()}).worst > 1
    assert torch.allclose(expected["output"].value, right.double(), rtol=1e-5, atol=1e-5)
    far = torch.tensor([[1e30, -1e30, -12.0, 3e4, 2.0, 2.0, 2.0, 2.0]])
    saturated = swiglu(inputs(far, "gelu_tanh", None))["output"]
    assert saturated.value[0].tolist() == pytest.approx([2e30, 0.0, 0.0, 6e4])
    assert not saturated.bound.isnan().any()


def test_the_limit_is_that_of_the_experts_at_hand():
    rows = states()
    both = inputs(rows, limit=7.0, shared=True)
    assert torch.equal(swiglu(both)["output"].value, value(rows, limit=None))
    assert torch.equal(swiglu(replace(both, shared_limit=2.0))["output"].value, value(rows, limit=2.0))


def test_it_is_the_dense_layer_and_the_expert_of_step_in_transformers():
    from transformers.models.step3p7 import modeling_step3p7 as step

    rows = states(width=16).float()
    config = SimpleNamespace(hidden_size=32, intermediate_size=16, share_expert_dim=16, mlp_bias=False,
                             hidden_act="silu", swiglu_limits_shared=[0.0, 3.0])  # fmt: skip
    for layer, limit in ((0, None), (1, 3.0)):
        dense = step.Step3p7MLP(config, layer)
        dense.gate_proj.weight.data, dense.up_proj.weight.data = torch.eye(32)[:16], torch.eye(32)[16:]
        dense.down_proj = torch.nn.Identity()
        expected = swiglu(SwigluInputs(rows, Activation.SILU, 9.0, limit, shared=True))
        assert compare(expected, {"output": dense(rows)}).worst <= 1
    config = SimpleNamespace(num_local_experts=1, hidden_size=2, moe_intermediate_size=2, hidden_act="silu")
    for limit in (None, 7.0):
        expert = step.Step3p7Experts(config, limit)
        assert compare(swiglu(inputs(rows, "swiglustep", limit)), {"output": expert._apply_gate(rows)}).worst <= 1


def test_it_is_the_expert_of_gpt_oss_in_transformers():
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    rows = states().float()
    config = SimpleNamespace(intermediate_size=2, num_local_experts=1, hidden_size=2, swiglu_alpha=1.702,
                             swiglu_limit=7.0)  # fmt: skip
    right = GptOssExperts(config)._apply_gate(rows)
    expected = swiglu(inputs(rows, "swiglu_oai", layout="interleaved"))
    assert compare(expected, {"output": right}).worst <= 1


def composed(given, activation, limit, alpha=1.702, bias=1.0):
    gate, up = given.chunk(2, dim=-1)
    if activation == "swiglu_oai":
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(alpha * gate) * (up + bias)
    gate = torch.nn.functional.silu(gate)
    return gate * up if limit is None else gate.clamp(max=limit) * up.clamp(-limit, limit)


@pytest.mark.few(32)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "swiglu_oai"])
@pytest.mark.parametrize("limit", [None, 7.0, 7.1, 0.5])
@pytest.mark.parametrize("size", [1e-3, 1.0, 8.0, 100.0])
def test_both_chains_stay_within_the_bound_and_come_near_it(dtype, activation, limit, size):
    given = states(dtype=dtype, size=size)
    once = composed(given.float(), activation, limit).to(dtype)
    for rounding, actual in (("stages", composed(given, activation, limit)), ("once", once)):
        comparison = compare(swiglu(inputs(given, activation, limit, rounding=rounding)), {"output": actual})
        assert 0.15 < comparison.worst <= 1, rounding


@pytest.mark.parametrize("activation", ["silu", "swiglu_oai"])
def test_the_bound_is_a_few_roundings(activation):
    given = states(dtype=torch.bfloat16, size=2.0)
    bounds = {}
    for rounding in ("stages", "once"):
        expected = swiglu(inputs(given, activation, rounding=rounding))["output"]
        bounds[rounding] = float((expected.bound / expected.value.abs().clamp(min=1e-2)).median() / 2.0**-8)
    assert bounds["once"] < 1.01
    assert bounds["stages"] < (2.1 if activation == "silu" else 6.0)


def test_saturated_rows_are_exact_but_for_the_product():
    """What lies beyond the limit by more than its error is the limit itself, which the product alone rounds."""
    given = torch.full((1, 2), 100.0, dtype=torch.bfloat16)
    expected = swiglu(inputs(given, limit=3.0))["output"]
    assert expected.value.item() == 9.0
    assert expected.bound.item() < 9.0 * 2.0**-8 * 1.01


def test_beyond_the_range_of_the_dtype_it_is_infinite_or_the_largest_number():
    given = torch.full((1, 2), 300.0, dtype=torch.float16)
    expected = swiglu(inputs(given, limit=None))
    for number, holds in ((math.inf, True), (65_504.0, True), (math.nan, False), (-math.inf, False), (65_472.0, False)):
        assert compare(expected, {"output": torch.tensor([[number]], dtype=torch.float16)}).holds == holds
    limited = swiglu(inputs(given, limit=7.0))
    assert not compare(limited, {"output": torch.tensor([[math.inf]], dtype=torch.float16)}).holds


def test_nothing_is_said_of_what_comes_of_infinity_on_the_way():
    given = torch.tensor([[60_000.0, 6.0e4]], dtype=torch.float16)
    oai = swiglu(inputs(given, activation=Activation.SWIGLU_OAI, limit=None, alpha=1.0, bias=60_000.0))
    assert oai["output"].bound.item() == math.inf


def test_wrong_orders_of_limit_and_gate_are_outside():
    given = states(dtype=torch.float16, size=8.0)
    gate, up = given.chunk(2, dim=-1)
    expected = swiglu(inputs(given))
    wrongs = {
        "before": torch.nn.functional.silu(gate.clamp(max=7.0)) * up.clamp(-7.0, 7.0),
        "none": torch.nn.functional.silu(gate) * up,
        "gate only": torch.nn.functional.silu(gate).clamp(max=7.0) * up,
        "up only": torch.nn.functional.silu(gate) * up.clamp(-7.0, 7.0),
    }
    assert all(compare(expected, {"output": wrong}).worst > 1 for wrong in wrongs.values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layout": "thirds"}, "no layout thirds"),
        ({"rounding": "never"}, "or rounding never"),
        ({"states": torch.ones(2, 3)}, "got 3 columns"),
        ({"routed_limit": 0.0}, "limits must be positive, got 0.0 and None"),
        ({"shared_limit": -1.0}, "limits must be positive"),
        ({"routed_limit": math.nan}, "limits must be positive"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        swiglu(replace(inputs(states()), **changed))


def test_no_two_activations_are_the_same():
    rows = states(size=8.0)
    results = [value(rows, "silu", None), value(rows, "silu"), value(rows, "swiglu_oai")]
    assert not any(torch.allclose(one, other) for one, other in itertools.combinations(results, 2))
