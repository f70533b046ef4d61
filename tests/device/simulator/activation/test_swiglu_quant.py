"""``npu_swiglu_quant``: the reciprocal scale, smoothing in groups, and what it refuses."""

import dataclasses
import math

import pytest
import torch

from npudiff.device.simulator import PROFILES, NotSimulated, OperatorRejected, UndefinedBehaviour, use_profile
from npudiff.device.simulator.errors import DeviceFault
from npudiff.device.simulator.norms.unwritten import unwritten


def op(x, **more):
    return torch.ops.npu.npu_swiglu_quant(x, **more)


def dynamic(x, **more):
    return op(x, quant_mode=1, **more)


def static(x, smooth, offsets, **more):
    return op(x, smooth_scales=smooth, offsets=offsets, **more)


def f32(*values):
    return torch.tensor(values, dtype=torch.float32)


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Gates of 64 are far above 0, so that their swish is 64: products of these rows are exact.
LEFT = f32([64, 64, 1, -0.5])
RIGHT = f32([1, -0.5, 64, 64])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_scale_is_127_over_the_maximum(dtype):
    for x, more in ((RIGHT, {}), (LEFT, {"activate_left": True})):
        y, scale = dynamic(x.to(dtype), **more)
        assert (y.tolist(), scale.tolist()) == ([[127, -64]], [127 / 64])  # -63.5 rounds to even
        assert (y.dtype, scale.dtype) == (torch.int8, torch.float32)


def test_the_other_half_is_no_gate():
    y, _ = dynamic(f32([4, 4, 1, -2]))
    gated = [4 / (1 + math.exp(-1)), -8 / (1 + math.exp(2))]
    assert y.tolist() == [[127, round(gated[1] / gated[0] * 127)]]


def test_the_scale_may_be_that_of_other_operators():
    with use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", swiglu_quant_scale="scale")):
        y, scale = dynamic(RIGHT)
    assert (y.tolist(), scale.item()) == ([[127, -64]], pytest.approx(64 / 127))


def test_a_row_of_zeros_has_an_infinite_scale():
    y, scale = dynamic(torch.zeros(1, 4))
    assert (y.tolist(), scale.tolist()) == ([[0, 0]], [math.inf])


def test_static_multiplies_adds_and_rounds_once():
    y, scale = static(RIGHT, f32([0.0390625, 1.0]), f32([0.0, 0.5]))
    assert y.tolist() == [[2, -32]]  # 2.5 and -31.5: to even
    assert torch.equal(scale, unwritten((1,), torch.float32))
    assert static(RIGHT, f32(0.5), f32(1.0))[0].tolist() == [[33, -15]]
    assert static(RIGHT, f32(4.0), f32(0.0))[0].tolist() == [[127, -128]]


@pytest.mark.parametrize(("index", "kind"), [((2, 2, 3), 0), ((2, 0, 1), 1)])
def test_groups(index, kind):
    """Rows after the last group are quantised without smoothing."""
    x = RIGHT.expand(5, 4)
    more = {"group_index": i32(*index), "group_list_type": kind}
    _, scale = dynamic(x, smooth_scales=f32(2, 100, 4), **more)
    assert scale.tolist() == [127 / 128, 127 / 128, 127 / 256, 127 / 64, 127 / 64]
    smooth = f32([1, 4], [9, 9], [4, 1])
    y, _ = dynamic(x.view(5, 1, 4), smooth_scales=smooth, **more)
    assert y[:, 0].tolist() == [[64, -127]] * 2 + [[127, -16]] + [[127, -64]] * 2
    y, _ = static(x, smooth / 4, smooth, **more)
    assert y.tolist() == [[17, -28]] * 2 + [[68, -7]] + [[64, -32]] * 2


def test_offsets_do_not_matter_in_dynamic_mode():
    assert torch.equal(dynamic(RIGHT, offsets=f32(9.0))[0], dynamic(RIGHT)[0])


@pytest.mark.parametrize(
    ("index", "kind", "error", "message"),
    [
        ((2, 1), 0, UndefinedBehaviour, "cumulative ends do not decrease on a legal call"),
        ((2, -1), 1, UndefinedBehaviour, "negative"),
        ((2, 4), 0, DeviceFault, "counts 4 rows and there are 3"),
        ((2, 2), 1, DeviceFault, "counts 4 rows and there are 3"),
    ],
)
def test_groups_that_are_none(index, kind, error, message):
    with pytest.raises(error, match=message):
        dynamic(draw(3, 4), smooth_scales=f32(1, 1), group_index=i32(*index), group_list_type=kind)


def test_shapes():
    y, scale = dynamic(draw(2, 3, 8), dst_type=torch.int8)
    assert (y.shape, scale.shape) == ((2, 3, 4), (2, 3))
    y, scale = dynamic(draw(0, 8))
    assert (y.shape, scale.shape) == ((0, 4), (0,))
    y, scale = dynamic(draw(8, 3).t())
    assert torch.equal(y, dynamic(draw(8, 3).t().contiguous())[0])


X = draw(2, 8)


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (X[0], {}, r"x was of rank 1, \[8\]; allowed: rank 2 to 8"),
        (X.double(), {}, "x was float64; allowed: float16 or bfloat16 or float32"),
        (X[:, :7], {}, r"x was of shape \[2, 7\]; allowed: an even last axis up to 8192"),
        (draw(1, 8194), {}, r"x was of shape \[1, 8194\]; allowed: an even last axis up to 8192"),
        (X, {"quant_mode": 2}, "quant_mode was 2; allowed: 0 or 1"),
        (X, {"group_list_type": 2}, "group_list_type was 2; allowed: 0 or 1"),
        (X, {"dst_type": torch.uint8}, "dst_type was torch.uint8; allowed: None or torch.int8 or torch.quint4x2"),
        (X[:, :6], {"dst_type": torch.quint4x2}, r"x was of shape \[2, 6\] with dst_type quint4x2; .* of 4"),
        (X, {"smooth_scales": torch.ones(4)}, r"smooth_scales was of shape \[4\]; allowed: \[1, 4\] or \[1\], \[gr"),
        (X, {"smooth_scales": torch.ones(1).half()}, "smooth_scales was float16; allowed: float32"),
        (X, {"group_index": i32(1).long()}, "group_index was int64; allowed: int32"),
        (X, {"group_index": i32([1])}, r"group_index was of rank 2, \[1, 1\]; allowed: rank 1"),
        (
            X,
            {"quant_mode": 0, "smooth_scales": torch.ones(1), "offsets": torch.ones(1, 4)},
            r"offsets was of shape \[1, 4\]; allowed: \[1\], as smooth_scales .*ERR01003",
        ),
    ],
)
def test_rejections(x, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_swiglu_quant: {message}"):
        op(x, **({"quant_mode": 1} | more))


@pytest.mark.parametrize(
    ("more", "argument"),
    [
        ({}, "smooth_scales"),
        ({"smooth_scales": torch.ones(1)}, "offsets"),
        ({"quant_mode": 1, "dst_type": torch.quint4x2}, "dst_type"),
    ],
)
def test_not_simulated(more, argument):
    with pytest.raises(NotSimulated, match=f"npu_swiglu_quant: {argument} was"):
        op(X, **more)
