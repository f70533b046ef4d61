"""``npu_kronecker_quant``: products in float64, both forms of 4 bits, where it rounds, refusals."""

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected
from npudiff.device.simulator.quantisation.integers import unpacked


def quant(x, p1, p2, *more, **named):
    return torch.ops.npu.npu_kronecker_quant(x, p1, p2, *more, **named)


def draw(*shape, dtype=torch.float16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip", [None, 1.0, 0.7848])
def test_against_float64(dtype, clip):
    x, p1, p2 = draw(20, 6, 16, dtype=dtype), draw(6, 6, dtype=dtype, seed=1), draw(16, 16, dtype=dtype, seed=2)
    out, scale = quant(x, p1, p2, clip)
    right = x.double() @ p2.double()
    exact = p1.double() @ right
    # Two products round to 16 bits: each of the inner ones is taken into the outer with its factor.
    unit = torch.finfo(dtype).eps
    error = unit * (p1.double().abs() @ right.abs() + exact.abs())
    expected = exact.abs().amax((1, 2)) * (clip or 1.0) / 7
    assert (scale.dtype, scale.shape) == (torch.float32, (20,))
    assert ((scale - expected).abs() <= unit * error.amax((1, 2)) / unit + 1e-6).all()
    integers = unpacked(out).double()
    ideal = exact / scale.double().view(-1, 1, 1)
    slack = (error / scale.double().view(-1, 1, 1)) + 2.0**-8
    low, high = ((ideal + sign * slack).round().clamp(-8, 7) for sign in (-1, 1))
    assert ((low <= integers) & (integers <= high)).all()
    assert (integers == ideal.round().clamp(-8, 7)).double().mean() > 0.95


def test_identities_leave_quantisation_alone():
    x = torch.tensor([[[7, 3.5, 2.5, -0.5, 0, -7, 1, 6.25]], [[0.0] * 8]]).half()
    out, scale = quant(x, torch.eye(1).half(), torch.eye(8).half())
    assert scale.tolist() == [1, 0]
    assert unpacked(out).tolist() == [[[7, 4, 2, 0, 0, -7, 1, 6]], [[0] * 8]]
    out, scale = quant(x, torch.eye(1).half(), torch.eye(8).half(), 0.5)
    assert scale.tolist() == [0.5, 0]
    assert unpacked(out)[0].tolist() == [[7, 7, 5, -1, 0, -8, 2, 7]]


def test_the_first_product_is_rounded_before_the_second():
    # 2048 + 1 is 2048 in float16, so that taking 2048 away leaves nothing.
    x = torch.zeros(1, 2, 8).half()
    x[0, 0, :2], x[0, 1, 0] = torch.tensor([2048.0, 1]), -2048
    p2 = torch.eye(8).half()
    p2[1, 0] = 1
    out, scale = quant(x, torch.tensor([[1.0, 1], [0, 0]]).half(), p2)
    assert unpacked(out)[0, 0, 0].item() == 0
    assert scale.item() == pytest.approx(1 / 7)  # of the 1 that stands in the second column


@pytest.mark.parametrize("shape", [(5, 6, 16), (3, 3, 10)])
def test_float4_has_exponents_of_blocks_of_the_whole_token(ocp, shape):
    rows, m, n = shape
    x = draw(*shape)
    out, scale = quant(x, torch.eye(m).half(), torch.eye(n).half(), dst_dtype=296)
    mx, mx_scale = torch.ops.npu.npu_dynamic_mx_quant(x.flatten(1), dst_type=296)
    assert out.shape == (rows, m * n // 2)
    assert scale.shape == (rows, -(-m * n // 64), 2)
    assert torch.equal(out, mx)
    assert torch.equal(scale, mx_scale)


X, P1, P2 = torch.ones(2, 3, 8).half(), torch.eye(3).half(), torch.eye(8).half()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], P1, P2), "x was of rank 2"),
        ((X[..., :4], P1, P2[:4, :4]), "x was of shape .*ERR01003.: input shape last dim must be divded by 8"),
        (
            (X[..., :3], P1, P1, None, 296),
            "x was of shape .*: The last dim input shape must be divisible by 2 if",
        ),
        ((X, P1, P2, None, 1), "dst_dtype was 1; .*: the dtype of dst_dtype must be int32, or mxfp4"),
        ((X.float(), P1.float(), P2.float()), "x was float32"),
        ((X[:0], P1, P2), "x was empty"),
        (
            (torch.ones(1, 3, 264).half(), P1, torch.eye(264).half()),
            r"x was of shape \[1, 3, 264\]; allowed",
        ),
        ((X, P1.bfloat16(), P2), "kronecker_p1 was bfloat16; allowed: float16, as x"),
        ((X, P2, P2), r"kronecker_p1 was of shape \[8, 8\]; allowed: \[3, 3\]"),
        ((X, P1, P1), r"kronecker_p2 was of shape \[3, 3\]; allowed: \[8, 8\]"),
        ((X, P1, P2, 0.0), "clip_ratio was 0.0; allowed: above 0 and at most 1"),
        ((X, P1, P2, 1.5), "clip_ratio was 1.5"),
    ],
)
def test_rejections(arguments, message):
    with pytest.raises(OperatorRejected, match=f"npu_kronecker_quant: {message}"):
        quant(*arguments)


def test_what_is_not_simulated():
    with pytest.raises(NotSimulated, match=r"dst_type_max was 6\.0"):
        quant(X, P1, P2, dst_dtype=296, dst_type_max=6.0)
    with pytest.raises(NotSimulated, match="kronecker_p2 was empty"):
        quant(X, P1, torch.empty(0, 0).half(), dst_dtype=296)
