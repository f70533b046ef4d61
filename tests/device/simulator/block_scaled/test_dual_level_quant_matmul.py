"""``npu_dual_level_quant_matmul`` against its formula in float64, block by block; what it refuses."""

import dataclasses
import math

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, use_profile

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FRACTAL_NZ = 29


def value(code):
    return MAGNITUDES[code & 7] * (-1 if code > 7 else 1)


def draw(rows, k, seed):
    """Return bytes, their numbers, and exponents of blocks of 32 with one more where their number is odd."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, k), generator=generator)
    numbers = torch.tensor([value(code) for code in codes.flatten().tolist()]).view(rows, k).double()
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    stored = torch.randint(120, 134, (rows, -(-k // 64), 2), generator=generator).to(torch.uint8)
    return packed, numbers, stored


def tiled(packed):
    return torch.ops.npu.npu_format_cast(packed.view(torch.int8), FRACTAL_NZ)


def call(m=3, n=5, k=1090, **spoil):
    x1, left, one = draw(m, k, 0)
    x2, right, other = draw(n, k, 1)
    outer = math.ceil(k / 512)
    generator = torch.Generator().manual_seed(2)
    given = {
        "x1": x1,
        "x2": tiled(x2),
        "x1_level0_scale": torch.rand(m, outer, generator=generator) - 0.5,
        "x2_level0_scale": torch.rand(outer, n, generator=generator) - 0.5,
        "x1_level1_scale": one,
        "x2_level1_scale": other,
        "bias": torch.randn(n, generator=generator),
        "output_dtype": 15,
    } | spoil
    return given, left, right


def run(given):
    return torch.ops.npu.npu_dual_level_quant_matmul(**given)


def formula(given, left, right):
    """Return value and size of every output, summed over blocks of 32 with Python's numbers."""
    (m, k), n = left.shape, len(right)
    exact, size = torch.zeros(m, n).double(), torch.zeros(m, n).double()
    for block in range(math.ceil(k / 32)):
        columns, outer = slice(32 * block, 32 * block + 32), block // 16
        exponents = [given[f"{x}_level1_scale"].flatten(1)[:, block].double() - 127 for x in ("x1", "x2")]
        factors = torch.outer(given["x1_level0_scale"][:, outer].double(), given["x2_level0_scale"][outer].double())
        factors = factors * 2 ** (exponents[0][:, None] + exponents[1])
        exact += factors * (left[:, columns] @ right[:, columns].T)
        size += factors.abs() * (left[:, columns].abs() @ right[:, columns].abs().T)
    bias = 0.0 if given["bias"] is None else given["bias"].double()
    return exact + bias, size + abs(bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [2, 32, 66, 512, 514, 1090])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_formula(dtype, k, with_bias):
    given, left, right = call(k=k, output_dtype=dtype)
    given["bias"] = given["bias"] if with_bias else None
    out = run(given)
    exact, size = formula(given, left, right)
    assert out.dtype == dtype
    info = torch.finfo(dtype)
    step = info.eps / 2 * exact.abs().clamp(min=info.smallest_normal)  # below, numbers have the step of the least one
    assert ((out.double() - exact).abs() <= step + 1e-6 * size).all()


def test_as_sglang_calls_it():
    """Both sides from ``npu_dynamic_dual_level_mx_quant``: the product is near that of the numbers before."""
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(rows, 1024, generator=generator).bfloat16() for rows in (4, 48))
    x1, x1_level0, x1_level1 = torch.ops.npu.npu_dynamic_dual_level_mx_quant(x)
    x2, x2_level0, x2_level1 = torch.ops.npu.npu_dynamic_dual_level_mx_quant(weight)
    out = torch.ops.npu.npu_dual_level_quant_matmul(
        x1, tiled(x2), x1_level0, x2_level0.T.contiguous(), x1_level1, x2_level1, output_dtype=torch.bfloat16
    )
    exact = x.double() @ weight.double().T
    # float4 keeps two bits, so that single products err by some 10 %; 1024 of them by the root of that many.
    assert (out.double() - exact).norm() / exact.norm() < 0.2


def test_an_exponent_of_255_is_not_a_number():
    given, _, _ = call(k=64)
    given["x1_level1_scale"][1, 0, 0] = 255
    assert run(given).isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"x1": torch.zeros(3, 5, 1).byte()}, "The shape dimension of x1 is only supported to be 2, but it is 3"),
        ({"x2": torch.zeros(5, 545, dtype=torch.int8)}, "x2 only supports NZ format"),
        ({"x1": torch.zeros(3, 32).byte()}, "The k of x1 and x2 should be equal. but x1_k_dim is 64, x2_k_dim is 1090"),
        ({"output_dtype": 6}, "output_dtype was 6"),
        ({"x1_level0_scale": torch.zeros(3, 2)}, "x1_level0_scale was of shape"),
        ({"x2_level0_scale": torch.zeros(5, 3)}, "x2_level0_scale was of shape"),
        ({"x1_level1_scale": torch.zeros(3, 17, 2).byte()}, "x1_level1_scale was of shape"),
        ({"x2_level1_scale": torch.zeros(5, 18, 2)}, "x2_level1_scale was float32"),
        ({"bias": torch.zeros(5).bfloat16()}, "bias was bfloat16"),
        ({"bias": torch.zeros(1, 5)}, "bias was of shape"),
        ({"x2_level0_scale": torch.zeros(5, 3).T}, "x2_level0_scale was not contiguous"),
    ],
)
def test_what_is_refused(spoil, words):
    run(call()[0])
    with pytest.raises(OperatorRejected, match=words):
        run(call()[0] | spoil)


def test_other_bytes_of_the_weight_are_refused():
    given, _, _ = call()
    given["x2"] = torch.ops.npu.npu_format_cast(torch.zeros(5, 545, dtype=torch.uint8), FRACTAL_NZ)
    with pytest.raises(OperatorRejected, match="x2 was uint8"):
        run(given)


def test_chips_without_it_are_a_choice():
    rejecting = dataclasses.replace(PROFILES["8.5"], name="a2", ascend_950_products="rejected")
    with use_profile(rejecting), pytest.raises(OperatorRejected, match="supported only on the Ascend950 platform"):
        run(call()[0])
