"""``npu_dynamic_block_quant``: blocks one by one in float64, both kernels, corners, refusals."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, NotSimulated, OperatorRejected, use_profile


def quant(x, **more):
    return torch.ops.npu.npu_dynamic_block_quant(x, **more)


def draw(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 128), (5, 300), (2, 3, 200), (4, 3)])
@pytest.mark.parametrize(
    ("dst_type", "rows", "columns"),
    [(1, 1, 128), (1, 128, 64), (291, 1, 128), (292, 1, 256), (torch.float8_e4m3fn, 128, 128)],
)
def test_each_block_against_float64(ocp, dtype, shape, dst_type, rows, columns):
    x = draw(*shape, dtype=dtype)
    y, scale = quant(x, dst_type=dst_type, row_block_size=rows, col_block_size=columns)
    name = {1: None, 291: "e5m2"}.get(dst_type, "e4m3")
    most = ocp.formats[name][3] if name else 127.0
    assert y.dtype == (ocp.formats[name][5] if name else torch.int8)
    for part, numbers, scales in zip(*(t.flatten(0, -3) for t in (x[None], y[None], scale[None])), strict=True):
        for i, band in enumerate(part.split(rows)):
            for j, block in enumerate(band.split(columns, 1)):
                expected = block.double().abs().max() / most
                assert abs(scales[i, j] - expected) <= 2e-7 * expected
                exact = block.double() / expected
                given = numbers[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].double()
                if name is None:
                    assert (given - exact).abs().max() <= 0.5 + 1e-4
                else:
                    error = torch.finfo(ocp.formats[name][5]).eps / 2 + 1e-6
                    assert ((given - exact).abs() <= error * exact.abs() + 2.0**-10).all()
        assert scales.shape == (-(-part.shape[0] // rows), -(-part.shape[1] // columns))


def test_the_kernel_for_a2_multiplies():
    """By 127 times the rounded reciprocal, which is not 127 over the largest; the scale is no inverse of that."""
    x = draw(400, 128, dtype=torch.bfloat16)
    y, scale = quant(x)
    largest = x.float().abs().amax(1, keepdim=True)
    factor = largest.reciprocal() * 127
    assert torch.equal(y, (x.float() * factor).round().to(torch.int8))
    assert torch.equal(scale, largest * torch.tensor(127.0).reciprocal())
    assert not torch.equal(scale, torch.div(largest, torch.tensor(127.0)))


@pytest.mark.parametrize("dst_type", [1, 292])
def test_min_scale_keeps_scales_small(dst_type):
    x = torch.zeros(2, 128).half()
    x[0, :2], x[1, :2] = torch.tensor([1.0, 0.5]), torch.tensor([1024.0, 128])
    _, scale = quant(x, dst_type=dst_type, min_scale=0.5)
    most = 127 if dst_type == 1 else 448
    assert scale.flatten().tolist() == pytest.approx([1 / most, 2.0])
    y, _ = quant(x, dst_type=dst_type, min_scale=0.5)
    assert y.float()[1, :2].tolist() == [127 if dst_type == 1 else 448, 64]  # 512 is too large for both


@pytest.mark.parametrize(("choice", "expected"), [("nan", True), ("zero", False)])
def test_a_block_of_zeros(choice, expected):
    x = torch.zeros(1, 128).half()
    with use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", block_quant_zero_block=choice)):
        y, scale = quant(x, dst_type=292)
        integers, zero = quant(x)
    assert (y.float().isnan().all().item(), scale.item()) == (expected, 0)
    assert ((integers == 0).all().item(), zero.item()) == (True, 0)


X = torch.ones(2, 64).half()


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (X[0], {}, "x was of rank 1.*ERR01003.: x must be 2 or 3 dimensional."),
        (X, {"dst_type": 3}, "dst_type was 3; allowed: 1"),
        (X, {"dst_type": 296}, "dst_type was 296; allowed: 1"),
        (X.float(), {}, "x was float32; allowed: float16 or bfloat16"),
        (X, {"round_mode": "round"}, "round_mode was 'round'; allowed: 'rint'"),
        (X, {"row_block_size": 2}, "row_block_size was 2; allowed: 1 or 128 or 256 or 512"),
        (X, {"col_block_size": 32}, "col_block_size was 32; allowed: 64 or 128 or 192 or 256"),
        (X, {"min_scale": -1.0}, "min_scale was -1.0"),
        (X, {"dst_type_max": 15.0}, "dst_type_max was 15.0"),
    ],
)
def test_rejections(x, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_dynamic_block_quant: {message}"):
        quant(x, **more)


def test_hifloat8_is_not_simulated():
    with pytest.raises(NotSimulated, match="dst_type was 290"):
        quant(X, dst_type=290)
