"""``npu_transpose_quant_batchmatmul``: products of the numbers that float8 stands for, in float64; refusals."""

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected

OPS = torch.ops.npu
E4M3, E5M2, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu
ORDERS = {"perm_x1": [1, 0, 2], "perm_x2": [0, 1, 2], "perm_y": [1, 0, 2]}


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exponents(*shape, seed=0):
    return torch.randint(120, 134, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8).view(E8M0)


def check(y, left, right, dtype):
    """Compare [M, B, N] with the product of [B, M, K] and [B, K, N]."""
    exact, magnitude = left @ right, left.abs() @ right.abs()
    error = torch.finfo(dtype).eps / 2 * exact.abs() + left.shape[-1] * 2.0**-23 * magnitude + 1e-6
    assert y.dtype == dtype
    assert ((y.double() - exact.transpose(0, 1)).abs() <= error.transpose(0, 1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inputs", [E4M3, E5M2])
def test_scales_of_rows_and_columns(dtype, inputs):
    x1, x2 = draw(5, 3, 64, dtype=inputs), draw(3, 64, 7, dtype=inputs, seed=1)
    rows, columns = draw(5, seed=2), draw(7, seed=3)
    y = OPS.npu_transpose_quant_batchmatmul(x1, x2, dtype, x1_scale=rows, x2_scale=columns, **ORDERS)
    left = x1.double().transpose(0, 1) * rows.double().view(1, -1, 1)
    check(y, left, x2.double() * columns.double(), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sizes", [(0, 0, 32), (1, 1, 32)])
def test_exponents_of_blocks(dtype, transposed, sizes):
    x1, x2 = draw(5, 3, 128, dtype=E4M3), draw(3, 128, 7, dtype=E4M3, seed=1)
    one, other = exponents(5, 3, 2, 2), exponents(3, 7, 2, 2, seed=1)
    left = x1.double() * one.view(torch.uint8).double().sub(127).exp2().flatten(2).repeat_interleave(32, 2)
    factors = other.view(torch.uint8).double().sub(127).exp2().flatten(2).repeat_interleave(32, 2)
    right = x2.double() * factors.transpose(1, 2)
    if transposed:
        x2, order = x2.transpose(1, 2).contiguous(), [0, 2, 1]
    else:
        other, order = other.view(torch.uint8).transpose(1, 2).contiguous().view(E8M0), [0, 1, 2]
    more = {**ORDERS, "perm_x2": order, "group_sizes": sizes}
    y = OPS.npu_transpose_quant_batchmatmul(x1, x2, dtype, x1_scale=one, x2_scale=other, **more)
    check(y, left.transpose(0, 1), right, dtype)


def test_what_dynamic_mx_quant_gives_is_multiplied_back():
    """As the output projection of DeepSeek's sparse attention has it, in vllm-ascend and in sglang."""
    o, weight = draw(6, 4, 128, dtype=torch.bfloat16), draw(4, 128, 16, dtype=torch.bfloat16, seed=1)
    x1, one = OPS.npu_dynamic_mx_quant(o, dst_type=E4M3)
    x2, other = OPS.npu_dynamic_mx_quant(weight, dst_type=E4M3, axis=1)
    more = {"x1_scale": one.view(E8M0), "x2_scale": other.view(E8M0), "group_sizes": (0, 0, 32), **ORDERS}
    y = OPS.npu_transpose_quant_batchmatmul(x1, x2, torch.bfloat16, **more)
    exact = torch.einsum("mbk,bkn->mbn", o.double(), weight.double())
    assert (y.double() - exact).norm() / exact.norm() < 0.05


def test_255_is_not_a_number():
    x1, one, other = torch.ones(1, 1, 64).to(E4M3), exponents(1, 1, 1, 2), exponents(1, 1, 1, 2)
    one.view(torch.uint8)[..., 1] = 255
    more = {"x1_scale": one, "x2_scale": other, "group_sizes": [0, 0, 32], **ORDERS}
    y = OPS.npu_transpose_quant_batchmatmul(x1, torch.ones(1, 64, 1).to(E4M3), torch.float16, **more)
    assert y.isnan().all()


X1, X2 = torch.ones(5, 3, 64).to(E4M3), torch.ones(3, 64, 7).to(E4M3)
FLOAT = {"x1_scale": torch.ones(5), "x2_scale": torch.ones(7)}
BYTES = {"x1_scale": exponents(5, 3, 1, 2), "x2_scale": exponents(3, 1, 7, 2), "group_sizes": [0, 0, 32]}


@pytest.mark.parametrize(
    ("x1", "x2", "dtype", "more", "message"),
    [
        (X1, X2, 5, FLOAT | {"perm_x1": [0, 1, 2]}, r"perm_x1 was .*: perm_x1 should be \[1, 0, 2\]"),
        (X1, X2, 5, FLOAT | {"perm_x2": [1, 0, 2]}, r"perm_x2 was .*: perm_x2 should be \[0, 1, 2\]"),
        (X1, X2, 5, FLOAT | {"perm_y": [0, 1, 2]}, r"perm_y was .*: perm_y should be \[1, 0, 2\]"),
        (X1.half(), X2, 5, FLOAT, "x1 was float16.*: x1's type supported for float8_e5m2 or float8_e4m3fn"),
        (X1, X2.half(), 5, FLOAT, "x2 was float16.*: x2's type supported for float8_e5m2 or float8_e4m3fn"),
        (X1, X2.float().to(E5M2), 5, FLOAT, "x2 was float8_e5m2; allowed: float8_e4m3fn, as x1"),
        (X1[0], X2, 5, FLOAT, "x1 was of rank 2"),
        (X1, X2[:, :32], 5, FLOAT, r"x2 was of shape \[3, 32, 7\]; allowed: \[3, 64, any\]"),
        (X1, X2, 6, FLOAT, "dtype was 6; allowed: 5 or 15"),
        (X1, X2, 5, FLOAT | {"bias": torch.ones(7)}, "bias was given; allowed: None"),
        (X1, X2, 5, FLOAT | {"batch_split_factor": 3}, "batch_split_factor was 3; allowed: None or 1"),
        (X1, X2, 5, {}, "x1_scale was None"),
        (X1, X2, 5, {"x1_scale": torch.ones(5)}, "x2_scale was None"),
        (X1, X2, 5, FLOAT | {"x2_scale": torch.ones(3)}, r"x2_scale was of shape \[3\]; allowed: \[7\], \[N\]"),
        (X1, X2, 5, FLOAT | {"x1_scale": torch.ones(1)}, r"x1_scale was of shape \[1\]; allowed: \[5\], \[M\]"),
        (X1, X2, 5, FLOAT | {"group_sizes": [0, 0, 32]}, r"group_sizes was \(0, 0, 32\)"),
        (X1, X2, 5, BYTES | {"group_sizes": None}, "group_sizes was None"),
        (X1, X2, 5, BYTES | {"group_sizes": [0, 0, 64]}, r"group_sizes was \(0, 0, 64\)"),
        (X1, X2, 5, BYTES | {"x1_scale": torch.ones(5)}, "x1_scale was float32; allowed: float8_e8m0fnu, as x2_scale"),
        (X1, X2, 5, BYTES | {"x1_scale": exponents(5, 1, 1, 2)}, r"x1_scale was of shape \[5, 1, 1, 2\]"),
        (X1, X2, 5, BYTES | {"x2_scale": exponents(3, 7, 1, 2)}, r"x2_scale was of shape \[3, 7, 1, 2\]"),
        (X1.float().to(E5M2), X2.float().to(E5M2), 5, BYTES, "x1 was float8_e5m2; allowed: float8_e4m3fn"),
    ],
)
def test_rejections(x1, x2, dtype, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_transpose_quant_batchmatmul: {message}"):
        OPS.npu_transpose_quant_batchmatmul(x1, x2, dtype, **{**ORDERS, **more})


def test_hifloat8_is_not_simulated():
    for more in ({"dtype": 290}, {"dtype": 5, "x1_dtype": 290}):
        with pytest.raises(NotSimulated, match=r"dtype was 290|x1 was hifloat8"):
            OPS.npu_transpose_quant_batchmatmul(X1, X2, **ORDERS, **FLOAT, **more)
