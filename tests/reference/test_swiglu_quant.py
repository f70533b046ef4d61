from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.swiglu import Activation
from npudiff.reference.swiglu_quant import GATES, SwigluQuantInputs, swiglu_quant

WIDTH = 12
ACTIVATIONS = {"silu": None, "swiglustep": 1.5, "swiglu_oai": 1.5}


def numbers(tokens=6, size=2.0, dtype=torch.bfloat16, name="states", width=WIDTH):
    return (Stream(4, name).normal((tokens, 2 * width), torch.float32) * size).to(dtype)


def factors(*shape, name="factors", size=1.0):
    return (1 + Stream(4, name).normal(shape, torch.float32) / 4) * size


def of_numbers(states, activation="silu", **changes):
    arguments = {"weight_scale": None, "token_scale": None, "bias": None, "smooth": None, "counts": None}
    dtype = states.dtype if states.is_floating_point() else torch.bfloat16
    arguments |= {"activation": Activation(activation), "limit": ACTIVATIONS[activation], "dtype": dtype,
                  "rounding": "once"}  # fmt: skip
    return SwigluQuantInputs(states, **(arguments | changes))


def of_sums(counts=None, size=2.0**12, bias=False, **changes):
    groups = 1 if counts is None else len(counts)
    sums = numbers(size=size, dtype=torch.float64).round().to(torch.int32)
    return of_numbers(
        sums,
        weight_scale=factors(groups, 2 * WIDTH, name="columns", size=2.0 / size * 16),
        token_scale=factors(6, name="tokens", size=2.0**-4),
        bias=(numbers(1, size / 2, name="bias", dtype=torch.float64)[0]).round().to(torch.int32) if bias else None,
        smooth=factors(groups, WIDTH, name="smooth"),
        counts=None if counts is None else torch.tensor(counts),
        **changes,
    )


def element(inputs, gate, up):
    """The activation of one pair, in Python's own arithmetic."""
    limit = inputs.limit
    if inputs.activation is Activation.SWIGLU_OAI:
        gate = min(gate, limit)
        return gate / (1 + math.exp(-inputs.alpha * gate)) * (max(-limit, min(up, limit)) + inputs.glu_bias)
    silu = gate / (1 + math.exp(-gate))
    return silu * up if limit is None else min(silu, limit) * max(-limit, min(up, limit))


def by_hand(inputs, row, group):
    """Integers and the scale of one row: exact sums, and one pair after the other."""
    values = []
    for column in range(2 * inputs.width):
        value = Fraction(float(inputs.states[row, column]))
        if inputs.bias is not None:
            value += int(inputs.bias[column])
        if inputs.weight_scale is not None:
            value *= Fraction(float(inputs.weight_scale[group, column])) * Fraction(float(inputs.token_scale[row]))
        values.append(float(value))
    places = {
        "left": lambda place: (place, place + inputs.width),
        "right": lambda place: (place + inputs.width, place),
        "even": lambda place: (2 * place, 2 * place + 1),
    }[inputs.gates]
    pairs = [[values[column] for column in places(place)] for place in range(inputs.width)]
    result = [element(inputs, gate, up) for gate, up in pairs]
    if inputs.smooth is not None:
        result = [value * float(smooth) for value, smooth in zip(result, inputs.smooth[group], strict=True)]
    scale = max(map(abs, result)) / 127
    return [value / scale for value in result], scale


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("build", [
    lambda **changes: of_numbers(numbers(), **changes),
    lambda **changes: of_numbers(numbers(), **changes, smooth=factors(1, WIDTH)),
    of_sums,
    lambda **changes: of_sums(bias=True, **changes),
    lambda **changes: of_sums(size=2.0**28, **changes),
    lambda **changes: of_sums(counts=[2, 0, 1, 3], **changes),
])  # fmt: skip
def test_it_is_pythons_arithmetic_one_pair_after_the_other(build, activation, gates):
    inputs = build(activation=activation, gates=gates, alpha=0.5, glu_bias=0.25)
    result = swiglu_quant(inputs)
    groups = [0] * 6 if inputs.counts is None else [0, 0, 2, 3, 3, 3]
    for row, group in enumerate(groups):
        steps, scale = by_hand(inputs, row, group)
        assert float(result["scale"].value[row]) == pytest.approx(scale, rel=1e-12)
        for column, exact in enumerate(steps):
            near = abs(abs(exact - int(exact)) - 0.5) < 1e-3
            assert int(result["quantised"].value[row, column]) == round(exact) or near
            assert float(result["quantised"].bound[row, column]) <= near


def test_a_sum_and_its_bias_are_added_as_integers():
    """In float32 the bias is lost beside the sum; in 32 bits it is what remains of it."""
    inputs = replace(
        of_numbers(torch.tensor([[2**30 + 1, 2**10]], dtype=torch.int32)),
        bias=torch.tensor([-(2**30), 0], dtype=torch.int32),
        weight_scale=torch.ones(1, 2),
        token_scale=torch.ones(1),
    )
    expected = swiglu_quant(inputs)["scale"]
    assert float(expected.value) == pytest.approx(1 / (1 + math.exp(-1)) * 2**10 / 127)
    assert float(expected.bound / expected.value) < 2e-6


def test_a_sum_is_rounded_by_itself_and_with_each_scale():
    numbers_, sums = torch.tensor([[96, 48]]).bfloat16(), torch.tensor([[96, 48]], dtype=torch.int32)
    ones = {"weight_scale": torch.ones(1, 2), "token_scale": torch.ones(1)}
    plain, worth = (swiglu_quant(given)["scale"] for given in (of_numbers(numbers_), of_numbers(sums, **ones)))
    assert torch.equal(plain.value, worth.value)
    more = float((worth.bound - plain.bound) / plain.value * 2.0**24)
    assert more == pytest.approx(2 * (3 + 1), rel=0.01), "three and that of the stage, for the gate and for the up"


def test_nothing_is_said_of_rows_behind_those_of_all_groups():
    inputs = of_sums(counts=[2, 1])
    states, tokens = inputs.states.clone(), inputs.token_scale.clone()
    states[3:], tokens[3:] = 2**31 - 1, math.nan
    for given in (inputs, replace(inputs, states=states, token_scale=tokens)):
        expected = swiglu_quant(given)
        for output in expected.values():
            assert bool(output.bound[3:].isinf().all())
            assert bool(output.bound[:3].isfinite().all())
            assert bool(output.value.isfinite().all())
        few = replace(inputs, states=states[:3], token_scale=tokens[:3])
        for name, output in swiglu_quant(few).items():
            assert torch.equal(output.value, expected[name].value[:3])
            assert torch.equal(output.bound, expected[name].bound[:3])


@pytest.mark.parametrize("rounding", ["once", "stages"])
def test_a_row_of_zeros_has_zeros_and_a_scale_of_0_or_1(rounding):
    states = numbers()
    states[2] = 0
    expected = swiglu_quant(of_numbers(states, rounding=rounding, smooth=factors(1, WIDTH)))
    assert bool((expected["quantised"].value[2] == 0).all())
    assert bool((expected["quantised"].bound[2] == 0).all())
    for scale, right in ((0.0, True), (1.0, True), (-0.1, False), (math.nan, False)):
        actual = expected["scale"].value.float()
        actual[2] = scale
        assert (compare({"scale": expected["scale"]}, {"scale": actual}).worst <= 1) == right


def composed(inputs, dtype):
    """A device in one dtype, and quantisation in float32."""
    given = inputs.states.to(dtype)
    if inputs.weight_scale is not None:
        given = (inputs.states.float() * inputs.weight_scale * inputs.token_scale.unsqueeze(1)).to(dtype)
    gate, up = given.chunk(2, dim=-1)
    limit = inputs.limit
    if inputs.activation is Activation.SWIGLU_OAI:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        rows = gate * torch.sigmoid(inputs.alpha * gate) * (up + inputs.glu_bias)
    else:
        rows = torch.nn.functional.silu(gate)
        rows = rows * up if limit is None else rows.clamp(max=limit) * up.clamp(-limit, limit)
    if inputs.smooth is not None:
        rows = rows * inputs.smooth.to(dtype if dtype == torch.float32 else torch.float32)
    scale = rows.float().abs().amax(dim=1) * torch.tensor(1 / 127)
    return {"quantised": (rows.float() / scale.unsqueeze(1)).round().to(torch.int8), "scale": scale}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [0.1, 2.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sums", [False, True])
def test_both_chains_stay_within_the_bound_and_come_near_it(activation, size, dtype, sums):
    states = numbers(200, size, dtype)
    inputs = of_numbers(states, activation)
    if sums:
        scales = {"weight_scale": factors(1, 2 * WIDTH, size=2.0**-20), "token_scale": factors(200, name="tokens")}
        inputs = of_numbers((states * 2.0**20).float().to(torch.int32), activation, **scales, dtype=dtype)
    for rounding, exactness in (("once", torch.float32), ("stages", dtype)):
        expected = swiglu_quant(replace(inputs, rounding=rounding))
        outputs = compare(expected, composed(inputs, exactness)).outputs
        assert all(output.worst <= 1 for output in outputs), rounding
        near = next(output.worst for output in outputs if output.name == "scale")
        assert near > 0.1 or size > 10, rounding  # the largest of a row is at the limit, which has no error


def test_the_bound_is_a_few_roundings_and_the_integers_of_a_precise_device_are_known():
    for rounding, roundoff in (("once", 2.0**-24), ("stages", 2.0**-9)):
        expected = swiglu_quant(of_numbers(numbers(500), rounding=rounding))
        relative = expected["scale"].bound / expected["scale"].value
        assert float(relative.median() / roundoff) < 16
        known = (expected["quantised"].bound == 0).double().mean()
        assert known > (0.999 if rounding == "once" else 0.4)
        assert float(expected["quantised"].bound.max()) <= (1 if rounding == "once" else 4)


def test_it_is_the_expert_of_gpt_oss_in_transformers_and_then_quantisation():
    pytest.importorskip("transformers")
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    rows = numbers(40, 8.0)
    config = SimpleNamespace(intermediate_size=2, num_local_experts=1, hidden_size=2, swiglu_alpha=1.702,
                             swiglu_limit=7.0)  # fmt: skip
    right = GptOssExperts(config)._apply_gate(rows.float())
    scale = right.abs().amax(dim=1) / 127
    given = of_numbers(rows, "swiglu_oai", limit=7.0, gates="even")
    actual = {"quantised": (right / scale.unsqueeze(1)).round().to(torch.int8), "scale": scale}
    assert compare(swiglu_quant(given), actual).worst <= 1
    assert compare(swiglu_quant(replace(given, gates="left")), actual).worst > 1


@pytest.mark.parametrize(
    ("given", "changed", "message"),
    [
        ("numbers", {"gates": "odd"}, "no gates odd or rounding once"),
        ("numbers", {"rounding": "never"}, "or rounding never"),
        ("numbers", {"states": torch.ones(2, 3)}, r"in pairs, got \[2, 3\]"),
        ("numbers", {"limit": 7.0}, "silu does not go with limit 7.0"),
        ("numbers", {"activation": Activation.SWIGLUSTEP}, "swiglustep does not go with limit None"),
        ("numbers", {"activation": Activation.SWIGLU_OAI, "limit": -1.0}, "must be positive, got -1.0"),
        ("numbers", {"activation": Activation.SWIGLU_OAI, "limit": math.nan}, "must be positive, got nan"),
        ("numbers", {"dtype": torch.float16}, "states must be int32 or torch.float16, got torch.bfloat16"),
        ("numbers", {"token_scale": torch.ones(6)}, "numbers have none of them"),
        ("numbers", {"bias": torch.zeros(24, dtype=torch.int32)}, "numbers have none of them"),
        ("sums", {"weight_scale": None}, "sums have a scale by column and one by row"),
        ("sums", {"token_scale": torch.ones(5)}, r"token_scale must be \[6\], got \[5\]"),
        ("sums", {"weight_scale": torch.ones(2, 24)}, r"weight_scale must be \[1, 24\], got \[2, 24\]"),
        ("sums", {"smooth": torch.ones(1, 24)}, r"smooth must be \[1, 12\], got \[1, 24\]"),
        ("sums", {"bias": torch.zeros(12, dtype=torch.int32)}, r"bias must be \[24\]"),
        ("sums", {"bias": torch.full((24,), 2**31 - 1, dtype=torch.int32)}, "do not fit into 32 bits"),
        ("groups", {"bias": torch.zeros(24, dtype=torch.int32)}, "there must be no groups"),
        ("groups", {"counts": torch.tensor([4, 3])}, r"at most 6, got \[4, 3\]"),
        ("groups", {"counts": torch.tensor([4, -1])}, r"at most 6, got \[4, -1\]"),
        ("groups", {"counts": torch.tensor([], dtype=torch.int64)}, r"at most 6, got \[\]"),
        ("groups", {"counts": torch.tensor([1, 2, 3])}, r"weight_scale must be \[3, 24\]"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(given, changed, message):
    inputs = {"numbers": of_numbers(numbers()), "sums": of_sums(), "groups": of_sums(counts=[2, 3])}[given]
    with pytest.raises(ValueError, match=message):
        swiglu_quant(replace(inputs, **changed))
