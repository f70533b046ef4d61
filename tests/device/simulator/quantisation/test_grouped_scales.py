"""``npu_quant_matmul`` with scales of groups: formulas in float64, what rounds, and what is refused."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected
from npudiff.device.simulator.quantisation.integers import packed

BF16, F16 = torch.bfloat16, torch.float16


def op(call, **more):
    return torch.ops.npu.npu_quant_matmul(**call | more)


def words_of(scale):
    """Return scales as words, of which 19 bits count, and what they keep."""
    words = torch.ops.npu.npu_trans_quant_param(scale.reshape(-1)).view(scale.shape)
    return words, (scale.view(torch.int32) & ~8191).view(torch.float32)


def spread(scale, inner):
    return scale.double().repeat_interleave(inner // len(scale), 0)


def a8w4(exact, *, groups=2, rows=5, columns=16, output=F16):
    inner = 256 * groups if groups else 64
    x, weight = exact.integers(rows, inner), exact.integers(inner, columns, low=-8, high=8, seed=1)
    scale, kept = words_of(exact.draw(groups or 1, columns, seed=2).abs() / 256)
    pertoken = exact.draw(rows, seed=3).abs() / 64
    assist = (8 * weight.double() * spread(kept, inner)).sum(0).float()
    call = {
        "x1": x,
        "x2": packed(weight),
        "scale": scale if groups else scale[0],
        "offset": assist,
        "pertoken_scale": pertoken[:, None] if groups else pertoken,
        "output_dtype": output,
    }
    if groups:
        call["group_sizes"] = [0, 0, 256]
    return call, (x.double() @ (weight.double() * spread(kept, inner))) * pertoken.double()[:, None]


def within(output, expected, bound):
    assert ((output.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("output", [F16, BF16])
@pytest.mark.parametrize("groups", [0, 1, 3])
def test_int8_by_int4(exact, groups, output):
    call, expected = a8w4(exact, groups=groups, output=output)
    result = op(call)
    assert (result.dtype, result.shape) == (output, (5, 16))
    # Each of both halves adds groups in float16; the upper one counts 16 times.
    largest = 64 * 256 * spread(words_of_scale(call), 256 * (groups or 1))[:1].max()
    partial = 17 * (groups or 1) ** 2 * largest * 2**-11 * call["pertoken_scale"].double().view(-1, 1)
    within(result, expected, partial + torch.finfo(output).eps * expected.abs())
    with exact.changed(quant_matmul_a8w4_products="float32"):
        result = op(call)
    slack = 2**-20 * 64 * 256 * 17 * (groups or 1) * spread(words_of_scale(call), 256).max()
    within(result, expected, torch.finfo(output).eps / 2 * expected.abs() + slack * call["pertoken_scale"].view(-1, 1))


def words_of_scale(call):
    scale = call["scale"].view(-1, 16)
    return scale.view(torch.int32)[:, ::2].contiguous().view(torch.float32)


def test_groups_of_int8_by_int4_are_added_in_float16(exact):
    x, weight = torch.zeros(1, 512, dtype=torch.int8), torch.zeros(512, 8, dtype=torch.int8)
    # Lower halves of 8 and a zero: 0 & 15 - 8 is -8; 8 & 15 - 8 is 0.
    x[:] = 8
    x[0, 0], x[0, 256] = 15, 9  # 7 and 1 below, none above
    weight[0], weight[256] = 7, 1
    scale, _ = words_of(torch.tensor([[64.0] * 8, [0.5] * 8]))
    call = {
        "x1": x,
        "x2": packed(weight),
        "scale": scale,
        "offset": torch.zeros(8),
        "pertoken_scale": torch.ones(1, 1),
        "output_dtype": BF16,
        "group_sizes": [0, 0, 256],
    }
    assert op(call).tolist() == [[3136.0] * 8]  # 49 * 64 + 0.5, as float16 has it
    with exact.changed(quant_matmul_a8w4_products="float32"):
        assert op(call | {"output_dtype": F16}).tolist() == [[3136.0] * 8]
        assert op(call | {"offset": torch.full((8,), -3136.0)}).tolist() == [[0.5] * 8]
    assert op(call | {"offset": torch.full((8,), -3136.0)}).tolist() == [[0.0] * 8]


def int4(exact, *, rows=3, sizes=(0, 0, 256), output=BF16):
    inner, columns = 1024, 256
    x = exact.integers(rows, inner, low=-8, high=8)
    weight = exact.integers(columns, inner, low=-8, high=8, seed=1)
    scale, offset = exact.draw(4, columns, seed=2).abs() / 64, exact.draw(4, columns, seed=3).half()
    pertoken = exact.draw(rows, 1, seed=4).abs()
    call = {
        "x1": packed(x),
        "x2": packed(weight).t(),
        "scale": scale,
        "offset": offset,
        "pertoken_scale": pertoken,
        "output_dtype": output,
        "group_sizes": list(sizes),
    }
    above = weight.t().double() - spread(offset, inner)
    expected = (x.double() @ (above * spread(scale, inner))) * pertoken.double()
    twin = (x.double().abs() @ ((weight.t().double().abs() + spread(offset.abs(), inner)) * spread(scale, inner))) * (
        pertoken.double()
    )
    return call, expected, twin


@pytest.mark.parametrize("output", [F16, BF16])
@pytest.mark.parametrize("sizes", [(0, 0, 256), (1, 1, 256)])
def test_int4(exact, sizes, output):
    call, expected, twin = int4(exact, sizes=sizes, output=output)
    result = op(call)
    assert (result.dtype, result.shape) == (output, expected.shape)
    within(result, expected, torch.finfo(output).eps / 2 * expected.abs() + 2**-21 * twin)


def blocks(exact, *, rows=3, bias=True):
    inner, columns = 512, 256
    x, weight = exact.integers(rows, inner), exact.integers(columns, inner, seed=1)
    scale, pertoken = exact.draw(2, 4, seed=2).abs() / 64, exact.draw(rows, 4, seed=3).abs()
    call = {
        "x1": x,
        "x2": weight.t(),
        "scale": scale.t(),
        "pertoken_scale": pertoken,
        "output_dtype": BF16,
        "group_sizes": [1, 128, 128],
        "bias": exact.draw(columns, seed=4) if bias else None,
    }
    by_column = spread(scale.t(), inner).repeat_interleave(128, 1)
    by_row = pertoken.double().repeat_interleave(128, 1)
    expected = (x.double() * by_row) @ (weight.t().double() * by_column)
    twin = (x.double().abs() * by_row) @ (weight.t().double().abs() * by_column)
    return call, expected + (call["bias"].double() if bias else 0), twin


@pytest.mark.parametrize("bias", [False, True])
def test_int8_in_blocks(exact, bias):
    call, expected, twin = blocks(exact, bias=bias)
    result = op(call)
    assert (result.dtype, result.shape) == (BF16, expected.shape)
    within(result, expected, 2**-8 * expected.abs() + 2**-21 * twin)


KINDS = {
    "a8w4": lambda exact: a8w4(exact)[0],
    "a8w4 without groups": lambda exact: a8w4(exact, groups=0)[0],
    "int4": lambda exact: int4(exact)[0],
    "blocks": lambda exact: blocks(exact)[0],
}


@pytest.mark.parametrize(
    ("kind", "other", "message"),
    [
        ("a8w4", {"scale": torch.ones(2, 16)}, "scale was float32; allowed: int64"),
        ("a8w4", {"scale": torch.ones(3, 16).long()}, r"scale was of shape \[3, 16\]; allowed: \[2, 16\]"),
        ("a8w4", {"pertoken_scale": torch.ones(5)}, r"pertoken_scale was of shape \[5\]; allowed: \[5, 1\]"),
        ("a8w4", {"pertoken_scale": None}, "pertoken_scale was None; allowed: a tensor, with x1 int8 and x2 int32"),
        ("a8w4", {"offset": None}, r"offset was None; allowed: float32 \[n\]"),
        ("a8w4", {"offset": torch.ones(16).half()}, "offset was float16; allowed: float32"),
        ("a8w4", {"offset": torch.ones(1)}, r"offset was of shape \[1\]; allowed: \[16\]"),
        ("a8w4", {"bias": torch.ones(16).int()}, "bias was given; allowed: None, with x1 int8 and x2 int32"),
        ("a8w4", {"output_dtype": torch.int8}, "output_dtype was torch.int8; allowed: torch.float16 or torch.bfloat16"),
        ("a8w4", {"group_sizes": None}, r"group_sizes was \[\]; allowed: \[0, 0, 256\] with a scale of two axes"),
        ("a8w4", {"group_sizes": [0, 0, 128]}, r"group_sizes was \[0, 0, 128\]; allowed: \[0, 0, 0\] or \[0, 0, 256\]"),
        ("a8w4", {"x1": torch.ones(5, 128, dtype=torch.int8)}, r"x2 was of shape \[512, 2\]; allowed: .*128, n"),
        ("a8w4", {"x1": torch.ones(512, 5, dtype=torch.int8).t()}, "x1 was not contiguous"),
        ("a8w4", {"x2": torch.ones(2, 512).int().t()}, "x2 was not contiguous"),
        ("a8w4 without groups", {"group_sizes": [0, 0, 256]}, r"group_sizes was \[0, 0, 256\]; allowed: .* zeros"),
        ("a8w4 without groups", {"pertoken_scale": torch.ones(5, 1)}, r"pertoken_scale was of shape \[5, 1\]"),
        ("int4", {"group_sizes": [0, 0, 128]}, r"group_sizes was \[0, 0, 128\]; .* or \[1, 1, 256\], with int4"),
        ("int4", {"offset": None}, "offset was None; allowed: float16 in the shape of scale"),
        ("int4", {"offset": torch.ones(4, 256)}, "offset was float32; allowed: float16"),
        ("int4", {"scale": torch.ones(4, 256).bfloat16()}, "scale was bfloat16; allowed: float32"),
        ("int4", {"scale": torch.ones(4, 128)}, r"scale was of shape \[4, 128\]; allowed: \[4, 256\]"),
        ("int4", {"pertoken_scale": torch.ones(3)}, r"pertoken_scale was of shape \[3\]; allowed: \[3, 1\]"),
        ("int4", {"x2": torch.ones(1024, 32).int()}, r"x2 was of shape \[1024, 32\]; allowed: a transposed"),
        (
            "int4",
            {"x2": torch.ones(64, 128).int().t()},
            "x2 was of 64 int4 on the last axis; allowed: a multiple of 256",
        ),
        (
            "blocks",
            {"x2": torch.ones(512, 256, dtype=torch.int8)},
            r"x2 was of strides \(256, 1\); allowed: a transposed",
        ),
        (
            "blocks",
            {"x2": torch.ones(128, 512, dtype=torch.int8).t()},
            "x2 was of last axis 128; allowed: a multiple of",
        ),
        ("blocks", {"scale": torch.ones(4, 2)}, "transpose are not same, please check input"),
        ("blocks", {"scale": torch.ones(4, 4).t()}, r"scale was of shape \[4, 4\]; allowed: \[4, 2\]"),
        ("blocks", {"pertoken_scale": torch.ones(3)}, r"pertoken_scale was of shape \[3\]; allowed: \[3, 4\]"),
        ("blocks", {"offset": torch.ones(256)}, "offset was given; allowed: None, with blocks"),
        ("blocks", {"output_dtype": F16}, "output_dtype was torch.float16; allowed: torch.bfloat16, with int8 in"),
        ("blocks", {"bias": torch.ones(256).int()}, "bias was int32; allowed: float32"),
        (
            "blocks",
            {"group_sizes": [1, 128, 64]},
            r"group_sizes was \[1, 128, 64\]; allowed: zeros, or \[1, 128, 128\]",
        ),
    ],
)
def test_rejections(exact, kind, other, message):
    with pytest.raises(OperatorRejected, match=message):
        op(KINDS[kind](exact), **other)


def test_inner_axes_of_int8_by_int4(exact):
    call, _ = a8w4(exact)
    inner = {"x1": torch.ones(5, 320, dtype=torch.int8), "x2": torch.ones(320, 2).int()}
    with pytest.raises(OperatorRejected, match="x1 was of last axis 320; allowed: a multiple of 256 below 29576"):
        op(call, **inner)


def test_words_of_the_host(exact):
    call, _ = a8w4(exact)
    with pytest.raises(OperatorRejected, match="group_sizes only support input with three elements, but got 2"):
        op(call, group_sizes=[0, 0])
    with pytest.raises(OperatorRejected, match=r"group param value must conform to range \[0, 65535\]"):
        op(call, group_sizes=[0, 0, 65536])


@pytest.mark.parametrize("kind", KINDS)
def test_shapes(exact, kind):
    call = KINDS[kind](exact)
    moved = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in call.items()}
    inferred, eager = op(moved), op(call)
    assert (inferred.shape, inferred.dtype) == (eager.shape, eager.dtype)
