"""``npu_group_quant`` against a loop over rows in float64, with values whose products are exact."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected, UndefinedBehaviour


def group_quant(*arguments, **options):
    return torch.ops.npu.npu_group_quant(*arguments, **options)


def looped(x, scale, ends, offset, low, high):
    out = torch.empty(x.shape)
    for row in range(len(x)):
        group = next(number for number, end in enumerate(ends) if row < end)
        for column in range(x.shape[1]):
            value = x[row, column].double() * scale[group, column].double() + (0 if offset is None else offset.double())
            out[row, column] = round(float(value))
    return out.clamp(low, high)


@pytest.mark.parametrize("x_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("with_offset", [True, False])
def test_each_row_has_the_scales_of_its_group(x_dtype, scale_dtype, index_dtype, with_offset):
    generator = torch.Generator().manual_seed(1)
    x = (torch.randint(-64, 65, (6, 16), generator=generator) / 4).to(x_dtype)
    scale = (torch.randint(-8, 9, (4, 16), generator=generator) / 2).to(scale_dtype)
    offset = torch.tensor([-1.25], dtype=scale_dtype) if with_offset else None
    ends = [1, 4, 4, 6]
    index = torch.tensor(ends, dtype=index_dtype)
    out = group_quant(x, scale, index, offset=offset)
    assert out.dtype == torch.int8
    assert torch.equal(out.float(), looped(x, scale, ends, offset, -128, 127))
    assert torch.equal(group_quant(x, scale, index, offset=offset, dst_dtype=torch.qint8), out)
    words = group_quant(x, scale, index, offset=offset, dst_dtype=torch.quint4x2)
    assert words.shape == (6, 2)
    nibbles = (words.long().unsqueeze(-1) >> (torch.arange(8) * 4) & 15).flatten(1)
    assert torch.equal(((nibbles ^ 8) - 8).float(), looped(x, scale, ends, offset, -8, 7))


X, SCALE, INDEX = torch.ones(3, 4), torch.ones(2, 4), torch.tensor([1, 3])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X.int(), SCALE, INDEX), {}, "x was int32"),
        ((X[0], SCALE, INDEX), {}, "x was of rank 1"),
        ((X, SCALE[:, :3], INDEX), {}, r"scale was of shape \[2, 3\]"),
        ((X, SCALE[:0], INDEX[:0]), {}, "scale was of no group"),
        ((X, SCALE, INDEX[:1]), {}, r"group_index was of shape \[1\]"),
        ((X, SCALE, INDEX.float()), {}, "group_index was float32"),
        ((X, SCALE, INDEX), {"offset": torch.ones(2)}, r"offset was of shape \[2\]"),
        ((X, SCALE, INDEX), {"offset": torch.ones(1).half()}, "offset was float16; allowed: float32, as scale"),
        ((X, SCALE, INDEX), {"dst_dtype": torch.uint8}, "dst_dtype was torch.uint8; .*must be Int8 or Int4"),
        ((X, SCALE, INDEX), {"dst_dtype": torch.quint4x2}, "x was of shape .*last dim must be divded by 8"),
    ],
)
def test_rejections(arguments, options, message):
    with pytest.raises(OperatorRejected, match=f"npu_group_quant: {message}"):
        group_quant(*arguments, **options)


@pytest.mark.parametrize("ends", [[2, 1], [-1, 3], [1, 2], [3, 4]])
def test_ends_that_mean_nothing_are_undefined(ends):
    with pytest.raises(UndefinedBehaviour, match="group_index is"):
        group_quant(X, SCALE, torch.tensor(ends))
