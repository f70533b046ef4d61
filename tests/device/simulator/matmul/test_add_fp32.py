"""``_npu_matmul_add_fp32``: against float64, in place, and what is refused."""

from __future__ import annotations

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected


def normal(*shape, dtype=torch.float16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("step", [1, 2])
def test_against_float64(dtype, step):
    x, weight = normal(70, 5 * step, dtype=dtype)[:, ::step], normal(70, 9 * step, dtype=dtype, seed=1)[:, ::step]
    total = normal(5, 9, dtype=torch.float32, seed=2)
    wanted = total.double() + x.double().T @ weight.double()
    bound = 2**-23 * (total.double().abs() + 70 * x.double().abs().T @ weight.double().abs())
    assert torch.ops.atb._npu_matmul_add_fp32(x, weight, total) is None
    assert ((total.double() - wanted).abs() <= bound).all()


def test_products_are_not_rounded_to_the_inputs_dtype():
    x, weight = torch.full((1, 1), 1 + 2**-10, dtype=torch.float16), torch.full((1, 1), 1 + 2**-10, dtype=torch.float16)
    total = torch.ones(1, 1)
    torch.ops.atb._npu_matmul_add_fp32(x, weight, total)
    assert total.item() == 1 + (1 + 2**-10) ** 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"x": normal(4, 3, dtype=torch.float32)}, "x"),
        ({"x": normal(4)}, "x"),
        ({"weight": normal(4, 2, dtype=torch.bfloat16)}, "weight"),
        ({"weight": normal(3, 2)}, "weight"),
        ({"C": torch.zeros(2, 3)}, "C"),
        ({"C": torch.zeros(3, 2, dtype=torch.float16)}, "C"),
    ],
)
def test_what_is_refused(more, said):
    arguments = {"x": normal(4, 3), "weight": normal(4, 2), "C": torch.zeros(3, 2)} | more
    with pytest.raises(OperatorRejected) as caught:
        torch.ops.atb._npu_matmul_add_fp32(**arguments)
    assert caught.value.argument == said


def test_a_sum_in_another_order_is_not_simulated():
    with pytest.raises(NotSimulated, match="contiguous"):
        torch.ops.atb._npu_matmul_add_fp32(normal(4, 3), normal(4, 2), torch.zeros(2, 3).T)
