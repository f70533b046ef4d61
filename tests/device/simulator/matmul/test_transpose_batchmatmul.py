"""``npu_transpose_batchmatmul``: products of torch in float64, orders of axes, integers, formats, refusals."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, use_profile

OPS = torch.ops.npu


def draw(*shape, dtype=torch.float16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bound(left, right, dtype):
    """What float32 sums and one rounding may be away from the exact product."""
    exact = left.double() @ right.double()
    magnitude = left.double().abs() @ right.double().abs()
    return exact, torch.finfo(dtype).eps / 2 * exact.abs() + left.shape[-1] * 2.0**-24 * magnitude + 1e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("batch_second", "transposed_weight", "factor"),
    [(second, False, factor) for second in (False, True) for factor in (1, 2, 6)] + [(True, True, 1)],
)
def test_against_bmm_in_float64(dtype, batch_second, transposed_weight, factor):
    x, weight = draw(6, 5, 16, dtype=dtype), draw(6, 16, 7, dtype=dtype, seed=1)
    exact, error = bound(x, weight, dtype)
    x = x.transpose(0, 1).contiguous() if batch_second else x
    weight = weight.transpose(1, 2).contiguous() if transposed_weight else weight
    more = {"perm_x1": [1, 0, 2] if batch_second else None, "perm_x2": [0, 2, 1] if transposed_weight else None}
    y = OPS.npu_transpose_batchmatmul(x, weight, batch_split_factor=factor, **more)
    assert y.dtype == dtype
    # Documented: part f has the columns of batches f * B / factor and up, one batch after the other.
    if factor == 1:
        expected, error = exact.transpose(0, 1), error.transpose(0, 1)
    else:
        parts = [torch.cat(list(part), -1) for part in exact.split(6 // factor)]
        expected, error = torch.stack(parts), torch.stack([torch.cat(list(e), -1) for e in error.split(6 // factor)])
    assert y.shape == expected.shape
    assert ((y.double() - expected).abs() <= error).all()


def test_defaults_are_the_documented_ones():
    x, weight = draw(2, 3, 16), draw(2, 16, 4, seed=1)
    orders = {"perm_x1": [0, 1, 2], "perm_x2": [0, 1, 2], "perm_y": [1, 0, 2], "batch_split_factor": 1}
    y = OPS.npu_transpose_batchmatmul(x, weight, **orders)
    for more in ({}, {"perm_x1": [], "perm_x2": [], "perm_y": []}, {"batch_split_factor": None}):
        assert torch.equal(OPS.npu_transpose_batchmatmul(x, weight, **more), y)


def test_inputs_that_are_not_contiguous():
    x, weight = draw(3, 2, 32), draw(2, 8, 32, seed=1)
    y = OPS.npu_transpose_batchmatmul(x[..., ::2], weight[..., ::2].transpose(1, 2), perm_x1=[1, 0, 2])
    same = OPS.npu_transpose_batchmatmul(
        x[..., ::2].contiguous(), weight[..., ::2].transpose(1, 2).contiguous(), perm_x1=[1, 0, 2]
    )
    assert torch.equal(y, same)


def test_a_weight_in_nz_is_read_as_the_matrix_that_it_is():
    x, weight = draw(3, 2, 32), draw(2, 32, 16, seed=1)
    y = OPS.npu_transpose_batchmatmul(x, weight, perm_x1=[1, 0, 2])
    in_tiles = OPS.npu_format_cast(weight, 29)
    assert OPS.get_npu_format(in_tiles) == 29
    assert torch.equal(OPS.npu_transpose_batchmatmul(x, in_tiles, perm_x1=[1, 0, 2]), y)


def scaled(x, weight, scale, how="half_away_from_zero"):
    with use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", transpose_batchmatmul_int8=how)):
        return OPS.npu_transpose_batchmatmul(x, weight, scale=OPS.npu_trans_quant_param(scale))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("half_away_from_zero", [1, 3, -3, 127, -128]),
        ("half_to_even", [0, 2, -2, 127, -128]),
        ("cut", [0, 2, -2, 127, -128]),
    ],
)
def test_integers(how, expected):
    x = torch.tensor([0.5, 2.5, -2.5, 200, -200]).half().view(1, 5, 1) * torch.eye(1, 16).half()
    weight = torch.eye(16, 1).half()[None]
    y = scaled(x, weight, torch.ones(1), how)
    assert (y.shape, y.dtype) == ((5, 1, 1), torch.int8)
    assert y.flatten().tolist() == expected
    three_quarters = scaled(x[:, :1], weight, torch.tensor([1.5]), how).item()
    assert three_quarters == (0 if how == "cut" else 1)


def test_each_column_of_each_batch_has_its_scale():
    x, weight, scale = draw(2, 3, 16), draw(2, 16, 4, seed=1), torch.arange(1, 9) * 2.0**-3
    y = scaled(x, weight, scale)
    exact = (x.double() @ weight.double()).transpose(0, 1).reshape(3, 1, 8) * scale.double()
    assert (y - exact).abs().max() <= 0.5 + 1e-5
    assert y.unique().numel() > 5


X, W, S = draw(2, 3, 16), draw(2, 16, 4), torch.ones(8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "weight", "more", "message"),
    [
        (X, W, {"perm_x1": [1, 1, 2]}, r"perm_x1 was \[1, 1, 2\]; .*: perm_x1 should be \[0, 1, 2\] or \[1, 0, 2\]$"),
        (X, W, {"perm_x2": [1, 0, 2]}, r"perm_x2 was .*: perm_x2 should be \[0, 1, 2\] or \[0, 2, 1\]$"),
        (X, W, {"perm_y": [0, 1, 2]}, r"perm_y was .*: perm_y should be \[1, 0, 2\]$"),
        (
            X.long(),
            W,
            {},
            "input was int64.*: input's type supported for float16, float32 and bfloat16, but now is torch",
        ),
        (X, W.long(), {}, "weight was int64.*: weight's type supported for float16, float32 and bfloat16, but now is"),
        (X, W, {"bias": X}, "bias was given; .*: The bias is not supported in TransposeBatchMatMul"),
        (X[0], W, {}, r"input was of rank 2, \[3, 16\]; allowed: rank 3"),
        (X[:0], W[:0], {}, "input was empty"),
        (X, W.bfloat16(), {}, "weight was bfloat16; allowed: float16, as input"),
        (X, W[:, :8], {}, r"weight was of shape \[2, 8, 4\]; allowed: \[2, 16, any\], B and K of input"),
        (X, W[:1], {}, r"weight was of shape \[1, 16, 4\]; allowed: \[2, 16, any\], B and K of input"),
        (X, W, {"batch_split_factor": 0}, "batch_split_factor was 0; allowed: what divides B, 2"),
        (X, W, {"batch_split_factor": 4}, "batch_split_factor was 4; allowed: what divides B, 2"),
        (X, W, {"scale": S.float()}, "scale was float32; allowed: int64"),
        (X, W, {"scale": S[:4]}, r"scale was of shape \[4\]; allowed: \[8\], \[B \* N\]"),
        (X.float(), W.float(), {"scale": S}, "input was float32; allowed: float16"),
        (X, W, {"scale": S, "batch_split_factor": 2}, "batch_split_factor was 2; allowed: 1 with scale"),
        (X, W.transpose(1, 2), {"perm_x2": [0, 2, 1]}, r"perm_x2 was \[0, 2, 1\]; allowed: \[0, 1, 2\] with scale"),
        (draw(1, 1, 65536), draw(1, 65536, 1), {}, "input was .*; allowed: K below 65536 with perm_x1"),
        (draw(1, 1, 1), draw(1, 1, 65536), {}, "weight was .*; allowed: B and N below 65536"),
        (
            draw(1, 2, 32768),
            draw(2, 32768, 1),
            {"perm_x1": [1, 0, 2], "batch_split_factor": 2},
            r"input was .*; allowed: B \* K below 65536 with scale or",
        ),
    ],
)
def test_rejections(x, weight, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_transpose_batchmatmul: {message}"):
        OPS.npu_transpose_batchmatmul(x, weight, **more)


def test_large_axes_that_are_legal():
    y = OPS.npu_transpose_batchmatmul(draw(1, 2, 32768), draw(2, 32768, 1), perm_x1=[1, 0, 2])
    assert y.shape == (1, 2, 1)
