"""``npu_weight_quant_batchmatmul``: how weights become floats, groups, words of int4, and what it refuses."""

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected

BF16, F16 = torch.bfloat16, torch.float16


def op(x, weight, scale, *arguments, **more):
    return torch.ops.npu.npu_weight_quant_batchmatmul(x, weight, scale, *arguments, **more)


def half(*rows):
    return torch.tensor(rows, dtype=F16)


def i8(*rows):
    return torch.tensor(rows, dtype=torch.int8)


def eye(k, dtype=F16):
    """An x with which the output is the weight that was multiplied."""
    return torch.eye(k, dtype=dtype)


def test_by_hand():
    x, weight = half([1, 2], [3, 4]), i8([1, -2, 3], [4, 5, -6])
    assert op(x, weight, half(2.0)).tolist() == [[18, 16, -18], [38, 28, -30]]
    offset, bias = half(1, 0, -1), half(10, 20, 30)
    # (w + offset) * scale: [4, -4, 4] and [10, 10, -14].
    output = op(x, weight, half(2, 2, 2), offset, bias=bias)
    assert output.tolist() == [[34, 36, 6], [62, 48, -14]]
    assert output.dtype == F16


@pytest.mark.parametrize("shape", [(1,), (1, 1), (4,), (1, 4)])
def test_one_scale_or_one_per_column(exact, shape):
    weight, scale = exact.integers(8, 4), exact.draw(*shape, dtype=BF16)
    expected = (weight.float() * scale.float()).to(BF16)
    assert torch.equal(op(eye(8, BF16), weight, scale), expected)


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_offset_and_scale_round_each(exact, dtype):
    weight = exact.integers(1, 64)
    scale, offset = exact.draw(64, dtype=dtype, seed=1), exact.draw(64, dtype=dtype, seed=2)

    def narrow(value):
        return torch.tensor(float(exact.round32(value))).to(dtype)

    columns = list(zip(weight[0].tolist(), exact.fractions(offset), exact.fractions(scale), strict=True))
    twice = [narrow(exact.fractions(narrow(w + o)) * s).item() for w, o, s in columns]
    once = [narrow(exact.round32(w + o) * s).item() for w, o, s in columns]
    x = torch.ones(1, 1, dtype=dtype)
    assert op(x, weight, scale, offset).tolist() == [twice]
    with exact.changed(weight_quant_dequantised="rounded_once"):
        assert op(x, weight, scale, offset).tolist() == [once]
    assert twice != once


def test_products_round_once(exact):
    """In float16 the sum of 4096 ones and one half would lose the half."""
    x = torch.ones(1, 4097, dtype=F16)
    x[0, -1] = 0.5
    weight = torch.ones(4097, 1, dtype=torch.int8)
    weight[0] = -128
    assert op(x, weight, half(0.5)).item() == half((4095 - 128 + 0.5) / 2).item()
    bias = torch.tensor([1e-3])
    assert op(eye(1, BF16), i8([1]), torch.ones(1, dtype=BF16), bias=bias).item() == 1.0
    assert op(eye(1, BF16), i8([1]), torch.ones(1, dtype=BF16), bias=bias * 5).item() == 1.0078125


def test_the_bias_is_added_before_rounding():
    """1 + 2^-9 is no bfloat16, and with 2^-9 and a little more it is nearer to 1 + 2^-7 than to 1."""
    x, weight = torch.tensor([[1.0, 2.0**-9]]).to(BF16), i8([1], [1])
    assert op(x, weight, torch.ones(1, dtype=BF16), bias=torch.tensor([2.0**-9 + 2.0**-12])).item() == 1 + 2.0**-7


def test_groups_of_rows(exact):
    weight, scale, offset = exact.integers(80, 4), exact.draw(3, 4, dtype=F16), exact.draw(3, 4, dtype=F16, seed=1)
    expected = torch.cat([(rows.half() + o) * s for rows, o, s in zip(weight.split(32), offset, scale, strict=True)])
    assert torch.equal(op(eye(80), weight, scale, offset, antiquant_group_size=32), expected)
    # A scale per column does not care for the group size.
    plain = op(eye(80), weight, scale[0], offset[0])
    assert torch.equal(op(eye(80), weight, scale[0], offset[0], antiquant_group_size=32), plain)
    assert torch.equal(op(eye(80), weight, scale[:1], offset[:1], antiquant_group_size=64), plain)


def packed(weight):
    return torch.ops.npu.npu_convert_weight_to_int4pack(weight.int().contiguous())


def test_words_of_int4(exact):
    weight, scale = exact.integers(64, 16, low=-8, high=8), exact.draw(2, 16, dtype=BF16)
    x = exact.draw(5, 64, dtype=BF16)
    for group, own in ((0, scale[0]), (32, scale)):
        more = {"antiquant_group_size": group}
        plain = op(x, weight, own, **more)
        assert torch.equal(op(x, packed(weight), own, **more), plain)
        assert torch.equal(op(x, packed(weight.t()).t(), own, **more), plain)


def test_a_lone_row_of_words_is_not_seen_to_be_transposed():
    """DOC: a [1, 8] of words, transposed, is refused because K does not match."""
    words = packed(torch.ones(8, 8)).t()
    with pytest.raises(OperatorRejected, match=r"of which K is 1 in words of int4; allowed: K of 8"):
        op(eye(8), words, half(1.0))


def test_batches(exact):
    x, weight = exact.draw(2, 3, 8, dtype=F16), exact.integers(2, 8, 4)
    output = op(x, weight, half(1.0))
    assert torch.equal(output[1], op(x[1], weight[1], half(1.0)))
    assert torch.equal(op(x, weight[1], half(1.0))[1], output[1])
    assert torch.equal(op(x[1], weight, half(1.0))[1], output[1])
    words = packed(weight.view(16, 4).repeat(1, 2)).view(2, 8, 1)
    assert op(x, words, half(1.0)).shape == (2, 3, 8)
    assert torch.equal(op(x, weight.transpose(1, 2).contiguous().transpose(1, 2), half(1.0)), output)


def test_integers_come_out_with_a_scale_of_19_bits():
    x, weight = half([1.0]), i8([1, 5, -100])
    scale = torch.tensor([0.5])
    assert op(x, weight, half(1.0), None, scale).tolist() == [[0, 2, -50]]
    assert op(x, weight, half(1.0), None, scale, torch.tensor([2.6])).tolist() == [[4, 6, -47]]
    words = torch.ops.npu.npu_trans_quant_param(scale, torch.tensor([2.6]))
    output = op(x, weight, half(1.0), None, words)
    assert (output.dtype, output.tolist()) == (torch.int8, [[4, 6, -47]])
    # 100 * 0.015 is 1.5, and just below with the bits that are left.
    fine = torch.tensor([0.015], dtype=torch.float32)
    assert (100 * fine).round().item() == 2
    assert op(x, weight, half(1.0), None, fine).tolist() == [[0, 0, -1]]
    assert op(x, weight, half(2.0), None, torch.tensor([100.0]), bias=half(0, 0, 201)).tolist() == [[127, 127, 100]]


def test_nz_weights(exact):
    x, weight = exact.draw(4, 32, dtype=F16), exact.integers(32, 64)
    cast = torch.ops.npu.npu_format_cast(weight, 29)
    assert torch.equal(op(x, cast, half(1.0)), op(x, weight, half(1.0)))
    with pytest.raises(OperatorRejected, match="quant_scale was given; allowed: None with a weight in FRACTAL_NZ"):
        op(x, cast, half(1.0), None, torch.ones(1))
    with pytest.raises(NotSimulated, match="weight was int32 in FRACTAL_NZ"):
        op(x, nz_words(), half(1.0))
    with (
        exact.changed(weight_quant_eager_nz="rejected"),
        pytest.raises(OperatorRejected, match="weight was in FRACTAL"),
    ):
        op(x, cast, half(1.0))


def nz_words():
    return torch.ops.npu.npu_format_cast(torch.ones(32, 8, dtype=torch.int32), 29)


X = torch.ones(2, 64, dtype=F16)
W = torch.ones(64, 4, dtype=torch.int8)
ONE = torch.ones(1, dtype=F16)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        ((X[0], W, ONE), {}, "x was of rank 1; allowed: rank 2 or more .*ERR01003"),
        ((X, W[0], ONE), {}, "weight was of rank 1; allowed: rank 2 or more"),
        ((X[:, :63], W, ONE), {}, r"weight was of shape \[64, 4\] for x of shape \[2, 63\]; allowed: K of 63"),
        ((X.expand(2, 2, 64), W.expand(3, 64, 4), ONE), {}, "weight was of shape .*; allowed: the batch axes of x, or"),
        ((X.expand(1, 3, 2, 64), W.expand(3, 64, 4), ONE), {}, "weight was of shape .*; allowed: the batch axes of x"),
        ((X.float(), W, ONE.float()), {}, "x was float32; allowed: float16 or bfloat16"),
        ((X, W.short(), ONE), {}, "weight was int16; allowed: int8 or int32"),
        ((X[:0], W, ONE), {}, r"x was empty, of shape \[0, 64\]; allowed: a tensor with elements"),
        ((X[:, :1], torch.ones(1, 65536, dtype=torch.int8), ONE), {}, "weight was of shape .*; .*K and N up to 65535"),
        ((X, torch.ones(64, 8).int()[:, ::2], ONE), {}, "weight was of shape .*, of which K is 512"),
        ((X, torch.ones(8, 8).int()[:, ::2], ONE), {}, r"weight was words with strides \(8, 2\)"),
        ((X, W, ONE.to(BF16)), {}, "antiquant_scale was bfloat16; allowed: float16"),
        ((X, W, torch.ones(2, 4).half()), {}, r"antiquant_scale was of shape \[2, 4\]; allowed: \[1\] or \[1, 1\] or"),
        (
            (X, W, torch.ones(3, 4).half()),
            {"antiquant_group_size": 32},
            r"antiquant_scale was of shape \[3, 4\]; .* or \[2, 4\], one, or one per column, or one per column and",
        ),
        ((X, W, ONE, ONE.float()), {}, "antiquant_offset was float32; allowed: float16"),
        ((X, W, ONE, torch.ones(4).half()), {}, r"antiquant_offset was of shape \[4\]; allowed: \[1\], as antiquant"),
        ((X, W, ONE), {"antiquant_group_size": 16}, "antiquant_group_size was 16; allowed: 0 or a multiple of 32"),
        ((X, W, ONE), {"antiquant_group_size": 64}, "antiquant_group_size was 64; .* from 32 to 63 .*ERR01003"),
        ((X, W, ONE), {"antiquant_group_size": -32}, "antiquant_group_size was -32"),
        ((X, W, ONE), {"quant_offset": ONE.float()}, "quant_offset was given; allowed: None without quant_scale"),
        ((X, W, ONE), {"inner_precise": 2}, "inner_precise was 2; allowed: 0 or 1"),
        ((X, W, ONE), {"quant_scale": ONE}, "quant_scale was float16; allowed: float32 or int64"),
        ((X, W, ONE), {"quant_scale": torch.ones(3)}, r"quant_scale was of shape \[3\]; allowed: \[1\] or \[4\]"),
        (
            (X, W, ONE),
            {"quant_scale": torch.ones(4), "quant_offset": torch.ones(1)},
            r"quant_offset was of shape \[1\]; allowed: \[4\], as quant_scale",
        ),
        ((X, W, ONE), {"bias": ONE.float()}, "bias was float32; allowed: float16"),
        ((X.to(BF16), W, ONE.to(BF16)), {"bias": ONE.to(BF16)}, "bias was bfloat16; allowed: float32"),
        ((X, W, ONE), {"bias": torch.ones(2).half()}, r"bias was of shape \[2\]; allowed: \[1\] or \[4\] or \[1, 4\]"),
    ],
)
def test_rejections(arguments, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_weight_quant_batchmatmul: {message}"):
        op(*arguments, **more)


@pytest.mark.parametrize(
    ("arguments", "more", "argument"),
    [
        ((X, W.float(), ONE), {}, "weight"),
        ((X, W, ONE), {"inner_precise": 1}, "inner_precise"),
        ((X, W, ONE), {"weight_dtype": 285}, "weight_dtype"),
        ((X, W, ONE), {"quant_scale": torch.ones(1).long(), "quant_offset": torch.ones(1)}, "quant_offset"),
    ],
)
def test_not_simulated(arguments, more, argument):
    with pytest.raises(NotSimulated, match=f"npu_weight_quant_batchmatmul: {argument} was"):
        op(*arguments, **more)


def word_call(exact, *, rows=3, k=64, n=128, **more):
    """Return scales of 19 bits in words, x and a weight without a fraction, and the numbers that they stand for."""
    weight, scale = exact.integers(n, k, seed=1), 2.0 ** exact.integers(n, low=-9, high=-5, seed=2).float()
    words = torch.ops.npu.npu_trans_quant_param(scale)
    x = exact.integers(rows, k, low=-8, high=8).half()
    return {"x": x, "weight": weight.t(), "antiquant_scale": words} | more, scale


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("offset", [False, True])
def test_scales_in_words(exact, offset, two):
    call, scale = word_call(exact)
    offsets = exact.integers(128, low=-128, high=128, seed=3, dtype=torch.int32)
    if two:
        call["antiquant_scale"] = call["antiquant_scale"].view(1, 128)
    if offset:
        call["antiquant_offset"] = offsets.view_as(call["antiquant_scale"])
    bias = exact.integers(128, seed=4).half()
    weight = call["weight"].double() + (offsets.double() if offset else 0)
    expected = (call["x"].double() @ weight * scale.double() + bias.double()).to(F16)
    assert torch.equal(torch.ops.npu.npu_weight_quant_batchmatmul(**call, bias=bias), expected)


def test_scales_in_words_multiply_the_sums(exact):
    call, _ = word_call(exact)
    scale = torch.full((128,), 1 + 2**-10 + 2**-20)  # of which 19 bits keep 10 behind the point
    call["antiquant_scale"] = torch.ops.npu.npu_trans_quant_param(scale)
    sums = call["x"].double() @ call["weight"].double()
    assert torch.equal(torch.ops.npu.npu_weight_quant_batchmatmul(**call), (sums * (1 + 2**-10)).to(F16))
    with exact.changed(weight_quant_word_scales="weight"):
        rounded = (call["weight"].double() * (1 + 2**-10)).to(F16).double()
        assert torch.equal(torch.ops.npu.npu_weight_quant_batchmatmul(**call), (call["x"].double() @ rounded).to(F16))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": torch.ones(3, 64, dtype=BF16)}, "x was bfloat16; allowed: float16, with antiquant_scale int64"),
        ({"x": torch.ones(97, 64, dtype=F16)}, "M of x was 97; allowed: 1 to 96"),
        ({"x": torch.ones(64, 3, dtype=F16).t()}, "x was not contiguous"),
        ({"weight": torch.ones(64, 128, dtype=torch.int8)}, r"weight was of strides \(128, 1\); allowed: a transposed"),
        ({"weight": torch.ones(128, 8).int().t()}, "weight was int32; allowed: int8, with antiquant_scale int64"),
        (
            {"weight": torch.ones(96, 64, dtype=torch.int8).t()},
            r"weight was of shape \[64, 96\]; allowed: multiples of",
        ),
        ({"antiquant_scale": torch.ones(1).long()}, r"antiquant_scale was of shape \[1\]; allowed: \[128\]"),
        ({"antiquant_offset": torch.ones(128, dtype=F16)}, "antiquant_offset was float16; allowed: int32"),
        ({"antiquant_offset": torch.ones(1, 128).int()}, r"antiquant_offset was of shape \[1, 128\]; allowed: \[128\]"),
        ({"quant_scale": torch.ones(128)}, "quant_scale was given; allowed: None, with antiquant_scale int64"),
        ({"antiquant_group_size": 32}, "antiquant_group_size was given; allowed: None, with antiquant_scale int64"),
    ],
)
def test_rejections_of_scales_in_words(exact, other, message):
    call, _ = word_call(exact)
    with pytest.raises(OperatorRejected, match=message):
        torch.ops.npu.npu_weight_quant_batchmatmul(**call | other)
