"""``npu_dynamic_dual_level_mx_quant``: both scales by Python's arithmetic, corners, refusals."""

import math

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected


def quant(x, **more):
    return torch.ops.npu.npu_dynamic_dual_level_mx_quant(x, **more)


def draw(*shape, dtype, seed=0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) ** 3).to(dtype)


@pytest.mark.few(8)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["rint", "round", "floor"])
@pytest.mark.parametrize("width", [32, 70, 512, 1100])
def test_the_documented_arithmetic(ocp, dtype, mode, width):
    x = draw(3, width, dtype=dtype)
    y, level0, level1 = quant(x, round_mode=mode)
    numbers = ocp.unpack(y, "e2m1")
    for row, outer, inner, given in zip(x.tolist(), level0, level1.flatten(1).tolist(), numbers.tolist(), strict=True):
        expected = [max(map(abs, row[i : i + 512])) / 6 for i in range(0, width, 512)]
        assert torch.allclose(outer, torch.tensor(expected), rtol=3e-7, atol=0)
        scales = outer.repeat_interleave(512)[:width]
        temp = (torch.tensor(row) / scales).to(dtype).tolist()  # rounded to the dtype of x
        bytes_ = [ocp.exponent(max(map(abs, temp[i : i + 32]))) - 2 + 127 for i in range(0, width, 32)]
        assert inner == bytes_ + [0] * (len(inner) - len(bytes_))
        assert given == [ocp.nearest(v * 2.0 ** (127 - bytes_[i // 32]), "e2m1", mode) for i, v in enumerate(temp)]


def test_shapes():
    y, level0, level1 = quant(torch.ones(2, 3, 514).half())
    assert (y.shape, level0.shape, level1.shape) == ((2, 3, 257), (2, 3, 2), (2, 3, 9, 2))
    assert (y.dtype, level0.dtype, level1.dtype) == (torch.uint8, torch.float32, torch.uint8)


def test_zeros_infinity_and_what_is_too_small(ocp):
    x = torch.zeros(3, 1024, dtype=torch.bfloat16)
    x[0, 0], x[1, 0], x[1, 1], x[2, 0], x[2, 512] = -0.0, math.inf, 6.0, 2.0**-126, 12.0
    y, level0, level1 = quant(x)
    assert level0.tolist() == [[0, 0], [1, 0], [0, 2]]
    assert (level1[0] == 0).all()
    assert y[0, 0].item() == 0x08
    assert level1[1, 0].tolist() == [255, 0]
    assert level1[2, 0, 0].item() == 255  # what is not 0 over 0
    assert ocp.unpack(y, "e2m1")[2, 512] == 6


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (
            torch.ones(2, 31).half(),
            {},
            "input was of shape .*ERR01003.: The last dim input shape must be divisible by 2",
        ),
        (torch.ones(2, 32), {}, "input was float32; allowed: float16 or bfloat16"),
        (torch.ones(0, 32).half(), {}, "input was empty"),
        (torch.ones(1, 1, 1, 1, 1, 1, 1, 32).half(), {}, "input was of rank 8"),
        (torch.ones(2, 32).half(), {"round_mode": "trunc"}, "round_mode was 'trunc'; allowed: 'rint'"),
    ],
)
def test_rejections(x, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_dynamic_dual_level_mx_quant: {message}"):
        quant(x, **more)


def test_a_smooth_scale_is_not_simulated():
    with pytest.raises(NotSimulated, match="smooth_scale was given"):
        quant(torch.ones(2, 32).half(), smooth_scale=torch.ones(32).half())
