"""``npu_add_rms_norm`` and version 2: the stored sum, the chain, who receives what."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected, UndefinedBehaviour

OPS = torch.ops.npu
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def add(*arguments, **more):
    return OPS.npu_add_rms_norm(*arguments, **more)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axes", "rstd_shape"), [((5, 48), 1, (5, 1)), ((2, 3, 48), 2, (2, 1, 1))])
@pytest.mark.parametrize("wide_gamma", [False, True])
def test_against_float64(dtype, shape, axes, rstd_shape, wide_gamma):
    x1, x2 = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    gamma = draw(*shape[-axes:], dtype=torch.float32 if wide_gamma else dtype, seed=2)
    y, rstd, x = add(x1, x2, gamma, 1e-5)
    assert [t.dtype for t in (y, rstd, x)] == [dtype, torch.float32, dtype]
    assert [tuple(t.shape) for t in (y, rstd, x)] == [shape, rstd_shape, shape]
    stored = (x1.double() + x2.double()).to(dtype)
    assert torch.equal(x, stored)
    stored = stored.double()
    root = ((stored**2).mean(tuple(range(-axes, 0)), keepdim=True) + 1e-5) ** -0.5
    expected = stored * root * gamma.double()
    assert ((rstd - root).abs() <= 1e-6 * root).all()
    # Rounded before gamma and after it.
    assert ((y - expected).abs() <= (1.01 * torch.finfo(dtype).eps + 2e-6) * expected.abs() + 1e-6).all()


def test_it_normalises_the_rounded_sum():
    # 257 is no bfloat16 number: the stored sum is 256 twice, whose root mean square is 256 and not 256.5.
    x1, x2 = torch.tensor([[256.0, 0.0]]).bfloat16(), torch.tensor([[1.0, 256.0]]).bfloat16()
    y, rstd, x = add(x1, x2, torch.ones(2).bfloat16(), 0.0)
    assert x.tolist() == [[256, 256]]
    assert rstd.item() == 1 / 256
    assert y.tolist() == [[1, 1]]
    # The same in float16, where 2049 becomes 2048.
    x1, x2 = torch.tensor([[2048.0, 0.0]]).half(), torch.tensor([[1.0, 2048.0]]).half()
    y, rstd, x = add(x1, x2, torch.ones(2).half(), 0.0)
    assert (x.tolist(), rstd.item(), y.tolist()) == ([[2048, 2048]], 1 / 2048, [[1, 1]])


@pytest.mark.parametrize(
    ("dtype", "gamma", "once", "twice"),
    [
        (torch.float16, 1.5, 2.099609375, 2.1015625),
        (torch.bfloat16, 129 / 128, 181 / 128, 180 / 128),
    ],
)
def test_it_rounds_before_gamma_unless_gamma_is_float32(dtype, gamma, once, twice):
    # 7 and 1 have the root mean square 5: what is rounded is 1.4.
    x1, x2 = torch.tensor([[3.0, 3.0]], dtype=dtype), torch.tensor([[4.0, -2.0]], dtype=dtype)
    gammas = torch.tensor([gamma, 1], dtype=dtype)
    assert add(x1, x2, gammas, 0.0)[0][0, 0].item() == twice
    assert add(x1, x2, gammas.float(), 0.0)[0][0, 0].item() == once
    assert OPS.npu_rms_norm(x1 + x2, gammas, 0.0)[0][0, 0].item() == once
    assert OPS.npu_add_rms_norm_v2_functional(x1, x2, gammas, 0.0)[1][0, 0].item() == twice


def test_the_inputs_stay():
    x1, x2 = draw(2, 8), draw(2, 8, seed=1)
    before = x1.clone(), x2.clone()
    for operator in (add, OPS.npu_add_rms_norm_v2_functional):
        outputs = operator(x1, x2, torch.ones(8))
        assert torch.equal(x1, before[0])
        assert torch.equal(x2, before[1])
        assert {o.data_ptr() for o in outputs}.isdisjoint({x1.data_ptr(), x2.data_ptr()})


@pytest.mark.parametrize("dtype", DTYPES)
def test_version_2_writes_the_norm_into_x1_and_the_sum_into_x2(dtype):
    x1, x2, gamma = draw(2, 8, dtype=dtype), draw(2, 8, dtype=dtype, seed=1), draw(8, dtype=dtype, seed=2)
    y, rstd, x = add(x1, x2, gamma)
    functional = OPS.npu_add_rms_norm_v2_functional(x1, x2, gamma)
    assert all(torch.equal(a, b) for a, b in zip(functional, (rstd, y, x), strict=True))
    addresses = x1.data_ptr(), x2.data_ptr()
    returned = OPS.npu_add_rms_norm_v2(x1, x2, gamma)
    assert torch.equal(returned, rstd)
    assert torch.equal(x1, y)
    assert torch.equal(x2, x)
    assert (x1.data_ptr(), x2.data_ptr()) == addresses


def test_version_2_writes_through_views():
    packed = draw(4, 16)
    before = packed.clone()
    y, _, x = add(packed[:2, :8].clone(), packed[2:, 8:].clone(), torch.ones(8))
    OPS.npu_add_rms_norm_v2(packed[:2, :8], packed[2:, 8:], torch.ones(8))
    assert torch.equal(packed[:2, :8], y)
    assert torch.equal(packed[2:, 8:], x)
    assert torch.equal(packed[:2, 8:], before[:2, 8:])


def test_version_2_with_one_tensor_twice_is_undefined():
    x = draw(2, 8)
    with pytest.raises(UndefinedBehaviour, match="x1 and x2 share memory"):
        OPS.npu_add_rms_norm_v2(x, x, torch.ones(8))


@pytest.mark.parametrize("name", ["npu_add_rms_norm", "npu_add_rms_norm_v2", "npu_add_rms_norm_v2_functional"])
@pytest.mark.parametrize(
    ("x1", "x2", "gamma", "message"),
    [
        (torch.ones(2, 8).half(), torch.ones(2, 8), torch.ones(8).half(), "x2 was float32; allowed: float16, as x1"),
        (torch.ones(2, 8), torch.ones(1, 8), torch.ones(8), r"x2 was of shape \[1, 8\]; allowed: \[2, 8\], as x1"),
        (torch.ones(2, 8).int(), torch.ones(2, 8).int(), torch.ones(8), "x1 was int32; allowed: float16 or bfloat16"),
        (torch.ones(2, 8), torch.ones(2, 8), torch.ones(7), r"gamma was of shape \[7\]; allowed: the last axes of x1"),
        (torch.ones(2, 8).half(), torch.ones(2, 8).half(), torch.ones(8).bfloat16(), "gamma was bfloat16"),
    ],
)
def test_rejections(name, x1, x2, gamma, message):
    before = x1.clone()
    with pytest.raises(OperatorRejected, match=f"{name}: {message}"):
        getattr(OPS, name)(x1, x2, gamma)
    assert torch.equal(x1, before)
