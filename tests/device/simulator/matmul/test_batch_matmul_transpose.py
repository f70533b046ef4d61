"""``batch_matmul_transpose`` of sgl-kernel-npu against products of float64; its tiles; what it refuses."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected, UndefinedBehaviour

M, B, K, N = 5, 3, 64, 48


def draw(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format_mode", [None, "ND", "NZ"])
@pytest.mark.parametrize("m", [1, M])
def test_products_of_heads(dtype, format_mode, m):
    a, b = draw(m, B, K, dtype=dtype), draw(B, K, N, dtype=dtype, seed=1)
    c = torch.full((m, B, N), 7.0, dtype=dtype)
    # Tile j holds columns 16 j to 16 j + 15 of every row.
    tiles = torch.stack([b[..., start : start + 16] for start in range(0, N, 16)], 1).contiguous()
    given = tiles if format_mode == "NZ" else b
    assert torch.ops.npu.batch_matmul_transpose(a, given, c, format_mode) is None
    exact = torch.einsum("mbk,bkn->mbn", a.double(), b.double())
    size = torch.einsum("mbk,bkn->mbn", a.double().abs(), b.double().abs())
    assert ((c.double() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6 * size).all()


def test_quant_modes_change_nothing():
    a, b = draw(M, B, K), draw(B, K, N, seed=1)
    outputs = []
    for mode in (None, "per_channel_symm", "per_channel_asymm", "per_token_symm"):
        outputs.append(torch.empty(M, B, N, dtype=a.dtype))
        torch.ops.npu.batch_matmul_transpose(a, b, outputs[-1], quant_mode=mode)
    assert all(torch.equal(outputs[0], one) for one in outputs[1:])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"tensor_b": draw(B, K, N, dtype=torch.float16)}, "tensor type is not the same"),
        ({"tensor_c": draw(M, B, N, dtype=torch.float32)}, "tensor type is not the same"),
        ({"format_mode": "nz"}, "format_mode: Unsupported mode value nz"),
        ({"format_mode": ""}, "format_mode: Unsupported mode value"),
        ({"quant_mode": "per_token"}, "quant_mode: Unsupported mode value per_token"),
        ({"tensor_a": draw(M, B * K)}, "tensor_a was of rank 2"),
        ({"format_mode": "NZ"}, "tensor shape should be dim4 in nz format"),
        ({"tensor_b": draw(B, N, K)}, "tensor shape is wrong"),
        ({"tensor_b": draw(2, K, N)}, "tensor shape is wrong"),
        ({"tensor_a": draw(1025, B, K)}, "batchIdx is out of range: 1024"),
        ({"tensor_a": draw(0, B, K)}, "batchIdx is out of range: -1"),
    ],
)
def test_what_is_refused(spoil, words):
    call = {"tensor_a": draw(M, B, K), "tensor_b": draw(B, K, N), "tensor_c": draw(M, B, N)}
    torch.ops.npu.batch_matmul_transpose(**call)
    with pytest.raises(OperatorRejected, match=words):
        torch.ops.npu.batch_matmul_transpose(**(call | spoil))


def test_float32_is_refused():
    with pytest.raises(OperatorRejected, match="tensor type only support half or bf16"):
        torch.ops.npu.batch_matmul_transpose(torch.zeros(1, 1, 16), torch.zeros(1, 16, 16), torch.zeros(1, 1, 16))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"tensor_c": draw(M, B, 16)}, r"tensor_c is \[5, 3, 16\], written as \[5, 3, 48\]"),
        ({"tensor_a": draw(B, M, K).transpose(0, 1)}, "tensor_a is not contiguous"),
        ({"tensor_b": draw(B, N, K).transpose(1, 2)}, "tensor_b is not contiguous"),
        ({"tensor_b": draw(B, 6, K, 8), "format_mode": "NZ"}, "no tiles of 16 by 16"),
    ],
)
def test_what_is_not_checked_is_undefined(spoil, words):
    call = {"tensor_a": draw(M, B, K), "tensor_b": draw(B, K, N), "tensor_c": draw(M, B, N)}
    with pytest.raises(UndefinedBehaviour, match=words):
        torch.ops.npu.batch_matmul_transpose(**(call | spoil))
