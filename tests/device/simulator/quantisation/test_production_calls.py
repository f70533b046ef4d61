"""The chains of calls that serving frameworks make are accepted, and mean what they should."""

import pytest
import torch

OPS = torch.ops.npu
BF16, F16 = torch.bfloat16, torch.float16


def near(output, expected, roundings=4):
    """One rounding to the output's dtype after a few of float32."""
    unit = torch.finfo(output.dtype).eps / 2 + roundings * 2**-24
    return bool(((output.double() - expected).abs() <= unit * expected.abs() + 1e-7).all())


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_eight_bits_with_static_scales(exact, dtype):
    """npu_quantize by the inverse scale, int32 bias, float32 scales for bfloat16 and words for float16."""
    x, weight = exact.draw(5, 32, dtype=dtype), exact.integers(32, 16)
    inverse, offset = torch.full((32,), 40.0, dtype=dtype), torch.full((32,), 3.0, dtype=dtype)
    q = OPS.npu_quantize(x, inverse, offset, torch.qint8, -1, False)
    scale, bias = exact.draw(16).abs() * 1e-3 + 1e-4, exact.integers(16, dtype=torch.int32)
    given = scale if dtype == BF16 else OPS.npu_trans_quant_param(scale)
    output = OPS.npu_quant_matmul(q, weight, given, bias=bias, output_dtype=dtype)
    kept = scale if dtype == BF16 else (scale.view(torch.int32) & ~8191).view(torch.float32)
    assert near(output, (q.double() @ weight.double() + bias) * kept.double())


def test_eight_bits_with_a_scale_per_token(exact):
    x, weight, scale = exact.draw(5, 32, dtype=BF16), exact.integers(16, 32), exact.draw(16, dtype=BF16)
    q, pertoken = OPS.npu_dynamic_quant(x)
    output = OPS.npu_quant_matmul(q, weight.t(), scale, pertoken_scale=pertoken, output_dtype=BF16)
    assert near(output, q.double() @ weight.t().double() * scale.double() * pertoken.double()[:, None])


def test_four_bits_with_a_scale_per_token(exact):
    x, weight, scale = exact.draw(5, 32, dtype=F16), exact.integers(16, 32, low=-8, high=8), exact.draw(16)
    q, pertoken = OPS.npu_dynamic_quant(x, dst_type=torch.quint4x2)
    packed = OPS.npu_convert_weight_to_int4pack(weight.int())
    output = OPS.npu_quant_matmul(q, packed.t(), scale, pertoken_scale=pertoken, output_dtype=F16)
    integers = torch.tensor([[value for word in row for value in exact.nibbles(word)] for row in q.tolist()])
    assert near(output, integers.double() @ weight.t().double() * scale.double() * pertoken.double()[:, None])


def test_a_multilayer_perceptron_in_integers(exact):
    """The scale of the first product is applied by the operator after it, as both are given it."""
    x, gate_up = exact.draw(4, 32, dtype=BF16), exact.integers(32, 16, low=-40, high=40)
    scale = exact.draw(16).abs() * 1e-2 + 1e-3
    q, pertoken = OPS.npu_dynamic_quant(x)
    product = OPS.npu_quant_matmul(q, gate_up, scale, output_dtype=torch.int32)
    y, y_scale = OPS.npu_dequant_swiglu_quant(
        product,
        weight_scale=scale[None],
        activation_scale=pertoken,
        activate_left=True,
        quant_mode=1,
    )
    gate, up = (q.double() @ gate_up.double() * scale.double() * pertoken.double()[:, None]).chunk(2, 1)
    exactly = gate * gate.sigmoid() * up
    # Half a step of the integers, and float32 on the way.
    bound = y_scale.double()[:, None] * (0.5 + 1e-4)
    assert bool(((y.double() * y_scale.double()[:, None] - exactly).abs() <= bound).all())
