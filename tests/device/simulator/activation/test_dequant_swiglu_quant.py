"""``npu_dequant_swiglu_quant``: scales and biases, gates, both quantisations, groups, and what it refuses."""

import dataclasses
import math

import pytest
import torch

from npudiff.device.simulator import PROFILES, NotSimulated, OperatorRejected, UndefinedBehaviour, use_profile
from npudiff.device.simulator.errors import DeviceFault
from npudiff.device.simulator.norms.unwritten import unwritten

NEARLY_A_127TH = torch.tensor(1 / 127, dtype=torch.float32)


def op(x, **more):
    return torch.ops.npu.npu_dequant_swiglu_quant(x, **more)


def dynamic(x, **more):
    return op(x, quant_mode=1, **more)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(*shape, seed=0):
    return torch.randint(-3000, 3000, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int32)


def f32(*values):
    return torch.tensor(values, dtype=torch.float32)


def swish(gate, up):
    return gate / (1 + math.exp(-gate)) * up


def clipped(gate, up, limit=7.0, alpha=1.702, bias=1.0):
    gate, up = min(gate, limit), max(-limit, min(up, limit))
    return gate / (1 + math.exp(-alpha * gate)) * (up + bias)


def decoded(y, scale):
    return (y.double() * scale.double().unsqueeze(-1)).tolist()


def near(values, step):
    """What integers of this step may stand for."""
    return [pytest.approx(row, abs=step * 0.51) for row in values]


ROW = [1.0, -2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [swish(3, 1), swish(4, -2)]),
        ({"activate_left": True}, [swish(1, 3), swish(-2, 4)]),
        ({"swiglu_mode": 1}, [clipped(1, -2), clipped(3, 4)]),
        ({"swiglu_mode": 1, "activate_left": True}, [clipped(1, -2), clipped(3, 4)]),
        ({"swiglu_mode": 2}, [clipped(3, 1), clipped(4, -2)]),
        ({"swiglu_mode": 2, "activate_left": True}, [clipped(1, 3), clipped(-2, 4)]),
        (
            {"swiglu_mode": 1, "clamp_limit": 2.5, "glu_alpha": 0.5, "glu_bias": -1.0},
            [clipped(1, -2, 2.5, 0.5, -1.0), clipped(3, 4, 2.5, 0.5, -1.0)],
        ),
        ({"clamp_limit": 0.5, "glu_alpha": 9.0, "glu_bias": 5.0}, [swish(3, 1), swish(4, -2)]),
    ],
)
def test_gates(more, expected):
    y, scale = dynamic(torch.tensor([ROW], dtype=torch.bfloat16), **more)
    assert scale.item() == pytest.approx(max(map(abs, expected)) / 127, rel=1e-6)
    assert decoded(y, scale) == near([expected], scale.item())


def test_the_scale_is_the_maximum_times_a_rounded_127th():
    """silu(0) = 0, and silu of a large gate is the gate: maxima that are exact."""
    x = torch.tensor([[64.0, 0.0, 9.0, 1.0], [64.0, 64.0, 77.0, -1.0]], dtype=torch.bfloat16)
    y, scale = dynamic(x, activate_left=True)
    maxima = f32(64 * 9, 64 * 77)
    assert torch.equal(scale, maxima * NEARLY_A_127TH)
    assert not torch.equal(scale, maxima / 127)
    assert y.tolist() == [[127, 0], [127, -2]]


def test_integers_are_scaled_by_both_scales_in_order():
    """Exact powers of two; in each row the gate is far above 0, so that silu is the identity."""
    x = torch.tensor([[100, 200, 1, -2], [400, 100, 2, 4]], dtype=torch.int32)
    y, scale = dynamic(
        x,
        weight_scale=f32([1, 0.5, 2, 4]),
        activation_scale=f32(1, 0.5),
        activate_left=True,
    )
    assert decoded(y, scale) == near([[200, -800], [400, 200]], scale.max().item() * 2)
    # Row 0: gates 100, 100; ups 2, -8. Row 1: gates 200, 25; ups 2, 8.
    assert y.tolist() == [[32, -127], [127, 64]]
    assert scale.tolist() == (f32(800, 400) * NEARLY_A_127TH).tolist()


def test_integer_biases_come_before_the_scales_and_floats_after():
    x = torch.tensor([[100, 100, 10, 10]], dtype=torch.int32)
    more = {"weight_scale": f32([1, 1, 0.5, 0.5]), "activation_scale": f32([0.5]), "activate_left": True}
    y, scale = dynamic(x, bias=torch.tensor([0, 0, 2, 30], dtype=torch.int32), **more)
    assert (scale.item(), y.tolist()) == (f32(500) * NEARLY_A_127TH, [[38, 127]])  # 50 * 3, 50 * 10
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        y, scale = dynamic(x, bias=f32(0, 0, 2, 30).to(dtype), **more)
        assert (scale.item(), y.tolist()) == (
            f32(1625) * NEARLY_A_127TH,
            [[18, 127]],
        )  # 50 * 4.5, 50 * 32.5


def test_an_integer_bias_is_added_exactly():
    """2^24 + 1 is no float32: x - 2^24 must be 1 and not 0 or 2."""
    x = torch.tensor([[100, 2**24 + 1]], dtype=torch.int32)
    y, scale = dynamic(
        x,
        weight_scale=f32([1, 1]),
        activation_scale=f32(1),
        bias=torch.tensor([0, -(2**24)], dtype=torch.int32),
        activate_left=True,
    )
    assert (scale.item(), y.tolist()) == (f32(100) * NEARLY_A_127TH, [[127]])


def test_a_smooth_scale_multiplies_what_is_gated():
    x = torch.tensor([[64.0, 64.0, 1.0, 1.0]], dtype=torch.bfloat16)
    for smooth, expected in ((f32([1, 0.25]), [127, 32]), (f32(0.5), [127, 127])):
        y, scale = dynamic(x, quant_scale=smooth, activate_left=True)
        assert y.tolist() == [expected]
        assert scale.item() == f32(64 * smooth.max().item()) * NEARLY_A_127TH


def grouped(dtype=torch.int32, rows=6, half=64):
    x = integers(rows, 2 * half) if dtype == torch.int32 else draw(rows, 2 * half, dtype=dtype)
    more = {"quant_scale": draw(3, half, seed=3).abs() + 0.5, "activate_left": True}
    if dtype == torch.int32:
        more |= {
            "weight_scale": draw(3, 2 * half, seed=1).abs() * 1e-3,
            "activation_scale": draw(rows, 1, seed=2).abs(),
        }
    return x, more


@pytest.mark.parametrize("dtype", [torch.int32, torch.bfloat16])
def test_groups_are_calls_of_their_own(dtype):
    x, more = grouped(dtype)
    y, scale = dynamic(x, group_index=torch.tensor([2, 0, 3]), **more)
    for group, rows in ((0, slice(0, 2)), (2, slice(2, 5))):
        own = {word: value for word, value in more.items() if word == "activate_left"}
        for word in more.keys() & {"weight_scale", "quant_scale"}:
            own[word] = more[word][group : group + 1]
        if "activation_scale" in more:
            own["activation_scale"] = more["activation_scale"][rows]
        one, one_scale = dynamic(x[rows], **own)
        assert torch.equal(y[rows], one)
        assert torch.equal(scale[rows], one_scale)
    assert torch.equal(y[5:], unwritten((1, 64), torch.int8))
    assert torch.equal(scale[5:], unwritten((1,), torch.float32))


@pytest.mark.parametrize("per_group", [False, True])
def test_static_groups_are_calls_of_their_own(per_group):
    x, more = grouped()
    columns = () if per_group else (64,)
    more |= {"quant_scale": draw(3, *columns, seed=3).abs() + 0.5, "quant_offset": draw(3, *columns, seed=4) * 9}
    y, scale = op(x, group_index=torch.tensor([2, 0, 3]), **more)
    for group, rows in ((0, slice(0, 2)), (2, slice(2, 5))):
        own = {"activate_left": True, "activation_scale": more["activation_scale"][rows]}
        for word in ("weight_scale", "quant_scale", "quant_offset"):
            own[word] = more[word][group : group + 1]
        assert torch.equal(y[rows], op(x[rows], **own)[0])
    assert torch.equal(y[5:], unwritten((1, 64), torch.int8))
    assert torch.equal(scale, unwritten((6,), torch.float32))


def test_a_weight_scale_of_one_axis():
    x, more = grouped()
    one = {"weight_scale": more["weight_scale"][0], "activation_scale": more["activation_scale"]}
    full = one | {"weight_scale": more["weight_scale"][:1]}
    assert all(map(torch.equal, dynamic(x, **one), dynamic(x, **full)))
    assert all(map(torch.equal, dynamic(x, **one, group_index=torch.tensor([6])), dynamic(x, **full)))


def test_integers_without_scales_are_numbers():
    x, ones = integers(2, 8), {"weight_scale": torch.ones(1, 8), "activation_scale": torch.ones(2)}
    full = dynamic(x, **ones)
    for missing in ("weight_scale", "activation_scale"):
        rest = {word: value for word, value in ones.items() if word != missing}
        assert all(map(torch.equal, dynamic(x, **rest), full))
    with (
        changed(dequant_swiglu_quant_row_scale="needed"),
        pytest.raises(OperatorRejected, match="activation_scale was None; allowed: a tensor where x is int32"),
    ):
        dynamic(x, weight_scale=ones["weight_scale"])


def test_scalars_per_group():
    x, more = grouped(torch.bfloat16)
    counts = torch.tensor([2, 1, 3])
    flat = dynamic(x, **(more | {"quant_scale": f32(1, 2, 4)}), group_index=counts)
    full = dynamic(x, **(more | {"quant_scale": f32(1, 2, 4)[:, None].expand(3, 64)}), group_index=counts)
    assert all(map(torch.equal, flat, full))
    assert flat[1][5] == 4 * dynamic(x, activate_left=True)[1][5]


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [([3, -1, 0], UndefinedBehaviour, "negative"), ([3, 3, 1], DeviceFault, "counts 7 rows and there are 6")],
)
def test_groups_that_are_none(counts, error, message):
    x, more = grouped()
    with pytest.raises(error, match=message):
        dynamic(x, group_index=torch.tensor(counts), **more)


@pytest.mark.parametrize(("choice", "expected"), [("zero", 0.0), ("one", 1.0)])
def test_rows_of_zeros(choice, expected):
    with changed(dequant_swiglu_quant_zero_row=choice):
        y, scale = dynamic(torch.zeros(2, 4, dtype=torch.bfloat16))
    assert (y.tolist(), scale.tolist()) == ([[0, 0]] * 2, [expected] * 2)


def static(quant_scale, quant_offset=None, row=(100.0, 100.0, 0.25, -0.75)):
    """Gated: the left times the right, for the left are large."""
    x = torch.tensor([row], dtype=torch.bfloat16)
    return op(x, quant_scale=quant_scale, quant_offset=quant_offset, activate_left=True)


@pytest.mark.parametrize(
    ("quant_scale", "quant_offset", "expected"),
    [
        (f32(2), None, [12, -38]),  # 12.5 and -37.5: to even
        (f32([2, 4]), None, [12, -19]),  # -18.75
        (f32(2), f32(1), [14, -36]),  # 13.5 and -36.5
        (f32([2, 4]), f32([0.25, -0.25]), [13, -19]),
        (f32(0), None, [25, -75]),
        (f32(0.125), None, [127, -128]),
        (f32([0, 4]), None, [127, -19]),
    ],
)
def test_static_quantisation_divides(quant_scale, quant_offset, expected):
    y, scale = static(quant_scale, quant_offset)
    assert y.tolist() == [expected]
    assert torch.equal(scale, unwritten((1,), torch.float32))
    assert static(quant_scale.bfloat16(), quant_offset)[0].tolist() == [expected]


def test_static_quantisation_may_multiply():
    with changed(dequant_swiglu_quant_static="multiplies"):
        assert static(f32(2))[0].tolist() == [[50, -128]]
        assert static(f32([2, 0.5]))[0].tolist() == [[50, -38]]


def test_shapes_and_dtypes():
    y, scale = dynamic(draw(3, 8, dtype=torch.float16))
    assert (y.shape, y.dtype, scale.shape, scale.dtype) == ((3, 4), torch.int8, (3,), torch.float32)
    y, scale = dynamic(draw(0, 8, dtype=torch.float16), dst_type=torch.int8, round_mode=0, activate_dim=1)
    assert (y.shape, scale.shape) == ((0, 4), (0,))


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_widths_with_groups_are_a_choice(mode):
    more = {"group_index": torch.tensor([1, 1]), "swiglu_mode": mode}
    x = draw(2, 192, dtype=torch.bfloat16)
    # Groups without scales of their own change nothing.
    assert torch.equal(dynamic(x, **more)[0], dynamic(x, swiglu_mode=mode)[0])
    with changed(dequant_swiglu_quant_step=64), pytest.raises(OperatorRejected, match="H a multiple of 64 up to"):
        dynamic(x, **more)


X = draw(2, 8, dtype=torch.bfloat16)
INT = integers(2, 8)
WEIGHT, ACTIVATION = torch.ones(1, 8), torch.ones(2)
COUNTS = torch.tensor([2])
WIDE = draw(2, 128, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (X[0], {}, "x was of rank 1; allowed: rank 2 or more .*ERR01003"),
        (X[:, :7], {}, r"x was of shape \[2, 7\]; allowed: an even size of axis 1 .*ERR01003"),
        (X[:, :0], {}, r"x was of shape \[2, 0\]; allowed: rows with elements"),
        (X.float(), {}, "x was float32; allowed: int32 or float16 or bfloat16"),
        (X, {"quant_mode": 2}, "quant_mode was 2; allowed: 0 or 1"),
        (X, {"swiglu_mode": 3}, "swiglu_mode was 3; allowed: 0 or 1 or 2"),
        (X, {"clamp_limit": 0.0}, "clamp_limit was 0.0; allowed: a finite number above 0"),
        (X, {"clamp_limit": math.inf}, "clamp_limit was inf"),
        (X, {"clamp_limit": math.nan}, "clamp_limit was nan"),
        (X, {"glu_alpha": math.nan}, "glu_alpha was nan; allowed: a finite number"),
        (X, {"glu_bias": math.inf}, "glu_bias was inf; allowed: a finite number"),
        (X, {"weight_scale": WEIGHT}, "weight_scale was given; allowed: None where x is float16 or bfloat16"),
        (X, {"activation_scale": ACTIVATION}, "activation_scale was given; allowed: None"),
        (X, {"bias": torch.ones(8)}, "bias was given; allowed: None where"),
        (INT, {"weight_scale": WEIGHT.half(), "activation_scale": ACTIVATION}, "weight_scale was float16; .*float32"),
        (
            INT,
            {"weight_scale": WEIGHT[0, :4], "activation_scale": ACTIVATION},
            r"weight_scale was of shape \[4\]; .*2H\]",
        ),
        (
            integers(2, 128),
            {"weight_scale": torch.ones(128), "activation_scale": ACTIVATION, "group_index": torch.tensor([1, 1])},
            r"weight_scale was of shape \[128\]; allowed: \[2, 128\]",
        ),
        (INT, {"weight_scale": WEIGHT, "activation_scale": torch.ones(3)}, r"activation_scale was of shape \[3\]"),
        (
            INT,
            {"weight_scale": WEIGHT, "activation_scale": ACTIVATION, "bias": torch.ones(4)},
            r"bias was of shape \[4\]; allowed: \[8\]",
        ),
        (X, {"quant_scale": torch.ones(4)}, r"quant_scale was of shape \[4\]; allowed: \[1, 4\] or \[1\], \[groups"),
        (X, {"quant_scale": torch.ones(1, 4).int()}, "quant_scale was int32; allowed: float16"),
        (WIDE, {"group_index": COUNTS.int()}, "group_index was int32; allowed: int64"),
        (WIDE, {"group_index": COUNTS, "bias": torch.ones(128)}, "bias was given; allowed: None with group_index"),
        (X, {"group_index": COUNTS}, r"x was of shape \[2, 8\]; allowed: .*H a multiple of 32 up to 10496"),
        (draw(1, 21120, dtype=torch.bfloat16), {"group_index": COUNTS}, r"x was of shape \[1, 21120\]; .*10496"),
    ],
)
def test_rejections(x, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_dequant_swiglu_quant: {message}"):
        op(x, **({"quant_mode": 1} | more))


def test_limits_are_checked_in_static_mode_too():
    with pytest.raises(OperatorRejected, match=r"clamp_limit was -1\.0"):
        op(X, quant_scale=f32(1), clamp_limit=-1.0)
    with pytest.raises(OperatorRejected, match=r"quant_offset was of shape \[1\]; allowed: \[1, 4\], as quant_scale"):
        op(X, quant_scale=torch.ones(1, 4), quant_offset=f32(1))


@pytest.mark.parametrize(
    ("x", "more", "argument"),
    [
        (X, {"quant_mode": 0}, "quant_scale"),
        (X, {"quant_offset": f32(1), "quant_scale": f32(1)}, "quant_offset"),
        (X, {"dst_type": 291}, "dst_type"),
        (X, {"activate_dim": 0}, "activate_dim"),
        (X, {"round_mode": 1}, "round_mode"),
        (X.view(1, 2, 8), {}, "x"),
        (WIDE, {"group_index": torch.tensor([[0, 2]])}, "group_index"),
    ],
)
def test_not_simulated(x, more, argument):
    with pytest.raises(NotSimulated, match=f"npu_dequant_swiglu_quant: {argument} was"):
        op(x, **({"quant_mode": 1} | more))
