"""``_npu_rotary_embedding``: pairs of complex numbers, in place; refusals."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected


def turn(*arguments):
    return torch.ops.atb._npu_rotary_embedding(*arguments)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("neox", [True, False])
def test_pairs_are_complex_numbers(dtype, neox):
    table, positions = draw(20, 16), torch.tensor([[3, 19, 0], [3, 7, 1]])
    query, key = draw(6, 64, dtype=dtype), draw(6, 16, dtype=dtype, seed=1)
    given = query.clone(), key.clone()
    assert turn(positions, *given, 16, table, neox) is None
    factor = torch.complex(*table[positions.flatten()].double().chunk(2, -1)).unsqueeze(1)
    for before, after in zip((query, key), given, strict=True):
        heads = before.double().view(6, -1, 16)
        first, second = heads.chunk(2, -1) if neox else (heads[..., ::2], heads[..., 1::2])
        product = torch.complex(first, second) * factor
        parts = (product.real, product.imag)
        exact = torch.cat(parts, -1) if neox else torch.stack(parts, -1).flatten(-2)
        exact = exact.view(before.shape)
        assert ((after.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 2e-6).all()


Q, TABLE, P = torch.ones(2, 8), torch.ones(4, 4), torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((P.float(), Q, Q, 4, TABLE), "positions was float32; allowed: int32 or int64"),
        ((P, Q.int(), Q, 4, TABLE), "query was int32"),
        ((P, Q, Q.half(), 4, TABLE), "key was float16; allowed: float32, as query"),
        ((P, Q, Q, 4, TABLE.int()), "cos_sin_cache was int32"),
        ((P, Q, Q, 3, TABLE), "head_size was 3; allowed: an even number"),
        ((P, Q, Q, 2, TABLE), r"cos_sin_cache was of shape \[4, 4\]; allowed: \[any, 2\]"),
        ((P, Q[:1], Q, 4, TABLE), r"query was of shape \[1, 8\]; allowed: \[2, any\]"),
        ((P, Q, Q[:, :6], 4, TABLE), r"key was of shape \[2, 6\]; allowed: a multiple of 4 columns"),
    ],
)
def test_rejections(arguments, message):
    with pytest.raises(OperatorRejected, match=f"_npu_rotary_embedding: {message}"):
        turn(*arguments, True)


def test_positions_outside_the_table():
    with pytest.raises(DeviceFault, match=r"positions\[1\] is 4, there are 4 rows"):
        turn(torch.tensor([0, 4]), Q.clone(), Q.clone(), 4, TABLE, True)
