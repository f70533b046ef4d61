"""``npu_dynamic_mx_quant``: exponents and numbers of each block by Python's arithmetic, layouts, corners, refusals."""

import math

import pytest
import torch

from npudiff.device.simulator import OperatorRejected

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
UP, BY_MANTISSA = {"scale_alg": 1}, {"scale_alg": 2}


def quant(x, **more):
    return torch.ops.npu.npu_dynamic_mx_quant(x, **more)


def draw(*shape, dtype, seed=0, scale=1.0):
    spread = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    size = torch.randn(*shape[:-1], 1, generator=torch.Generator().manual_seed(seed + 1))
    return (spread * (3 * size).exp2() * scale).to(dtype)


def byte_of(largest, ocp, name, alg=0, maximum=0.0):
    """The documented exponent of a block, with the bias 127, of a positive magnitude that is no corner."""
    high, top = ocp.formats[name][2:4]
    down = ocp.exponent(largest) - high
    if alg == 0:
        return down + 127
    if alg == 1 or maximum not in (0.0, 6.0, 7.0):
        top = maximum or top
        ratio = float(torch.tensor(largest) * torch.tensor(1 / top))  # a product of float32, as in the kernel
        return ocp.exponent(ratio) + 127 + (math.frexp(ratio)[0] != 0.5)
    return down + 127 + (math.frexp(largest)[0] * 2 > (1.75 if maximum == 7.0 else 1.5))


def golden(rows, ocp, name, mode="rint", size=32, alg=0, maximum=0.0):
    """Quantise the last axis of a list of rows: exponents and numbers."""
    exponents, numbers = [], []
    for row in rows:
        blocks = [row[start : start + size] for start in range(0, len(row), size)]
        exponents.append([byte_of(max(map(abs, block)), ocp, name, alg, maximum) for block in blocks])
        numbers.append([
            ocp.nearest(value * 2.0 ** (127 - byte), name, mode)
            for block, byte in zip(blocks, exponents[-1], strict=True)
            for value in block
        ])  # fmt: skip
    return torch.tensor(exponents), torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.few(16)
@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1", "e1m2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [32, 64, 70, 130])
def test_rounded_down(ocp, name, dtype, width):
    x = draw(12, width, dtype=dtype)
    y, scale = quant(x, dst_type=ocp.formats[name][4])
    exponents, numbers = golden(x.tolist(), ocp, name)
    count = exponents.shape[1]
    assert (scale.dtype, scale.shape) == (torch.uint8, (12, (count + 1) // 2, 2))
    flat = scale.flatten(1)
    assert torch.equal(flat[:, :count].long(), exponents)
    assert (flat[:, count:] == 0).all()
    assert y.dtype == ocp.formats[name][5]
    assert torch.equal(ocp.unpack(y, name), numbers)


@pytest.mark.parametrize("name", ["e2m1", "e1m2"])
@pytest.mark.parametrize("mode", ["rint", "round", "floor"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_float4_has_three_ways_of_rounding(ocp, name, mode, dtype):
    # On a grid of eighths, many numbers are in the middle of two.
    x = (draw(8, 64, dtype=torch.float32) * 8).round().div(8).to(dtype)
    y, _ = quant(x, dst_type=ocp.formats[name][4], round_mode=mode)
    assert torch.equal(ocp.unpack(y, name), golden(x.tolist(), ocp, name, mode)[1])


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_up(ocp, name, dtype):
    x = draw(40, 64, dtype=dtype)
    y, scale = quant(x, dst_type=ocp.formats[name][4], **UP)
    exponents, numbers = golden(x.tolist(), ocp, name, alg=1)
    assert torch.equal(scale.flatten(1).long(), exponents)
    assert torch.equal(y.double(), numbers)
    down = quant(x, dst_type=ocp.formats[name][4])[1]
    assert {0, 1} == set((scale.int() - down.int()).flatten().tolist())


@pytest.mark.parametrize("maximum", [0.0, 6.0, 7.0, 6.5, 8.0, 12.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_by_the_mantissa_of_the_largest(ocp, maximum, dtype):
    x = draw(60, 32, dtype=torch.bfloat16).to(dtype)  # so that nothing is lost on the way to bfloat16
    y, scale = quant(x, dst_type_max=maximum, **BY_MANTISSA)
    exponents, numbers = golden(x.tolist(), ocp, "e2m1", alg=2, maximum=maximum)
    assert torch.equal(scale.flatten(1)[:, :1].long(), exponents)
    assert torch.equal(ocp.unpack(y, "e2m1"), numbers)


def test_the_mantissa_is_looked_at_in_bfloat16():
    """1.5 + 2^-10 is above 1.5 in float16. bfloat16 has 1.5 for it, and float32 is cut to bfloat16, not rounded."""
    x = torch.zeros(3, 32)
    x[0, 0], x[1, 0], x[2, 0] = 1.5 + 2.0**-10, 1.5 + 2.0**-7, 1.5 + 2.0**-7 - 2.0**-20
    assert quant(x.half()[:2], **BY_MANTISSA)[1][:, 0, 0].tolist() == [125, 126]
    assert quant(x, **BY_MANTISSA)[1][:, 0, 0].tolist() == [125, 126, 125]
    assert quant(x.bfloat16()[2:], **BY_MANTISSA)[1][0, 0, 0].item() == 126


def test_the_low_bound_is_what_the_largest_is_at_least():
    x = torch.zeros(3, 32, dtype=torch.bfloat16)
    x[0, 0], x[1, 0] = 1.0, 2.0**10
    scale = quant(x, dst_type=292, max_low_bound=448.0, **UP)[1]
    assert scale[:, 0, 0].tolist() == [127, 129, 0]  # 2^10 / 448 is 2.3; zeros stay zeros


def test_448_is_divided_by_1_and_the_next_number_by_2():
    x = torch.zeros(2, 32)
    x[0, 0], x[1, 0] = 448.0, torch.tensor(448.0).nextafter(torch.tensor(500.0))
    y, scale = quant(x, dst_type=292, **UP)
    assert scale[:, 0, 0].tolist() == [127, 128]
    assert y.float()[:, 0].tolist() == [448, 224]


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
@pytest.mark.parametrize("name", ["e4m3", "e2m1"])
def test_any_axis_is_cut(ocp, axis, name):
    x = draw(70, 96, 66, dtype=torch.bfloat16)
    y, scale = quant(x, axis=axis, dst_type=ocp.formats[name][4])
    moved, moved_scale = quant(x.movedim(axis, -1).contiguous(), dst_type=ocp.formats[name][4])
    assert torch.equal(ocp.unpack(y, name), ocp.unpack(moved, name).movedim(-1, axis))
    expected = list(x.shape)
    expected[axis] = (math.ceil(expected[axis] / 32) + 1) // 2
    assert list(scale.shape) == [*expected, 2]
    assert torch.equal(scale.movedim(axis % 3, -2), moved_scale)


@pytest.mark.parametrize("size", [32, 64, 96, 1024])
def test_blocks_of_any_size(ocp, size):
    x = draw(3, 200, dtype=torch.bfloat16)
    y, scale = quant(x, dst_type=292, block_size=size)
    exponents, numbers = golden(x.tolist(), ocp, "e4m3", size=size)
    assert torch.equal(scale.flatten(1)[:, : exponents.shape[1]].long(), exponents)
    assert torch.equal(y.double(), numbers)


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1", "e1m2"])
def test_blocks_of_zeros_and_of_what_is_as_small_are_zero(ocp, name):
    high = ocp.formats[name][2]
    x = torch.zeros(4, 32, dtype=torch.float32)
    x[0, 1], x[1, 0], x[2, 0], x[3, 0] = -0.0, 2.0**-127, -(2.0 ** (high - 127)), 2.0 ** (high - 126)
    y, scale = quant(x, dst_type=ocp.formats[name][4])
    assert scale[:, 0, 0].tolist() == [0, 0, 0, 1]
    numbers = ocp.unpack(y, name)
    assert (numbers[:3] == 0).all()
    assert numbers[3, 0] == 2.0**high
    assert math.copysign(1, numbers[2, 0]) == math.copysign(1, numbers[0, 1]) == -1


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("more", [{}, UP])
def test_infinity_and_nan_spoil_their_block(bad, more):
    x = torch.ones(1, 64, dtype=torch.float16)
    x[0, 40] = bad
    y, scale = quant(x, dst_type=292, **more)
    assert scale[0, 0].tolist() == [127 - (0 if more else 8) - (8 if more else 0), 255]
    assert y[0, 32:].float().isnan().all()
    assert torch.equal(y[0, :32].float(), torch.full((32,), 256.0))


@pytest.mark.parametrize(("part", "byte"), [(0.375, 0), (0.5, 0), (0.75, 1), (1.0, 1), (1.25, 2)])
def test_rounded_up_to_the_least_normal_number(part, byte):
    x = torch.full((1, 32), 448 * part * 2.0**-126)
    assert quant(x, dst_type=292, **UP)[1][0, 0, 0] == byte


def test_the_largest_exponent_has_a_subnormal_factor():
    x = torch.full((1, 32), 1.75 * 2.0**127)
    y, scale = quant(x, dst_type=297)
    assert scale[0, 0].tolist() == [254, 0]
    assert (y == 0x77).all()


def test_numbers_of_torch_and_of_torch_npu_name_the_same_formats():
    x = draw(2, 64, dtype=torch.bfloat16)
    for own, torchs in ((291, torch.float8_e5m2), (292, torch.float8_e4m3fn)):
        for one, other in zip(quant(x, dst_type=own), quant(x, dst_type=torchs), strict=True):
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    assert torch.equal(quant(x)[0], quant(x, dst_type=296)[0])


X = torch.ones(2, 64).half()


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (X, {"axis": 2}, r"axis was 2; .*ERR01003.: Param \(axis\) is out of input dimension range"),
        (
            X,
            {"block_size": 48},
            r"block_size was 48; .*: Param \(block_size\) must be divisible by 32 and no greater than",
        ),
        (X, {"block_size": 0}, "block_size was 0; .*greater than 0"),
        (X, {"block_size": 1056}, "block_size was 1056"),
        (
            X[:, :63],
            {},
            "input was of shape .*: The last dim input shape must be divisible by 2 if output dtype is torch",
        ),
        (X.int(), {}, "input was int32; allowed: float16 or bfloat16 or float32"),
        (X.view(2, 1, 1, 1, 1, 1, 1, 64), {}, "input was of rank 8"),
        (X, {"dst_type": 1}, "dst_type was 1; allowed: 23 .*292 "),
        (X, {"dst_type": 292, "round_mode": "floor"}, "round_mode was 'floor'; allowed: 'rint'"),
        (X, {"round_mode": "trunc"}, "round_mode was 'trunc'; allowed: 'rint' or 'round' or 'floor'"),
        (X, {"scale_alg": 1}, "scale_alg was 1; allowed: 0 or 2"),
        (X, {"scale_alg": 2, "dst_type": 297}, "scale_alg was 2; allowed: 0"),
        (X, {"scale_alg": 2, "dst_type": 292}, "scale_alg was 2; allowed: 0 or 1"),
        (X, {"scale_alg": 2, "block_size": 64}, "block_size was 64; allowed: 32 with scale_alg 2"),
        (X, {"dst_type_max": 6.0}, "dst_type_max was 6.0; allowed: 0, or 6 to 12 with scale_alg 2"),
        (X, {"dst_type_max": 5.0, "scale_alg": 2}, "dst_type_max was 5.0"),
        (X, {"max_low_bound": 1.0}, "max_low_bound was 1.0; allowed: 0, or more with scale_alg 1"),
        (X, {"max_low_bound": -1.0, "scale_alg": 1, "dst_type": 292}, "max_low_bound was -1.0"),
        (X.float(), {"block_size": 64}, "input was float32 .* with block_size 64; allowed: block_size 32"),
        (X.float()[:, :16], {}, "input was float32 of shape .*; allowed: block_size 32 and an axis of 32 or more"),
    ],
)
def test_rejections(x, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_dynamic_mx_quant: {message}"):
        quant(x, **more)
