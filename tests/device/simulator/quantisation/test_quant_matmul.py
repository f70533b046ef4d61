"""``npu_quant_matmul``: exact products, where scales round, words of int4, and what it refuses."""

from fractions import Fraction

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected
from npudiff.device.simulator.cache.formats import Format, StorageFormat, note
from npudiff.device.simulator.quantisation.products import integer_product

BF16, F16 = torch.bfloat16, torch.float16


def op(x1, x2, scale, **more):
    return torch.ops.npu.npu_quant_matmul(x1, x2, scale, **more)


def i8(*rows):
    return torch.tensor(rows, dtype=torch.int8)


def f32(*values):
    return torch.tensor(values, dtype=torch.float32)


def product(x1, x2):
    """In Python's integers."""
    columns = list(zip(*x2.tolist(), strict=True))
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in x1.tolist()]


def as_dtype(value, dtype):
    """Round a fraction that is a float32 to a dtype, by torch."""
    return torch.tensor(float(value), dtype=torch.float32).to(dtype).item()


@pytest.mark.parametrize("k", [7, 1024, 1041, 3001])
def test_products_are_exact(exact, k):
    left, right = exact.integers(3, k), exact.integers(k, 4, seed=1)
    left[0], right[:, 0], right[:, 1] = 127, 127, -128  # odd sums beyond 2^24, and the largest
    assert integer_product(left, right, 2**14).tolist() == product(left, right)


@pytest.mark.parametrize("output", [BF16, F16])
def test_scales_in_fractions(exact, output):
    """acc * scale * pertoken + bias, each rounded to float32, and once more at the end."""
    x1, x2 = exact.integers(4, 32), exact.integers(32, 6, seed=1)
    scale, pertoken, bias = exact.draw(6, scale=1e-3), exact.draw(4, seed=1), exact.draw(6, seed=2)
    result = op(x1, x2, scale, pertoken_scale=pertoken, bias=bias, output_dtype=output)
    assert result.dtype == output
    for row, accumulators, token in zip(result.tolist(), product(x1, x2), exact.fractions(pertoken), strict=True):
        for value, accumulator, factor, summand in zip(
            row, accumulators, exact.fractions(scale), exact.fractions(bias), strict=True
        ):
            scaled = exact.round32(exact.round32(accumulator * factor) * token)
            assert value == as_dtype(exact.round32(scaled + summand), output)


def cut(value):
    """Keep 19 bits of a float32."""
    return f32(value).view(torch.int32).bitwise_and(~8191).view(torch.float32).item()


def test_scales_lose_bits_on_the_way_to_int8_and_float16():
    x1, x2 = i8([100, 100]), i8([100], [100])
    scale = 0.00111  # not a number of 19 bits
    assert cut(scale) != f32(scale).item()
    fine, coarse = f32(20000 * scale).item(), f32(20000 * cut(scale)).item()
    for tensor in (f32(scale), torch.ops.npu.npu_trans_quant_param(f32(scale))):
        assert op(x1, x2, tensor, output_dtype=F16).item() == as_dtype(coarse, F16)
    assert as_dtype(coarse, F16) != as_dtype(fine, F16)
    assert op(x1, x2, f32(scale), pertoken_scale=f32(1), output_dtype=F16).item() == as_dtype(fine, F16)
    assert op(x1, x2, f32(scale), output_dtype=BF16).item() == as_dtype(fine, BF16)


def test_int8_is_the_default_and_rounds_to_even():
    x1, x2 = i8([1]), i8([1, 3, 5, -1, -3, 100])
    assert op(x1, x2, f32(0.5)).tolist() == [[0, 2, 2, 0, -2, 50]]
    assert op(x1, x2, f32(0.5)).dtype == torch.int8
    assert op(x1, x2, f32(2.0), output_dtype=torch.int8).tolist() == [[2, 6, 10, -2, -6, 127]]


@pytest.mark.parametrize(("offset", "integer"), [(1.0, 1), (2.5, 2), (-3.5, -4), (300.0, 255), (-999.0, -256)])
def test_offsets_are_integers_of_nine_bits(offset, integer):
    x1, x2 = i8([1]), i8([1, 5, -100])
    expected = [[max(-128, min(127, round(value * Fraction(1, 2)) + integer)) for value in (2, 10, -100)]]
    x2 = i8([2, 10, -100])
    assert op(x1, x2, f32(0.5), offset=f32(offset)).tolist() == expected
    words = torch.ops.npu.npu_trans_quant_param(f32(0.5), f32(offset))
    assert op(x1, x2, words).tolist() == expected


def test_scales_and_offsets_per_column():
    x1, x2 = i8([2]), i8([4, 8])
    assert op(x1, x2, f32(0.5, 0.25), offset=f32(3)).tolist() == [[7, 7]]
    assert op(x1, x2, f32(0.5), offset=f32(1, 2)).tolist() == [[5, 10]]


def test_biases_before_and_after():
    x1, x2 = i8([2], [4]), i8([3, 5])
    integer = torch.tensor([10, 20], dtype=torch.int32)
    assert op(x1, x2, f32(2, 4), bias=integer).tolist() == [[32, 120], [44, 127]]
    assert op(x1, x2, f32(2, 4), bias=integer, output_dtype=BF16).tolist() == [[32, 120], [44, 160]]
    for dtype in (torch.float32, BF16):
        bias = f32(10, 20).to(dtype)
        assert op(x1, x2, f32(2, 4), bias=bias, output_dtype=BF16).tolist() == [[22, 60], [34, 100]]
    more = {"pertoken_scale": f32(1, 0.5), "output_dtype": F16}
    assert op(x1, x2, f32(2, 4), bias=integer, **more).tolist() == [[32, 120], [22, 80]]
    assert op(x1, x2, f32(2, 4), bias=f32(10, 20).half(), **more).tolist() == [[22, 60], [22, 60]]
    assert op(x1, x2, f32(2, 4).to(BF16), output_dtype=BF16).tolist() == [[12, 40], [24, 80]]


def test_an_integer_bias_is_added_before_float32():
    """2^24 + 1 is no float32."""
    bias = torch.tensor([2**24], dtype=torch.int32)
    output = op(i8([1, 1]), i8([1], [0]), f32(1), bias=bias, output_dtype=torch.int32)
    assert output.tolist() == [[2**24 + 1]]


def test_int32_is_the_accumulator(exact):
    x1, x2 = exact.integers(2, 8), exact.integers(8, 3)
    for scale in (f32(0.5), f32(0.5).to(BF16)):
        output = op(x1, x2, scale, output_dtype=torch.int32)
        assert (output.dtype, output.tolist()) == (torch.int32, product(x1, x2))
    with exact.changed(quant_matmul_int32="scaled"):
        output = op(x1, x2, f32(0.5), output_dtype=torch.int32)
    assert output.tolist() == [[round(Fraction(value, 2)) for value in row] for row in product(x1, x2)]


def test_batches_broadcast(exact):
    x1, x2 = exact.integers(2, 1, 3, 8), exact.integers(5, 8, 4, seed=1)
    output = op(x1, x2, f32(0.25), output_dtype=BF16)
    assert output.shape == (2, 5, 3, 4)
    assert torch.equal(output[1, 3], op(x1[1, 0], x2[3], f32(0.25), output_dtype=BF16))
    pertoken = f32(1, 2, 4)
    scaled = op(x1, x2, f32(0.25), pertoken_scale=pertoken, output_dtype=BF16)
    assert torch.equal(scaled, output * pertoken.view(3, 1).to(BF16))
    bias = exact.integers(5, 1, 4, dtype=torch.int32)
    output = op(x1[0], x2, f32(1), bias=bias, output_dtype=torch.int32)
    assert torch.equal(output, integer_product(x1[0], x2, 2**14).int() + bias)


def test_transposed_views_and_nz(exact):
    x1, x2 = exact.integers(4, 32), exact.integers(64, 32, seed=1)
    output = op(x1, x2.t(), f32(0.01), output_dtype=BF16)
    assert torch.equal(output, op(x1, x2.t().contiguous(), f32(0.01), output_dtype=BF16))
    cast = torch.ops.npu.npu_format_cast(x2.t().contiguous(), 29)
    assert torch.equal(output, op(x1, cast, f32(0.01), output_dtype=BF16))


def words(exact, m=3, k=16, n=8):
    """Return integers of 4 bits and the words that hold them."""
    left, right = exact.integers(m, k, low=-8, high=8), exact.integers(k, n, low=-8, high=8, seed=1)
    pack = torch.ops.npu.npu_convert_weight_to_int4pack
    return left, right, pack(left.int()), pack(right.int()), pack(right.t().int().contiguous()).t()


def test_words_of_int4(exact):
    left, right, x1, x2, transposed = words(exact)
    for weight in (x2, transposed):
        assert op(x1, weight, f32(1), output_dtype=F16).tolist() == product(left, right)
        scaled = op(x1, weight, f32(*range(8)), pertoken_scale=f32(1, 2, 4), output_dtype=BF16)
        expected = [
            [v * n * p for n, v in enumerate(row)] for row, p in zip(product(left, right), (1, 2, 4), strict=True)
        ]
        assert torch.equal(scaled, torch.tensor(expected).to(BF16))
    bias = torch.arange(8, dtype=torch.int32)
    output = op(x1, x2, torch.ops.npu.npu_trans_quant_param(f32(2)), bias=bias, output_dtype=F16)
    assert output.tolist() == [[2 * (v + n) for n, v in enumerate(row)] for row in product(left, right)]


def test_scales_of_words_of_int4_are_of_either_float_or_of_float32_alone(exact):
    _, _, x1, x2, _ = words(exact)
    scale, rows = f32(*range(8)), f32(1, 2, 4)
    wide = op(x1, x2, scale, pertoken_scale=rows, output_dtype=BF16)
    assert torch.equal(op(x1, x2, scale.to(BF16), pertoken_scale=rows, output_dtype=BF16), wide)
    with pytest.raises(OperatorRejected, match="scale was bfloat16; allowed: float32"):
        op(x1, x2, scale.to(BF16), pertoken_scale=rows, output_dtype=F16)
    with (
        exact.changed(quant_matmul_int4_scales="float32"),
        pytest.raises(OperatorRejected, match="scale was bfloat16; allowed: float32"),
    ):
        op(x1, x2, scale.to(BF16), pertoken_scale=rows, output_dtype=BF16)


X1, X2 = torch.ones(2, 8, dtype=torch.int8), torch.ones(8, 4, dtype=torch.int8)
W1, W2 = torch.ones(2, 1, dtype=torch.int32), torch.ones(8, 1, dtype=torch.int32)
ONE = torch.ones(1)
BIAS = torch.ones(4)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ((X1[0], X2, ONE), {}, r"x1 was of rank 1, \[8\]; allowed: rank 2 to 6 .*ERR01003"),
        ((X1, X2[0], ONE), {}, r"x2 was of rank 1, \[4\]; allowed: rank 2 to 6"),
        ((X1.expand(2, 2, 8), X2.expand(3, 8, 4), ONE), {}, r"x2 was of shape \[3, 8, 4\]; allowed: batch axes"),
        ((X1, X2[:7], ONE), {}, r"x2 was of shape \[7, 4\]; allowed: \[..., 8, n\], as x1 of shape \[2, 8\]"),
        ((X1[:0], X2, ONE), {}, r"x1 was empty, of shape \[0, 8\]; allowed: a tensor with elements"),
        ((X1, torch.ones(8, 65536, dtype=torch.int8), ONE), {}, r"x2 was of shape \[8, 65536\]; .* up to 65535"),
        ((X1.float(), X2, ONE), {}, "x1 was float32; allowed: int8 or int32"),
        ((X1, X2.float(), ONE), {}, "x2 was float32; allowed: int8"),
        ((X1, X2, ONE), {"output_dtype": torch.float32}, "output_dtype was 6; allowed: None, 1 .torch.int8., 5"),
        ((X1, X2, ONE), {"pertoken_scale": ONE}, "pertoken_scale was given; allowed: None with x1 int8 .*torch.int8"),
        ((X1, X2, ONE), {"pertoken_scale": ONE, "output_dtype": torch.int32}, "pertoken_scale was given"),
        ((X1, X2, ONE), {"pertoken_scale": ONE, "output_dtype": BF16}, r"pertoken_scale was of shape \[1\]; .*\[2\]"),
        ((X1, X2, ONE.half()), {}, "scale was float16; allowed: int64 or float32"),
        ((X1, X2, ONE.long()), {"output_dtype": BF16}, "scale was int64; allowed: float32 or bfloat16"),
        ((X1, X2, ONE.to(BF16)), {"output_dtype": F16}, "scale was bfloat16; allowed: int64 or float32"),
        ((X1, X2, torch.ones(3)), {}, r"scale was of shape \[3\]; allowed: \[1\] or \[4\]"),
        ((X1, X2, ONE), {"offset": ONE, "output_dtype": F16}, "offset was given; allowed: None with x1 int8"),
        ((X1, X2, ONE), {"offset": ONE.half()}, "offset was float16; allowed: float32"),
        ((X1, X2, ONE), {"offset": torch.ones(2)}, r"offset was of shape \[2\]; allowed: \[1\] or \[4\]"),
        ((X1, X2, ONE), {"bias": BIAS}, "bias was float32; allowed: int32"),
        ((X1, X2, ONE), {"bias": BIAS.half(), "output_dtype": BF16}, "bias was float16; allowed: int32 or bfloat16"),
        ((X1, X2, ONE), {"bias": BIAS[:3].int()}, r"bias was of shape \[3\]; allowed: \[4\]"),
        ((X1, X2, ONE), {"bias": BIAS[None].int()}, r"bias was of shape \[1, 4\]; allowed: \[4\], \[n\]"),
        ((X1, X2, ONE), {"group_sizes": [0, 0]}, r"group_sizes was \[0, 0\]; allowed: three sizes"),
        ((X1, X2, ONE), {"group_sizes": [0, 0, 65536]}, r"group_sizes was \[0, 0, 65536\]"),
        ((X1, X2, ONE), {"group_sizes": [1, 1, 32]}, r"group_sizes was \[1, 1, 32\]; .*\[1, 128, 128\]"),
        ((W1, W2, ONE), {}, "output_dtype was torch.int8; allowed: torch.bfloat16 or torch.float16 with x1 int32"),
        ((W1, W2, ONE), {"output_dtype": BF16}, "pertoken_scale was None; allowed: a tensor with x1 int32"),
        ((W1, W2, ONE), {"output_dtype": F16, "bias": torch.ones(8)}, "bias was float32; allowed: int32"),
        (
            (W1, W2, ONE),
            {"output_dtype": F16, "pertoken_scale": torch.ones(2), "bias": torch.ones(8).int()},
            "bias was given; allowed: None with x1 int32 and pertoken_scale",
        ),
        ((W1, W2[:7], ONE), {"output_dtype": F16}, r"x2 was of shape \[7, 1\]; allowed: \[8, n / 8\] or a tr"),
        ((W1.expand(2, 2), W2.expand(8, 2)[:, ::2].expand(8, 16), ONE), {"output_dtype": F16}, "x2 was of shape"),
        (
            (W1.expand(2, 2), torch.ones(2, 16, dtype=torch.int32), ONE),
            {"output_dtype": F16},
            "x1 was not contiguous along k",
        ),
        (
            (W1.expand(2, 2).contiguous(), torch.ones(2, 16, dtype=torch.int32), ONE),
            {"output_dtype": F16},
            "x2 was not contiguous along k",
        ),
    ],
)
def test_rejections(arguments, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_quant_matmul: {message}"):
        op(*arguments, **more)


@pytest.mark.parametrize("scale", [torch.ones(1), torch.ones(1, dtype=BF16)])
def test_the_last_axis_is_free_with_a_scale_per_token(exact, scale):
    x, weight = torch.ones(1, 1, dtype=torch.int8), torch.ones(1, 65536, dtype=torch.int8)
    call = (x, weight, scale)
    more = {"pertoken_scale": torch.ones(1), "output_dtype": BF16}
    assert op(*call, **more).shape == (1, 65536)
    with exact.changed(quant_matmul_last_axis="always"), pytest.raises(OperatorRejected, match="up to 65535"):
        op(*call, **more)
    with pytest.raises(OperatorRejected, match=r"x2 was of shape \[1, 65536\]; allowed: a last axis up to 65535"):
        op(*call, output_dtype=BF16)


def test_formats_of_a_weight():
    weight = X2.clone()
    note(weight, StorageFormat(Format.FRACTAL_Z, tuple(weight.shape), weight.dtype))
    with pytest.raises(OperatorRejected, match="x2 was in FRACTAL_Z; allowed: a base format or FRACTAL_NZ"):
        op(X1, weight, ONE)


@pytest.mark.parametrize(
    ("arguments", "more", "argument"),
    [
        ((X1, X2, ONE), {"x1_dtype": 296}, "x1_dtype"),
        ((X1, X2, ONE), {"x2_dtype": 285}, "x2_dtype"),
        ((X1, X2, ONE), {"scale_dtype": 293}, "scale_dtype"),
        ((X1, X2, ONE), {"pertoken_scale_dtype": 293}, "pertoken_scale_dtype"),
        ((X1, X2, ONE), {"y_scale": ONE}, "y_scale"),
        ((X1, X2, ONE.long()), {"offset": ONE}, "offset"),
    ],
)
def test_not_simulated(arguments, more, argument):
    with pytest.raises(NotSimulated, match=f"npu_quant_matmul: {argument} was"):
        op(*arguments, **more)
