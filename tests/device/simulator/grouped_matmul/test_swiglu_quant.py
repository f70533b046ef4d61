"""``npu_grouped_matmul_swiglu_quant`` in both versions: values in float64, the rounding chain, and what is refused."""

import math

import pytest
import torch

from npudiff.device.simulator import DeviceFault, NotSimulated, OperatorRejected

V1, V2 = "npu_grouped_matmul_swiglu_quant", "npu_grouped_matmul_swiglu_quant_v2"
FP32 = torch.float32


def exact(x, weight, scale, x_scale):
    """Return what is quantised, of one expert, in float64."""
    values = x.double() @ weight.double() * x_scale.double()[:, None] * scale.double()
    first, second = values.chunk(2, -1)
    return first * torch.sigmoid(first) * second


def int8_call(gmm, dtype=FP32, rows=6, columns=16):
    return {
        "x": gmm.integers(rows, 32),
        "weight": gmm.integers(3, 32, columns, seed=1),
        "weight_scale": (gmm.integers(3, columns, low=1, high=40, seed=2) / 4096).to(dtype),
        "x_scale": gmm.integers(rows, low=1, high=9, seed=3).float() / 64,
        "group_list": torch.tensor([2, 2, 5]),
    }


def run(call, version=V1, **more):
    if version == V1:
        return torch.ops.npu.npu_grouped_matmul_swiglu_quant(**call, **more)[:2]
    lists = {name: [call[name]] for name in ("weight", "weight_scale")}
    return torch.ops.npu.npu_grouped_matmul_swiglu_quant_v2(**call | lists, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("version", [V1, V2])
def test_values(gmm, version, dtype):
    call = int8_call(gmm, dtype)
    output, scale = run(call, version)
    assert (output.dtype, output.shape, scale.dtype, scale.shape) == (torch.int8, (6, 8), torch.float32, (6,))
    for start, stop, expert in ((0, 2, 0), (2, 5, 2)):
        rows = slice(start, stop)
        values = exact(call["x"][rows], call["weight"][expert], call["weight_scale"][expert], call["x_scale"][rows])
        largest = values.abs().amax(-1)
        assert ((scale[rows] - largest / 127).abs() <= 1e-5 * largest / 127).all()
        # To float16 and to int8: half a unit, and what float16 loses of 127.
        assert ((output[rows] - values / scale[rows, None]).abs() <= 0.5 + 0.04).all()
        assert (output[rows].abs().amax(-1) == 127).all()
    # Row 5 belongs to nobody.
    assert (output[5] == 0x5A).all()
    assert scale[5:].view(torch.int32).tolist() == [0x5A5A5A5A]


def test_by_hand():
    # The first half is 8 * 0.5 = 4 and 0, the second 2 * 0.5 = 1 and 3: silu(4) * 1, silu(0) * 3.
    call = {
        "x": torch.tensor([[1, 1]], dtype=torch.int8),
        "weight": torch.tensor([[[8, 0, 1, 2], [0, 0, 1, 4]]], dtype=torch.int8),
        "weight_scale": torch.full((1, 4), 0.25),
        "x_scale": torch.tensor([2.0]),
        "group_list": torch.tensor([1]),
    }
    output, scale = run(call)
    assert output.tolist() == [[127, 0]]
    silu = 4 / (1 + torch.tensor(-4.0).double().exp().item())
    assert scale.item() == pytest.approx(silu / 127)


def test_the_third_output_is_a_scalar(gmm):
    offset = torch.ops.npu.npu_grouped_matmul_swiglu_quant(**int8_call(gmm))[2]
    assert (offset.shape, offset.dtype) == ((), torch.float32)


def test_a_row_of_zeros(gmm):
    call = int8_call(gmm)
    call["x"][1] = 0
    output, scale = run(call)
    assert output[1].tolist() == [0] * 8
    assert scale[1].item() == 0


def test_the_chain_of_int8():
    from npudiff.device.simulator.grouped_matmul.swiglu_quant import _quantised

    # Beside 127 the scale is 1. 2.5 goes to the even 2; 2.5 + 2**-12 is 2.5 in float16; 3.5 + 2**-12 goes to 4 in any
    # case, and 100.5 + 2**-7, whose unit is 2**-4, is 100.5 in float16 and goes to 100.
    values = torch.tensor([[127, 2.5, 2.5 + 2**-12, 3.5, 100.5 + 2**-7, -100.5 - 2**-7, -2.5]])
    output, scale = _quantised(values)
    assert scale.tolist() == [1]
    assert output.tolist() == [[127, 2, 2, 4, 100, -100, -2]]


def test_counts_and_ends(gmm):
    call = int8_call(gmm)
    ends = run(call, V2)
    counts = run(call | {"group_list": torch.tensor([2, 0, 3])}, V2, group_list_type=1)
    assert torch.equal(ends[0], counts[0])
    assert torch.equal(ends[1].view(torch.int32), counts[1].view(torch.int32))
    with pytest.raises(DeviceFault, match="groups of group_list have 9 rows, there are 6"):
        run(call, V2, group_list_type=1)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("version", [V1, V2])
def test_int4(gmm, version, groups):
    weight = gmm.integers(2, 512, 16, low=-8, high=7)
    scale = 2.0 ** gmm.integers(2, groups, 16, low=-9, high=-6, seed=1).float()
    spread = scale.repeat_interleave(512 // groups, 1)
    assist = 8 * (weight.float() * spread).sum(1)
    call = {
        "x": gmm.integers(5, 512, seed=2),
        "weight": gmm.pack(weight),
        "weight_scale": gmm.bits(scale),
        "x_scale": torch.full((5,), 0.125),
        "group_list": torch.tensor([2, 5]),
    }
    more = {"bias": assist} if version == V1 else {"weight_assist_matrix": [assist], "dequant_mode": 1}
    output, by_row = run(call, version, **more)
    if groups == 1:
        flat = call | {"weight_scale": call["weight_scale"].squeeze(1)}
        assert torch.equal(run(flat, version, **more | ({} if version == V1 else {"dequant_mode": 0}))[0], output)
    for start, stop, expert in ((0, 2, 0), (2, 5, 1)):
        rows = slice(start, stop)
        values = exact(call["x"][rows], weight[expert] * spread[expert].double(), torch.ones(16), call["x_scale"][rows])
        largest = values.abs().amax(-1)
        # float16 sums of groups are off by 2**-11 of partial sums.
        slack = 1e-5 if groups == 1 else 2e-2
        assert ((by_row[rows] * 127 - largest).abs() <= slack * largest).all()
        assert ((output[rows] - values / by_row[rows, None]).abs() <= 0.54 + 127 * slack).all()
    name = "bias" if version == V1 else "weight_assist_matrix"
    with pytest.raises(OperatorRejected, match=rf"{name} was None; allowed: float32 \[E, N\]"):
        run(call, version)


def int4_rows_call(gmm, rows=5, inner=64, columns=16):
    x, weight = gmm.integers(rows, inner, low=-8, high=7), gmm.integers(2, inner, columns, low=-8, high=7, seed=1)
    call = {
        "x": gmm.pack(x),
        "weight": gmm.pack(weight),
        # Powers of two, so that float16 has the products.
        "weight_scale": gmm.bits(2.0 ** gmm.integers(2, columns, low=-3, high=-1, seed=2).float()),
        "x_scale": gmm.integers(rows, low=1, high=9, seed=3).float() / 64,
        "group_list": torch.tensor([2, 5]),
    }
    return call, x, weight


@pytest.mark.parametrize("smooth", [None, "rows", "experts"])
def test_int4_rows(gmm, smooth):
    call, x, weight = int4_rows_call(gmm)
    scale = torch.stack([s.view(torch.int32)[::2].view(torch.float32) for s in call["weight_scale"]])
    factors = {"rows": gmm.integers(2, 8, low=1, high=9, seed=4).float() / 4, "experts": torch.tensor([0.5, 3.0])}
    more = {} if smooth is None else {"smooth_scale": factors[smooth]}
    output, by_row = run(call, V2, **more)
    assert (output.shape, by_row.shape) == ((5, 8), (5,))
    for start, stop, expert in ((0, 2, 0), (2, 5, 1)):
        rows = slice(start, stop)
        values = exact(x[rows], weight[expert], scale[expert], call["x_scale"][rows])
        values = values if smooth is None else values * factors[smooth][expert].double()
        largest = values.abs().amax(-1)
        assert ((by_row[rows] * 127 - largest).abs() <= 1e-5 * largest).all()
        assert ((output[rows] - values / by_row[rows, None]).abs() <= 0.54).all()
        assert (output[rows].abs().amax(-1) == 127).all()


def test_int4_rows_store_products_as_float16(gmm):
    # 7 * 7 * 43 is 2107, which float16 has as 2108.
    x, weight = torch.zeros(1, 64), torch.zeros(1, 64, 8)
    x[0, :43], weight[0, :43, 4:] = 7, 7
    x[0, 63], weight[0, 63, :4] = 1, 1
    call = {
        "x": gmm.pack(x),
        "weight": gmm.pack(weight),
        "weight_scale": gmm.bits(torch.ones(1, 8)),
        "x_scale": torch.ones(1),
        "group_list": torch.tensor([1]),
    }
    silu = 1 / (1 + math.exp(-1))
    assert run(call, V2)[1].item() == pytest.approx(2108 * silu / 127, rel=1e-6)
    with gmm.changed(gmm_swiglu_a4w4_products="float32"):
        assert run(call, V2)[1].item() == pytest.approx(2107 * silu / 127, rel=1e-6)


def test_scales_of_int4_rows(gmm):
    call, _, _ = int4_rows_call(gmm)
    floats = call | {"weight_scale": call["weight_scale"].view(torch.int32)[:, ::2].contiguous().view(torch.float32)}
    assert torch.equal(run(floats, V2)[0], run(call, V2)[0])
    with (
        gmm.changed(gmm_swiglu_a4w4_scales="bits"),
        pytest.raises(OperatorRejected, match="weight_scale was float32; allowed: int64 or uint64"),
    ):
        run(floats, V2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"weight": torch.zeros(2, 64, 16, dtype=torch.int8)}, "weight was int8; allowed: int32"),
        ({"weight_scale": torch.zeros(2, 2, 16).long()}, r"weight_scale was of shape \[2, 2, 16\]; allowed: \[2, 16\]"),
        ({"dequant_mode": 1}, "dequant_mode was 1; allowed: 0"),
        ({"weight_assist_matrix": [torch.zeros(2, 16)]}, "weight_assist_matrix was a tensor; allowed: None"),
        ({"smooth_scale": torch.zeros(2, 16)}, r"smooth_scale was of shape \[2, 16\]; allowed: \[2, 8\] or \[2\]"),
        ({"smooth_scale": torch.zeros(2, 8).half()}, "smooth_scale was float16; allowed: float32"),
    ],
)
def test_rejections_of_int4_rows(gmm, other, message):
    with pytest.raises(OperatorRejected, match=message):
        run(int4_rows_call(gmm)[0] | other, V2)


def test_version_1_has_no_int4_rows(gmm):
    with pytest.raises(OperatorRejected, match="x was int32; allowed: int8"):
        run(int4_rows_call(gmm)[0])


@pytest.mark.parametrize(
    ("scale", "mode", "message"),
    [
        ((2, 16), 1, "weight_scale was of rank 2"),
        ((2, 1, 16), 0, "weight_scale was of rank 3"),
        ((2, 3, 16), 1, "weight_scale was of 3 groups; allowed: a divisor of the inner axis, 64"),
        ((2, 0, 16), 1, "weight_scale was of 0 groups"),
        ((1, 2, 16), 1, r"weight_scale was of shape \[1, 2, 16\]; allowed: \[2, 2, 16\]"),
    ],
)
def test_the_mode_says_whether_scales_have_groups(gmm, scale, mode, message):
    call = int4_rows_call(gmm)[0] | {"x": gmm.integers(5, 64), "weight_scale": torch.zeros(scale).long()}
    with pytest.raises(OperatorRejected, match=message):
        run(call, V2, dequant_mode=mode, weight_assist_matrix=[torch.zeros(2, 16)])


def tiles(weight, width):
    """Permute [E, K, N] into tiles, by the documentation's formula."""
    experts, inner, columns = weight.shape
    split = weight.reshape(experts, inner // 16, 16, columns // width, width)
    return split.permute(0, 3, 1, 2, 4).contiguous()


def tiled_call(gmm, kind):
    """Return a call with matrices, the weight's tiles as one would permute them, and a cast weight's view as tiles."""
    if kind == "int8":
        call = int8_call(gmm, columns=64)
        cast = torch.ops.npu.npu_format_cast(call["weight"], 29)
        return call, {}, tiles(call["weight"], 32), cast.view(3, 2, 2, 16, 32)
    call, _, weight = int4_rows_call(gmm, columns=128)
    more = {"smooth_scale": torch.tensor([0.5, 2.0])}
    if kind == "int8 by int4":
        call["x"], more = gmm.integers(5, 64), {"weight_assist_matrix": [torch.ones(2, 128)]}
    by_hand = gmm.pack(tiles(weight, 64))
    pairs = gmm.pack(weight).view(torch.int8)
    cast = torch.ops.npu.npu_format_cast(pairs, 29).view(torch.int32)
    return call, more, by_hand, cast.view(2, 2, 4, 16, 8)


@pytest.mark.parametrize("kind", ["int8", "int8 by int4", "int4"])
def test_weights_in_five_axes(gmm, kind):
    call, more, by_hand, cast = tiled_call(gmm, kind)
    plain = run(call, V2, **more)
    for weight in (by_hand, cast):
        for profile in ("any", "fractal_nz"):
            with gmm.changed(gmm_swiglu_weight_format=profile):
                found = run(call | {"weight": weight}, V2, **more)
            assert torch.equal(found[0], plain[0])
            assert torch.equal(found[1].view(torch.int32), plain[1].view(torch.int32))


@pytest.mark.parametrize("kind", ["int8", "int8 by int4", "int4"])
def test_some_experts_of_weights_in_five_axes(gmm, kind):
    call, more, by_hand, cast = tiled_call(gmm, kind)
    call |= {"weight_scale": call["weight_scale"][1:2], "group_list": torch.tensor([5])}
    more = {name: [value[0][1:2]] if isinstance(value, list) else value[1:2] for name, value in more.items()}
    plain = run(call | {"weight": call["weight"][1:2]}, V2, **more)[0]
    for weight in (by_hand, cast):
        assert torch.equal(run(call | {"weight": weight[1:2]}, V2, **more)[0], plain)


def test_version_1_takes_five_axes(gmm):
    call, _, by_hand, cast = tiled_call(gmm, "int8")
    assert torch.equal(run(call | {"weight": by_hand})[0], run(call)[0])
    assert torch.equal(run(call | {"weight": cast})[0], run(call)[0])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 2, 2, 32, 16), r"weight was of shape \[3, 2, 2, 32, 16\]; allowed: \[any, any, any, 16, 32\]"),
        ((3, 1, 4, 16, 32), r"weight was of shape \[3, 64, 32\]; allowed: \[3, 32, 64\]"),
    ],
)
def test_five_axes_that_are_no_tiles_of_the_weight(gmm, shape, message):
    call, _, by_hand, _ = tiled_call(gmm, "int8")
    with pytest.raises(OperatorRejected, match=message):
        run(call | {"weight": by_hand.view(shape)})


def test_tiles_have_no_gaps(gmm):
    call, _, by_hand, _ = tiled_call(gmm, "int8")
    wide = torch.zeros(3, 2, 2, 16, 64, dtype=torch.int8)
    wide[..., :32] = by_hand
    with pytest.raises(NotSimulated, match="weight was not contiguous"):
        run(call | {"weight": wide[..., :32]})


def test_int4_has_a_shorter_inner_axis(gmm):
    call = int8_call(gmm) | {
        "x": torch.zeros(6, 20000, dtype=torch.int8),
        "weight": torch.zeros(3, 20000, 2, dtype=torch.int32),
        "weight_scale": torch.zeros(3, 1, 16).long(),
    }
    with pytest.raises(OperatorRejected, match="x was of last axis 20000; allowed: at most 19999"):
        run(call, bias=torch.zeros(3, 16))


def test_the_format_of_the_weight(gmm):
    call = int8_call(gmm)
    plain = run(call)
    fractal = call | {"weight": torch.ops.npu.npu_format_cast(call["weight"], 29)}
    assert torch.equal(run(fractal)[0], plain[0])
    with gmm.changed(gmm_swiglu_weight_format="fractal_nz"):
        assert torch.equal(run(fractal)[0], plain[0])
        with pytest.raises(OperatorRejected, match="weight was in format ND; allowed: FRACTAL_NZ"):
            run(call)


REJECTIONS = [
    ({"x": torch.zeros(6, 32)}, "x was float32; allowed: int8"),
    ({"x": torch.zeros(6, 31, dtype=torch.int8)}, r"weight was of shape \[3, 32, 16\]; allowed: \[3, 31, 16\]"),
    ({"weight": torch.zeros(3, 32, 16)}, "weight was float32; allowed: int8 or int32"),
    ({"weight_scale": torch.zeros(3, 15)}, r"weight was of shape \[3, 32, 16\]; allowed: \[3, 32, 15\]"),
    ({"weight_scale": torch.zeros(2, 16)}, r"weight_scale was of shape \[2, 16\]; allowed: \[3, 16\]"),
    ({"weight_scale": torch.zeros(3, 16).long()}, "weight_scale was int64; allowed: float16 or"),
    ({"x_scale": torch.zeros(6, 1)}, r"x_scale was of shape \[6, 1\]; allowed: \[6\]"),
    ({"x_scale": torch.zeros(6).half()}, "x_scale was float16"),
    ({"group_list": torch.zeros(3).int()}, "group_list was int32; allowed: int64"),
    ({"group_list": torch.zeros(2).long()}, r"group_list was of shape \[2\]; allowed: \[3\]"),
    (
        {"weight": torch.zeros(3, 32, 15, dtype=torch.int8), "weight_scale": torch.zeros(3, 15)},
        "weight_scale was of last axis 15; allowed: an even number up to 10240",
    ),
    (
        {"weight": torch.zeros(3, 32, 10242, dtype=torch.int8), "weight_scale": torch.zeros(3, 10242)},
        "weight_scale was of last axis 10242",
    ),
    (
        {"x": torch.zeros(6, 65536, dtype=torch.int8), "weight": torch.zeros(3, 65536, 16, dtype=torch.int8)},
        "x was of last axis 65536; allowed: at most 65535",
    ),
]


@pytest.mark.parametrize("version", [V1, V2])
@pytest.mark.parametrize(("other", "message"), REJECTIONS)
def test_rejections(gmm, version, other, message):
    with pytest.raises(OperatorRejected, match=message):
        run(int8_call(gmm) | other, version)


def test_rejections_of_version_1(gmm):
    with pytest.raises(OperatorRejected, match="offset was a tensor; allowed: None"):
        run(int8_call(gmm), offset=torch.zeros(1))
    with pytest.raises(OperatorRejected, match="bias was a tensor; allowed: None, with weight of int8"):
        run(int8_call(gmm), bias=torch.zeros(3, 16))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dequant_mode": 1}, "dequant_mode was 1; allowed: 0"),
        ({"dequant_mode": 2}, "dequant_mode was 2; allowed: 0 or 1"),
        ({"smooth_scale": torch.ones(3, 8)}, "smooth_scale was a tensor; allowed: None, with x of int8"),
        ({"quant_mode": 1}, "quant_mode was 1; allowed: 0"),
        ({"dequant_dtype": 5}, "dequant_dtype was 5; allowed: 6 or 0"),
        ({"quant_dtype": 291}, "quant_dtype was 291; allowed: 1 or 0"),
        ({"group_list_type": 2}, "group_list_type was 2; allowed: 0 or 1"),
        ({"x_dtype": 290}, "x_dtype was 290; allowed: None"),
        (
            {"weight_assist_matrix": [torch.zeros(3, 16)]},
            "weight_assist_matrix was a tensor; allowed: None, with weight",
        ),
        (
            {"weight_assist_matrix": [torch.zeros(3, 16)] * 2},
            "weight_assist_matrix was of 2 tensors; allowed: at most 1",
        ),
    ],
)
def test_rejections_of_version_2(gmm, more, message):
    with pytest.raises(OperatorRejected, match=message):
        run(int8_call(gmm), V2, **more)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"weight": []}, "weight was of 0 tensors; allowed: 1 tensor"),
        ({"weight_scale": [torch.zeros(3, 16)] * 2}, "weight_scale was of 2 tensors"),
        ({"x": torch.zeros(32, dtype=torch.int8)}, "x was of rank 1"),
        ({"weight": [torch.zeros(32, 16)]}, "weight was of rank 2"),
        ({"weight_scale": [torch.zeros(16)]}, "weight_scale was of rank 1"),
    ],
)
def test_the_host_refuses_of_version_2(gmm, other, message):
    call = int8_call(gmm)
    call = call | {name: [call[name]] for name in ("weight", "weight_scale")} | other
    with pytest.raises(OperatorRejected, match=message):
        torch.ops.npu.npu_grouped_matmul_swiglu_quant_v2(**call)


def test_dtypes_of_the_schema(gmm):
    call = int8_call(gmm)
    assert torch.equal(run(call, V2, dequant_dtype=0, quant_dtype=0)[0], run(call, V2)[0])
    with (
        gmm.changed(gmm_swiglu_dtypes="schema"),
        pytest.raises(OperatorRejected, match="quant_dtype was 0; allowed: 1"),
    ):
        run(call, V2, quant_dtype=0)


def test_not_simulated(gmm):
    with pytest.raises(NotSimulated, match="bias was a tensor"):
        run(int8_call(gmm), V2, bias=torch.zeros(3, 8))
