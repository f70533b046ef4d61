"""``npu_dtype_cast``: torch's dtypes as torch converts, 4 and 8 bits against a list of their numbers."""

from itertools import pairwise

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E1M2 = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


def cast(*given, **keywords):
    return torch.ops.npu.npu_dtype_cast(*given, **keywords)


def test_the_example_of_the_documentation():
    out = cast(torch.tensor([0, 0.5, -1.0]), torch.int32)
    assert out.dtype == torch.int32
    assert out.tolist() == [0, 0, -1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int64, torch.bool])
def test_dtypes_of_torch(dtype):
    x = torch.tensor([[0.0, 1.25, -3.7], [100.0, -0.0, 0.4]])
    out = cast(x, dtype)
    assert out.dtype == dtype
    assert torch.equal(out, x.to(dtype))
    same = cast(out, dtype)
    assert same.data_ptr() != out.data_ptr()


@pytest.mark.parametrize(("number", "grid"), [(296, E2M1), (297, E1M2)])
def test_pairs_of_four_bits(number, grid):
    """Every number between two neighbours goes to the nearer one, a half to the even code."""
    steps = torch.arange(-8, 9) / 8
    values = torch.cat([low + (high - low) / 2 * (1 + steps) for low, high in pairwise(grid)])
    values = torch.cat([values, -values, torch.tensor([99.0, -99.0])])
    packed = cast(values, number)
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(values) // 2,)
    codes = [code for byte in packed.tolist() for code in (byte & 15, byte >> 4)]
    for value, code in zip(values.tolist(), codes, strict=True):
        distances = [abs(min(abs(value), grid[-1]) - one) for one in grid]
        near = [place for place, distance in enumerate(distances) if distance == min(distances)]
        assert code & 7 == (near[0] if len(near) == 1 else next(place for place in near if place % 2 == 0))
        assert code > 7 or not value < 0
    back = cast(packed, torch.float32, input_dtype=number)
    assert back.tolist() == [grid[code & 7] * (-1 if code > 7 else 1) for code in codes]


def test_as_sglang_packs_weights():
    """float8 that holds numbers of float4, two in a byte."""
    weight = torch.tensor([[0.5, -6.0, 3.0, 1.5]]).to(torch.float8_e4m3fn)
    assert cast(weight, 296).tolist() == [[0x1 | 0xF << 4, 0x5 | 0x3 << 4]]


def test_bytes_of_float8():
    x = torch.tensor([0.5, -448.0, 1e9, 3.3])
    out = cast(x, 292)
    assert out.dtype == torch.float8_e4m3fn
    assert out.float().tolist() == [0.5, -448.0, 448.0, 3.25]
    assert torch.equal(cast(out.view(torch.uint8), torch.float32, input_dtype=292), out.float())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((torch.zeros(3), 296), "must be divisible by 2"),
        ((torch.tensor(1.0), 296), "must be divisible by 2"),
        ((torch.tensor(1).byte(), torch.float32, 296), "Scalar input cannot be float4"),
        ((torch.zeros(2), torch.float16, 296), "input_dtype was 296"),
        ((torch.zeros(2), torch.float16, torch.bfloat16), "the number of float32"),
    ],
)
def test_what_is_refused(given, words):
    with pytest.raises(OperatorRejected, match=words):
        cast(*given)


@pytest.mark.parametrize("given", [(torch.zeros(2), 290), (torch.zeros(2), 285), (torch.zeros(2).double(), 5)])
def test_what_is_not_simulated(given):
    with pytest.raises(NotSimulated):
        cast(*given)
