"""``npu_anti_quant`` against its formula in float64, and the example of its documentation."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected


def anti_quant(*arguments, **options):
    return torch.ops.npu.npu_anti_quant(*arguments, **options)


FLOAT16, BFLOAT16, INT8, QUINT4X2 = 5, 15, 1, 16


def test_the_documentations_example():
    x = torch.tensor([1, 2, 3, 4], dtype=torch.int8)
    two = torch.tensor([2.0])
    out = anti_quant(x, two, offset=two, dst_dtype=FLOAT16)
    assert out.dtype == torch.float16
    assert out.tolist() == [6, 8, 10, 12]


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("number", "dtype"), [(None, torch.float16), (FLOAT16, torch.float16), (BFLOAT16, torch.bfloat16)]
)
@pytest.mark.parametrize("columns", [1, 24])
@pytest.mark.parametrize("with_offset", [True, False])
@pytest.mark.parametrize("words", [True, False])
def test_every_form_is_rounded_once(scale_dtype, number, dtype, columns, with_offset, words):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-8 if words else -128, 8 if words else 128, (5, 24), generator=generator)
    scale, offset = ((torch.randn(columns, generator=generator) * 9).to(scale_dtype) for _ in range(2))
    x = values.to(torch.int8)
    if words:
        nibbles = (values & 15).reshape(5, 3, 8) << (torch.arange(8) * 4)
        x = nibbles.sum(-1).to(torch.uint32).view(torch.int32)
    exact = (values.double() + (offset.double() if with_offset else 0)) * scale.double()
    out = anti_quant(x, scale, offset=offset if with_offset else None, dst_dtype=number)
    assert out.dtype == dtype
    near = torch.finfo(dtype).eps / 2 * exact.abs() + 2e-6 * exact.abs() + 1e-4
    assert ((out.double() - exact).abs() <= near).all()


X, ONE = torch.ones(2, 4, dtype=torch.int8), torch.ones(1)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X.float(), ONE), {}, "x was float32"),
        ((X, ONE), {"src_dtype": QUINT4X2}, "src_dtype was 16; .*must match src_dtype"),
        ((X.int(), ONE), {"src_dtype": INT8}, "src_dtype was 1; .*src_dtype must be int4"),
        ((X, ONE), {"dst_dtype": 6}, "dst_dtype was 6"),
        ((X, ONE.half()), {}, "scale was float16"),
        ((X, torch.ones(3)), {}, r"scale was of shape \[3\]"),
        ((X.int(), torch.ones(4)), {}, r"scale was of shape \[4\]; allowed: \[1\] or \[32\]"),
        ((X, torch.ones(1, 4)), {}, "scale was of rank 2"),
        ((X, torch.ones(4)), {"offset": ONE}, r"offset was of shape \[1\]"),
        ((X, ONE), {"offset": ONE.bfloat16()}, "offset was bfloat16; allowed: float32, as scale"),
    ],
)
def test_rejections(arguments, options, message):
    with pytest.raises(OperatorRejected, match=f"npu_anti_quant: {message}"):
        anti_quant(*arguments, **options)
