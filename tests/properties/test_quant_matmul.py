from __future__ import annotations

import pytest
import torch

from broken import verdict
from npudiff.device.ascend.quant_matmul import composed_quant_matmul
from npudiff.model.job import Verdict
from npudiff.properties.quant_matmul import QuantMatmulCase, build_inputs, component
from npudiff.reference.quant_matmul import quant_matmul

check_case = QuantMatmulCase.check

BROKEN = {
    "tokens_do_not_mix": lambda i, o: o + torch.arange(len(o)).unsqueeze(1).to(o.dtype) * 64,
    "columns_do_not_mix": lambda i, o: o + torch.arange(o.shape[1]).to(o.dtype) * 64,
    "sums_of_halves": lambda i, o: o + 1,
    "twice_the_token_scale": lambda i, o: o + o.abs().max() / 64,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_relation_sees_a_device_that_breaks_it(name):
    def device(inputs, target):
        result = composed_quant_matmul(inputs, target)
        changed = BROKEN[name](inputs, result).to(result.dtype)
        return result + 1.0 if name == "twice_the_token_scale" and inputs.token_scale.max() > 2 else changed

    assert verdict(component, name, device) is Verdict.WRONG
    assert verdict(component, name, composed_quant_matmul.function) is Verdict.HOLDS


def sums(case):
    inputs = build_inputs(case)
    bias = inputs.bias if inputs.bias is not None and inputs.bias.dtype == torch.int32 else 0
    return inputs, inputs.x.long() @ inputs.weight.long() + bias


@pytest.mark.parametrize("bits", [8, 4])
def test_extremes_are_as_large_as_sums_can_be(bits):
    _, large = sums(QuantMatmulCase(2, 2048, 8, bits, recipe="extremes", output="float16"))
    assert int(large.abs().min()) > 0.7 * 2048 * {8: 127, 4: 7}[bits] ** 2
    if bits == 8:
        assert int(large.abs().min()) > 2**24
        assert int((large % 2).sum()) > 0


def test_a_bias_makes_the_sums_of_the_first_token_small():
    for recipe in ("extremes", "cancelling"):
        _, small = sums(QuantMatmulCase(2, 4096, 8, recipe=recipe, bias="int32"))
        assert int(small[0].abs().max()) < 400


def test_cancelling_takes_the_first_half_back():
    inputs, total = sums(QuantMatmulCase(1, 4096, 8, recipe="cancelling"))
    first = inputs.x[:, :2048].long() @ inputs.weight[:2048].long()
    assert int(first.abs().min()) > 2**24
    assert int(total.abs().max()) < 2**22


def test_int8_output_is_drawn_beyond_its_range_but_within_nine_bits():
    case = QuantMatmulCase(40, 100, 33, output="int8", offset="columns")
    inputs, total = sums(case)
    scaled = total * inputs.scale.double()
    assert 200 < float(scaled.abs().max()) <= 255
    output = quant_matmul(inputs)["output"].value
    assert {-128.0, 127.0} <= set(output.flatten().tolist())


def test_float_outputs_stay_within_float16():
    for recipe in ("gaussian", "extremes", "cancelling", "zero rows"):
        for scaled in (False, True):
            case = QuantMatmulCase(9, 4096, 33, output="float16", bias="int32", recipe=recipe, token_scale=scaled)
            assert bool(quant_matmul(build_inputs(case))["output"].bound.isfinite().all())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": 0}, r"tokens must lie in 1..131072, got 0"),
        ({"inner": 65536}, r"inner must lie in 1..65535, got 65536"),
        ({"inner": 65535, "columns": 65535}, "more than 67108864 elements"),
        ({"output": "x"}, "output is one of bfloat16, float16, int8, int32, got x"),
        ({"bits": 2}, "bits is one of 8, 4, got 2"),
        ({"rows": "x"}, "rows is one of"),
        ({"bits": 4, "inner": 12, "output": "float16"}, "these do not go together"),
        ({"offset": "columns"}, "these do not go together"),
        ({"output": "int8", "token_scale": True}, "these do not go together"),
        ({"output": "float16", "bias": "bfloat16"}, "these do not go together"),
        ({"seed": -1}, "seed must lie in 0"),
    ],
)
def test_cases_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        check_case(QuantMatmulCase(**{"tokens": 2, **changed}))
