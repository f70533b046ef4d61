"""``npu_grouped_matmul`` with integers: exact sums, rounding chains, packed int4 and its bias, integer weights."""

from fractions import Fraction

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected
from npudiff.device.simulator.grouped_matmul.int4 import scale_from_bits, unpacked


def grouped(x, weight, groups, *, kind=1, **more):
    lists = {name: [value] if isinstance(value, torch.Tensor) else value for name, value in more.items()}
    output = torch.ops.npu.npu_grouped_matmul(
        [x], [weight], group_list=torch.tensor(groups), group_list_type=kind, split_item=2, group_type=0, **lists
    )
    assert len(output) == 1
    return output[0]


def nearest(fraction, dtype):
    """Round a fraction once."""
    return torch.tensor(float(fraction), dtype=torch.float64).to(dtype).item()


@pytest.mark.parametrize("inner", [1, 37, 1024, 1025, 4096])
def test_sums_are_exact(gmm, inner):
    x, weight = gmm.integers(3, inner), gmm.integers(2, inner, 4, seed=1)
    # A sum that is large and odd, which float32 does not hold.
    x[0], weight[0] = -128, -127
    x[0, -1] = 1
    output = grouped(x, weight, [2, 1], output_dtype=torch.int32)
    assert output[:2].tolist() == gmm.python_product(x[:2], weight[0])
    assert output[2:].tolist() == gmm.python_product(x[2:], weight[1])
    assert output.dtype == torch.int32


@pytest.mark.parametrize(("scale_dtype", "dtype"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16)])
@pytest.mark.parametrize("number", [False, True])
def test_scales_in_fractions(gmm, scale_dtype, dtype, number):
    # Powers of two as scales: the only rounding is the last one.
    x, weight = gmm.integers(5, 64), gmm.integers(3, 64, 8, seed=1)
    scale = 2.0 ** gmm.integers(3, 8, low=-9, high=-3, seed=2).to(scale_dtype)
    per_token = 2.0 ** gmm.integers(5, low=-4, high=0, seed=3).float()
    bias = gmm.integers(3, 8, low=-5000, high=5000, seed=4, dtype=torch.int32)
    wanted = {torch.bfloat16: 283, torch.float16: 257}[dtype] if number else dtype
    output = grouped(x, weight, [2, 0, 3], scale=scale, per_token_scale=per_token, bias=bias, output_dtype=wanted)
    assert output.dtype == dtype
    for row, expert in enumerate([0, 0, 2, 2, 2]):
        sums = gmm.python_product(x[row : row + 1], weight[expert])[0]
        for column, total in enumerate(sums):
            factor = Fraction(scale[expert, column].item()) * Fraction(per_token[row].item())
            exact = (total + bias[expert, column].item()) * factor
            assert output[row, column].item() == nearest(exact, dtype)


def test_the_chain_of_scales(gmm):
    # (sum * scale) rounds to float32 before the scale of the row.
    x, weight = torch.full((1, 1), 101, dtype=torch.int8), torch.full((1, 1, 1), 103, dtype=torch.int8)
    scale, row = torch.tensor([[0.1]]), torch.tensor([0.3])
    total = torch.tensor(101.0 * 103)
    expected = ((total * scale) * row[:, None]).half()
    assert torch.equal(grouped(x, weight, [1], scale=scale, per_token_scale=row, output_dtype=torch.float16), expected)


def test_floating_bias_comes_last(gmm):
    x, weight = torch.ones(1, 4, dtype=torch.int8), torch.ones(1, 4, 2, dtype=torch.int8)
    scale, row = torch.full((1, 2), 0.5).bfloat16(), torch.tensor([0.25])
    for dtype in (torch.float32, torch.bfloat16):
        bias = torch.tensor([[8.0, 16]]).to(dtype)
        output = grouped(x, weight, [1], scale=scale, per_token_scale=row, bias=bias, output_dtype=torch.bfloat16)
        assert output.tolist() == [[8.5, 16.5]]
    whole = torch.tensor([[8, 16]], dtype=torch.int32)
    output = grouped(x, weight, [1], scale=scale, per_token_scale=row, bias=whole, output_dtype=torch.bfloat16)
    assert output.tolist() == [[1.5, 2.5]]


def test_scales_of_several_x_and_weights(gmm):
    x, weights = [gmm.integers(2, 8), gmm.integers(3, 4, seed=1)], [gmm.integers(8, 5), gmm.integers(4, 6, seed=2)]
    output = torch.ops.npu.npu_grouped_matmul(
        x,
        weights,
        scale=[torch.full((5,), 0.5).bfloat16(), torch.full((6,), 0.25).bfloat16()],
        per_token_scale=[torch.tensor([1.0, 2]), torch.tensor([4.0, 8, 16])],
        split_item=0,
        group_type=-1,
        output_dtype=torch.bfloat16,
    )
    second = torch.tensor(gmm.python_product(x[1], weights[1])) * torch.tensor([[1.0], [2], [4]])
    assert torch.equal(output[1], second.bfloat16())
    assert torch.equal(
        output[0], (torch.tensor(gmm.python_product(x[0], weights[0])) * torch.tensor([[0.5], [1]])).bfloat16()
    )


def test_rows_behind_the_groups(gmm):
    x, weight, scale = gmm.integers(4, 8), gmm.integers(1, 8, 2), torch.ones(1, 2).bfloat16()
    output = grouped(x, weight, [3], scale=scale, output_dtype=torch.bfloat16)
    assert gmm.is_garbage(output[3:])
    assert not gmm.is_garbage(output[:3])


def test_unpacking(gmm):
    # Column i of eight is in bits 4i to 4i + 3, in two's complement: 0x8F7E6D5C, last column first.
    word = torch.tensor([[0x8F7E6D5C - 2**32]], dtype=torch.int32)
    assert unpacked(word).tolist() == [[-4, 5, -3, 6, -2, 7, -1, -8]]
    values = gmm.integers(3, 5, 24, low=-8, high=7)
    assert torch.equal(unpacked(gmm.pack(values)), values)
    # As production makes it: the low nibble of a byte is the even column.
    pairs = (values[..., 0::2] & 15) | (values[..., 1::2] << 4)
    assert torch.equal(pairs.contiguous().view(torch.int32), gmm.pack(values))


@pytest.mark.parametrize("high", [0, 1 << 14, -1])
def test_scales_from_bits(gmm, high):
    scale = torch.tensor([[0.0123, 1.0, -2.5e-7]])
    assert torch.equal(scale_from_bits(gmm.bits(scale, high)), scale)
    assert torch.equal(scale_from_bits(gmm.bits(scale).view(torch.uint64)), scale)
    assert gmm.bits(scale)[0, 0].item() == 1011451376  # as in production's weights


def a8w4(gmm, *, rows=4, inner=64, columns=16, experts=2, groups=1, exponents=(-6, -2)):
    x, weight = gmm.integers(rows, inner), gmm.integers(experts, inner, columns, low=-8, high=7, seed=1)
    power = gmm.integers(experts, groups, columns, low=exponents[0], high=exponents[1], seed=2)
    scale = 2.0 ** power.float()
    spread = scale.repeat_interleave(inner // groups, 1)
    return {
        "x": x,
        "weight": weight,
        "scale": scale,
        "assist": 8 * (weight.float() * spread).sum(1),
        "row": 2.0 ** gmm.integers(rows, low=-3, high=0, seed=3).float(),
    }


def call_a8w4(gmm, given, groups, *, output_dtype=torch.bfloat16, **more):
    return grouped(
        given["x"],
        gmm.pack(given["weight"]),
        groups,
        **{
            "scale": gmm.bits(given["scale"]),
            "bias": given["assist"],
            "per_token_scale": given["row"],
            "output_dtype": output_dtype,
        }
        | more,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_int4_is_the_plain_product(gmm, dtype):
    """With the bias that it has to have; powers of two as scales leave one rounding."""
    given = a8w4(gmm)
    output = call_a8w4(gmm, given, [1, 3], output_dtype=dtype)
    for row, expert in enumerate([0, 1, 1, 1]):
        sums = gmm.python_product(given["x"][row : row + 1], given["weight"][expert])[0]
        for column, total in enumerate(sums):
            factor = Fraction(given["scale"][expert, 0, column].item()) * Fraction(given["row"][row].item())
            assert output[row, column].item() == nearest(total * factor, dtype)


def test_int4_as_production_stores_it(gmm):
    """Bytes [E, K, N / 2] are cast to FRACTAL_NZ, then seen as int32."""
    given = a8w4(gmm, columns=64)
    weight = given["weight"]
    pairs = ((weight[..., 0::2] & 15) | (weight[..., 1::2] << 4)).contiguous()
    stored = torch.ops.npu.npu_format_cast(pairs, 29).view(torch.int32)
    options = {"scale": gmm.bits(given["scale"]), "bias": given["assist"], "per_token_scale": given["row"]}
    output = grouped(given["x"], stored, [1, 3], output_dtype=torch.bfloat16, **options)
    assert torch.equal(output, call_a8w4(gmm, given, [1, 3]))


def test_a_scale_per_row_may_have_two_axes(gmm):
    given = a8w4(gmm)
    column = given | {"row": given["row"][:, None]}
    assert torch.equal(call_a8w4(gmm, column, [1, 3]), call_a8w4(gmm, given, [1, 3]))


def test_a_wrong_bias_is_added(gmm):
    given = a8w4(gmm)
    without = call_a8w4(gmm, given | {"assist": torch.zeros(2, 16)}, [4, 0], output_dtype=torch.float16)
    exact = given["x"].double() @ given["weight"][0].double() * given["scale"][0].double()
    missing = (exact - given["assist"][0]) * given["row"].double()[:, None]
    assert torch.equal(without, missing.half())


def test_halves_of_int8(gmm):
    """All 256 values of x, by a weight of one."""
    x = torch.arange(-128, 128).to(torch.int8)[:, None].expand(-1, 8) * torch.tensor([1] + [0] * 7, dtype=torch.int8)
    weight = torch.zeros(1, 8, 8, dtype=torch.int8)
    weight[0, 0, 3] = -7
    assist = 8 * weight.float().sum(1)
    given = {"x": x, "weight": weight, "scale": torch.ones(1, 1, 8), "assist": assist, "row": torch.ones(256)}
    output = call_a8w4(gmm, given, [256], output_dtype=torch.float16)
    assert output[:, 3].tolist() == [-7 * value for value in range(-128, 128)]


def test_scales_per_group_round_to_float16(gmm):
    given = a8w4(gmm, inner=512, columns=8, groups=2, rows=3)
    # Scales of ten bits, so that sums of eleven do not keep theirs.
    scale = given["scale"] = gmm.integers(2, 2, 8, low=513, high=1023, seed=4).float() / 2**16
    weight = given["weight"][0].long()
    given["assist"] = 8 * (given["weight"].float() * scale.repeat_interleave(256, 1)).sum(1)
    halves = []
    for half in (given["x"].long() // 16, given["x"].long() % 16 - 8):
        first = (half[:, :256] @ weight[:256]).half() * scale[0, 0].half()
        second = (half[:, 256:] @ weight[256:]).half() * scale[0, 1].half()
        halves.append((first + second).float())
    expected = (halves[0] * 16 + halves[1] + given["assist"][0]) * given["row"][:, None]
    assert torch.equal(call_a8w4(gmm, given, [3, 0], output_dtype=torch.float16), expected.half())
    with gmm.changed(gmm_a8w4_group_products="float32"):
        output = call_a8w4(gmm, given, [3, 0], output_dtype=torch.float16)
    exact = given["x"].double() @ (weight.double() * scale[0].double().repeat_interleave(256, 0))
    exact = exact * given["row"].double()[:, None]
    assert ((output - exact).abs() <= 2.0**-11 * exact.abs() + 1e-3).all()
    assert not torch.equal(expected.half(), output)


def test_other_choices_of_int4(gmm):
    given = a8w4(gmm, inner=512)
    plain = call_a8w4(gmm, given, [1, 3])
    # Ends that are read as counts.
    assert torch.equal(call_a8w4(gmm, given, [1, 3], kind=0), plain)
    with gmm.changed(gmm_a8w4_group_list="as_given"):
        assert torch.equal(call_a8w4(gmm, given, [1, 4], kind=0), plain)
    with gmm.changed(gmm_a8w4_x="overwritten"):
        x = given["x"].clone()
        assert torch.equal(call_a8w4(gmm, given | {"x": x}, [1, 3]), plain)
        assert (x == 0x5A).all()
    # A sum of 2049 does not fit into float16.
    x = torch.zeros(1, 512, dtype=torch.int8)
    x[0, :293] = 16
    weight = torch.full((1, 512, 8), 7, dtype=torch.int8)
    weight[0, 292] = 5
    odd = {"x": x, "weight": weight, "scale": torch.ones(1, 1, 8), "row": torch.ones(1)}
    odd["assist"] = 8 * weight.float().sum(1)
    assert call_a8w4(gmm, odd, [1], output_dtype=torch.float16)[0, 0].item() == float(torch.tensor(16 * 2049.0).half())
    with gmm.changed(gmm_a8w4_channel_products="float16"):
        # lower is -8 everywhere: -8 * (292 * 7 + 5 + 219 * 7) is -28656 + ..., which rounds to float16 as well.
        total = int(weight[0, :, 0].sum())
        lower = torch.tensor(-8.0 * total).half().item()
        upper = torch.tensor(2049.0).half().item()
        expected = torch.tensor(16 * upper + lower + 8 * total).half().item()
        assert call_a8w4(gmm, odd, [1], output_dtype=torch.float16)[0, 0].item() == expected


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_integer_weights(gmm, dtype, packed):
    low, high = (-8, 7) if packed else (-128, 127)
    weight = gmm.integers(2, 8, 16, low=low, high=high)
    x = gmm.integers(3, 8, low=-4, high=4, seed=1).to(dtype)
    scale = 2.0 ** gmm.integers(2, 16, low=-3, high=0, seed=2).to(dtype)
    offset = gmm.integers(2, 16, low=-3, high=3, seed=3).to(dtype)
    bias = torch.ones(2, 16, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    given = gmm.pack(weight) if packed else weight
    output = grouped(x, given, [1, 2], antiquant_scale=scale, antiquant_offset=offset, bias=bias)
    for row, expert in enumerate([0, 1, 1]):
        whole = (weight[expert].double() + offset[expert].double()) * scale[expert].double()
        # bfloat16 has eight bits: weights plus offset of more round.
        exact = x[row].double() @ whole.to(dtype).double() + 1
        assert torch.equal(output[row], exact.to(dtype))


def test_integer_weights_by_groups_of_rows(gmm):
    weight, x = torch.ones(1, 8, 8, dtype=torch.int8), torch.ones(1, 8).half()
    scale = torch.tensor([[[1.0] * 8, [10.0] * 8]]).half()
    assert grouped(x, weight, [1], antiquant_scale=scale).tolist() == [[44.0] * 8]
    assert grouped(x, weight, [1], antiquant_scale=scale, antiquant_offset=[]).tolist() == [[44.0] * 8]


def test_float16_weights_round_twice_and_bfloat16_once(gmm):
    # 101 + 0.03 is 101.0 in float16 (unit 1/16); times 0.0999755859375 that is less than from 101.03.
    weight, x = torch.full((1, 1, 8), 101, dtype=torch.int8), torch.ones(1, 1)
    scale, offset = torch.full((1, 8), 0.0999755859375), torch.full((1, 8), 0.029998779296875)
    for dtype in (torch.float16, torch.bfloat16):
        wide = torch.float32 if dtype == torch.bfloat16 else dtype
        steps = ((weight[0].to(wide) + offset.to(dtype).to(wide)) * scale.to(dtype).to(wide)).to(dtype)
        options = {"antiquant_scale": scale.to(dtype), "antiquant_offset": offset.to(dtype)}
        assert torch.equal(grouped(x.to(dtype), weight, [1], **options), steps)
    assert ((101 + offset) * scale).half()[0, 0] != ((torch.tensor(101.0).half() + offset.half()) * scale.half())[0, 0]


INT8 = {"x": torch.zeros(2, 8, dtype=torch.int8), "weight": torch.zeros(1, 8, 16, dtype=torch.int8)}
BF16 = torch.bfloat16
A8W4 = INT8 | {
    "weight": torch.zeros(1, 8, 2, dtype=torch.int32),
    "scale": torch.zeros(1, 1, 16).long(),
    "bias": torch.zeros(1, 16),
    "per_token_scale": torch.zeros(2),
    "output_dtype": BF16,
}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (INT8, "output_dtype was None, which means int8; allowed: int32"),
        (INT8 | {"output_dtype": BF16}, "output_dtype was bfloat16; allowed: int32"),
        (INT8 | {"scale": torch.ones(1, 16).bfloat16()}, "output_dtype was None, which means int8; allowed: bfloat16"),
        (INT8 | {"scale": torch.ones(1, 16), "output_dtype": BF16}, "output_dtype was bfloat16; allowed: float16"),
        (INT8 | {"scale": torch.ones(1, 16).half(), "output_dtype": BF16}, "scale was float16; allowed: bfloat16 or"),
        (
            INT8 | {"scale": torch.ones(16).to(BF16), "output_dtype": BF16},
            r"scale was of shape \[16\]; allowed: \[1, 16\]",
        ),
        (INT8 | {"output_dtype": torch.int32, "bias": torch.ones(1, 16).int()}, "bias was of 1 tensors; allowed: None"),
        (INT8 | {"output_dtype": 77}, "output_dtype was 77; allowed: None or the number"),
        (INT8 | {"offset": torch.ones(1, 16), "output_dtype": 3}, "offset was of 1 tensors; allowed: None, with int8"),
        (
            INT8 | {"scale": torch.ones(1, 16), "bias": torch.ones(1, 16), "output_dtype": torch.float16},
            "bias was float32; allowed: int32",
        ),
        (
            INT8 | {"scale": torch.ones(1, 16), "per_token_scale": torch.ones(3), "output_dtype": torch.float16},
            r"per_token_scale was of shape \[3\]; allowed: \[2\], \[M\]",
        ),
        (
            INT8 | {"scale": torch.ones(1, 16), "per_token_scale": torch.ones(2).half(), "output_dtype": torch.float16},
            "per_token_scale was float16; allowed: float32",
        ),
        (A8W4 | {"output_dtype": None}, "output_dtype was None, which means int8; allowed: bfloat16 or float16"),
        (A8W4 | {"scale": torch.zeros(1, 1, 16)}, "scale was float32; allowed: int64 or uint64"),
        (A8W4 | {"scale": torch.zeros(1, 16).long()}, "scale was of rank 2"),
        (A8W4 | {"scale": torch.zeros(1, 1, 8).long()}, r"scale was of shape \[1, 1, 8\]; allowed: \[1, 1, 16\]"),
        (
            A8W4 | {"scale": torch.zeros(1, 2, 16).long()},
            "x was of last axis 8; allowed: a multiple of 256 up to 18432",
        ),
        (A8W4 | {"bias": None}, "bias was of 0 tensors; allowed: 1 tensor, with int4 weights"),
        (A8W4 | {"bias": torch.zeros(1, 16).half()}, "bias was float16; allowed: float32"),
        (A8W4 | {"per_token_scale": None}, "per_token_scale was of 0 tensors; allowed: 1 tensor"),
        ({"x": INT8["x"].half(), "weight": INT8["weight"]}, "antiquant_scale was of 0 tensors; allowed: 1"),
        (
            {"x": INT8["x"].half(), "weight": INT8["weight"], "antiquant_scale": torch.ones(1, 16)},
            "antiquant_scale was float32; allowed: float16",
        ),
        (
            {"x": INT8["x"].half(), "weight": INT8["weight"], "antiquant_scale": torch.ones(1, 3, 16).half()},
            "antiquant_scale was of 3 groups; allowed: a divisor of the inner axis, 8",
        ),
        (
            {"x": INT8["x"].half(), "weight": INT8["weight"], "scale": torch.ones(1, 16)},
            "scale was of 1 tensors; allowed: None, with integer weights and float16 x",
        ),
        ({"x": INT8["x"].float(), "weight": INT8["weight"]}, "weight was int8; allowed: .* float32 as x"),
        ({"x": INT8["x"].half(), "weight": INT8["weight"].bfloat16()}, "weight was bfloat16"),
    ],
)
def test_rejections(more, message):
    x, weight = more["x"], more["weight"]
    options = {name: value for name, value in more.items() if name not in ("x", "weight")}
    with pytest.raises(OperatorRejected, match=message):
        grouped(x, weight, [2], **options)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (A8W4 | {"offset": torch.zeros(1, 1, 16)}, "offset was of 1 tensors, which is not simulated"),
        (
            A8W4 | {"weight": torch.zeros(1, 2, 8, dtype=torch.int32).transpose(1, 2)},
            r"weight\[0\] was not contiguous, .* not simulated",
        ),
        (INT8 | {"act_type": 1, "output_dtype": 3}, "act_type was 1, which is not simulated"),
    ],
)
def test_not_simulated(more, message):
    x, weight = more["x"], more["weight"]
    options = {name: value for name, value in more.items() if name not in ("x", "weight")}
    with pytest.raises(NotSimulated, match=message):
        grouped(x, weight, [2], **options)


@pytest.mark.parametrize("bias", [False, True])
def test_int8_to_int8(gmm, bias):
    x, weight = gmm.integers(4, 32), gmm.integers(2, 32, 8, seed=1)
    scale = 2.0 ** gmm.integers(2, 8, low=-9, high=-5, seed=2).float()
    words = torch.ops.npu.npu_trans_quant_param(scale.view(-1), torch.full((16,), 3.0)).view(2, 8)
    more = {"bias": gmm.integers(2, 8, low=-5000, high=5000, seed=4, dtype=torch.int32)} if bias else {}
    output = grouped(x, weight, [1, 3], scale=words, **more)
    assert output.dtype == torch.int8
    for row, expert in enumerate([0, 1, 1, 1]):
        for column, total in enumerate(gmm.python_product(x[row : row + 1], weight[expert])[0]):
            whole = total + (more["bias"][expert, column].item() if bias else 0)
            # round() of a fraction goes to even; the offset of 3 is in the words of the scale.
            exact = round(whole * Fraction(scale[expert, column].item()) + 3)
            assert output[row, column].item() == max(-128, min(127, exact))


def test_int8_to_int8_of_several_weights(gmm):
    x, weight = gmm.integers(4, 32), gmm.integers(2, 32, 8, seed=1)
    words = torch.ops.npu.npu_trans_quant_param(torch.full((8,), 2.0**-6))
    lists = torch.ops.npu.npu_grouped_matmul(
        [x], list(weight), scale=[words, words], group_list=torch.tensor([1, 4]), split_item=3, group_type=0
    )
    assert torch.equal(lists[0], grouped(x, weight, [1, 3], scale=torch.stack([words, words])))


def a4w4(gmm, *, groups=1, inner=64, columns=16, rows=5):
    x, weight = gmm.integers(rows, inner, low=-3, high=3), gmm.integers(2, inner, columns, low=-3, high=3, seed=1)
    scale = 2.0 ** gmm.integers(2, groups, columns, low=-4, high=-3, seed=2).float()
    per_token = 2.0 ** gmm.integers(rows, low=-3, high=2, seed=3).float()
    call = {"x": gmm.pack(x), "weight": gmm.pack(weight), "scale": gmm.bits(scale), "per_token_scale": per_token}
    return call, x, weight, scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stacked", [False, True])
def test_int4_by_int4(gmm, stacked, groups, dtype):
    call, x, weight, scale = a4w4(gmm, groups=groups)
    if not stacked and groups == 1:
        call["scale"] = call["scale"].squeeze(1)
    # Sums of 64 products up to 9, doubled or not: float16 has all of them.
    output = grouped(**call, groups=[2, 3], output_dtype=dtype)
    without = grouped(**call | {"per_token_scale": None}, groups=[2, 3], output_dtype=dtype)
    for start, stop, expert in ((0, 2, 0), (2, 5, 1)):
        factors = scale[expert].double().repeat_interleave(64 // groups, 0)
        exact = x[start:stop].double() @ (weight[expert].double() * factors)
        assert torch.equal(without[start:stop], exact.to(dtype))
        assert torch.equal(output[start:stop], (exact * call["per_token_scale"][start:stop, None].double()).to(dtype))


def test_groups_of_int4_by_int4_are_added_in_float16(gmm):
    x, weight = torch.zeros(1, 96), torch.zeros(1, 96, 8)
    x[0, 0], x[0, 32], x[0, 64], weight[0, 0], weight[0, 32], weight[0, 64] = 7, 1, -7, 7, 1, 7
    # 3136, a half that float16 does not add to it, and 3136 away again.
    scale = torch.tensor([[[64.0] * 8, [0.5] * 8, [64.0] * 8]])
    call = {"x": gmm.pack(x), "weight": gmm.pack(weight), "scale": gmm.bits(scale), "output_dtype": torch.float16}
    assert grouped(**call, groups=[1])[0, 0].item() == 0
    with gmm.changed(gmm_a4w4_products="float32"):
        assert grouped(**call, groups=[1])[0, 0].item() == 0.5


INT4 = {
    "x": torch.zeros(2, 2).int(),
    "weight": torch.zeros(1, 16, 2).int(),
    "scale": torch.zeros(1, 16).long(),
    "output_dtype": torch.float16,
}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"weight": torch.zeros(1, 16, 16, dtype=torch.int8)}, r"weight was int8; allowed: int32 \(int4 in eights\)"),
        ({"weight": torch.zeros(1, 8, 2).int()}, "weight of expert 0 was of 8 rows; allowed: 16, the last axis of x"),
        ({"scale": torch.zeros(1, 16)}, "scale was float32; allowed: int64 or uint64"),
        ({"scale": torch.zeros(1, 3, 16).long()}, "scale was of 3 groups; allowed: a divisor of the inner axis, 16"),
        ({"scale": torch.zeros(1, 8).long()}, r"scale was of shape \[1, 8\]; allowed: \[1, 16\]"),
        ({"scale": None}, "scale was of 0 tensors; allowed: 1 tensor, with int4 x"),
        ({"bias": torch.zeros(1, 16)}, "bias was of 1 tensors; allowed: None, with int4 weights and int4 x"),
        ({"output_dtype": None}, "output_dtype was None, which means int32; allowed: bfloat16 or float16"),
        ({"per_token_scale": torch.zeros(3)}, r"per_token_scale was of shape \[3\]; allowed: \[2\]"),
    ],
)
def test_rejections_of_int4_by_int4(other, message):
    with pytest.raises(OperatorRejected, match=message):
        grouped(**INT4 | other, groups=[2])


@pytest.mark.parametrize(
    ("dtype", "shape", "wanted"),
    [
        (torch.float16, (1, 24, 16), "multiples of 16 rows and 16 columns"),
        (torch.bfloat16, (1, 16, 24), "multiples of 16 rows and 16 columns"),
        (torch.int8, (1, 16, 48), "multiples of 16 rows and 32 columns"),
        (torch.int32, (1, 16, 4), "multiples of 16 rows and 64 columns"),
    ],
)
def test_weights_in_tiles_are_whole_tiles(gmm, dtype, shape, wanted):
    weight = torch.ops.npu.npu_format_cast(torch.ones(shape, dtype=dtype), 29)
    x = torch.ones(2, shape[1] // (8 if dtype == torch.int32 else 1), dtype=dtype)
    more = {"output_dtype": torch.int32} if dtype == torch.int8 else {}
    if dtype == torch.int32:
        more = {"scale": torch.zeros(1, 32).long(), "output_dtype": torch.float16}
    with pytest.raises(OperatorRejected, match=rf"weight\[0\] was of shape .* in FRACTAL_NZ; allowed: {wanted}"):
        grouped(x, weight, [2], **more)
    with gmm.changed(gmm_unaligned_tiles="padded"):
        assert grouped(x, weight, [2], **more).shape[0] == 2
