"""``npu_rotary_mul``: values, where it rounds, and what it refuses."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, use_profile


def rotary_mul(x, r1, r2, *arguments, **more):
    return torch.ops.npu.npu_rotary_mul(x, r1, r2, *arguments, **more)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def row(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).view(1, 1, 1, -1)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(x, r1, r2, mode):
    """The formula in float64, element by element of the last axis."""
    x, r1, r2 = x.double(), r1.double(), r2.double()
    half = x.shape[-1] // 2
    columns = []
    for i in range(x.shape[-1]):
        if mode == "half":
            partner, sign = (i + half, -1) if i < half else (i - half, 1)
        else:
            partner, sign = (i + 1, -1) if i % 2 == 0 else (i - 1, 1)
        columns.append(x[..., i] * r1[..., i] + sign * x[..., partner] * r2[..., i])
    return torch.stack(columns, -1)


@pytest.mark.parametrize(("mode", "expected"), [("half", [-2, 12, 303, 4008]), ("interleave", [-1, 22, 288, 4012])])
def test_by_hand(mode, expected):
    output = rotary_mul(row(1, 2, 3, 4), row(1, 10, 100, 1000), row(1, 2, 3, 4), mode)
    assert output.flatten().tolist() == expected


def test_the_default_mode_is_half():
    arguments = draw(1, 2, 3, 8), draw(1, 1, 3, 8, seed=1), draw(1, 1, 3, 8, seed=2)
    assert torch.equal(rotary_mul(*arguments), rotary_mul(*arguments, "half"))
    assert not torch.equal(rotary_mul(*arguments), rotary_mul(*arguments, "interleave"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize("r", [(1, 1, 5, 16), (1, 3, 1, 16), (2, 1, 1, 16)])
def test_against_float64(dtype, mode, r):
    x, r1, r2 = draw(2, 3, 5, 16, dtype=dtype), draw(*r, dtype=dtype, seed=1), draw(*r, dtype=dtype, seed=2)
    output = rotary_mul(x, r1, r2, mode)
    assert output.dtype == dtype
    expected, unit = exact(x, r1, r2, mode), torch.finfo(dtype).eps / 2
    # At most both products and the sum are rounded.
    bound = 1.01 * unit * (expected.abs() + (x.double() * r1).abs() + x.abs().max() * r2.abs()) + 1e-7
    assert ((output - expected).abs() <= bound).all()


def test_half_order_in_float16_rounds_both_products():
    step = 2.0**-10
    arguments = [
        row(1 + step, 1 + 2 * step, dtype=torch.float16),
        row(1 + step, 0, dtype=torch.float16),
        row(1, 0, dtype=torch.float16),
    ]
    assert rotary_mul(*arguments)[..., 0].item() == 0
    # One rounding, at the end, keeps what is left of the product: interleave, a matrix, the other choice.
    assert rotary_mul(*arguments, "interleave")[..., 0].item() == step**2
    matrix = torch.tensor([[0.0, 1], [-1, 0]], dtype=torch.float16)
    assert rotary_mul(*arguments, "half", matrix)[..., 0].item() == step**2
    with changed(rotary_mul_float16="float32"):
        assert rotary_mul(*arguments)[..., 0].item() == step**2


def test_bfloat16_rounds_once_and_to_even():
    step = 2.0**-7
    x, r1 = row(1 + step, 1 + 2 * step, dtype=torch.bfloat16), row(1 + step, 0, dtype=torch.bfloat16)
    for mode in ("half", "interleave"):
        assert rotary_mul(x, r1, row(1, 0, dtype=torch.bfloat16), mode)[..., 0].item() == step**2
        tie = rotary_mul(row(1, -step / 2, dtype=torch.bfloat16), *(row(1, 1, dtype=torch.bfloat16),) * 2, mode)
        assert tie[..., 0].item() == 1


def test_cosines_are_cast_to_the_dtype_of_input():
    # The cosine becomes 1 + 2**-7; three times that is a tie, which goes up to even. Unrounded it would go down.
    x, fine = row(3, 0, dtype=torch.bfloat16), row(1 + 2.0**-8 + 2.0**-9, 0)
    assert rotary_mul(x, fine, torch.zeros_like(fine))[..., 0].item() == 3 + 2 * 2.0**-6
    x, coarse = draw(1, 1, 2, 4), draw(1, 1, 2, 4, dtype=torch.bfloat16)
    assert torch.equal(rotary_mul(x, coarse, coarse), rotary_mul(x, coarse.float(), coarse.float()))


@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_a_matrix_takes_the_place_of_the_mode(mode):
    x, r1, r2 = draw(1, 2, 3, 4), draw(1, 1, 3, 4, seed=1), draw(1, 1, 3, 4, seed=2)
    matrix = torch.zeros(4, 4)
    matrix[:2, 2:], matrix[2:, :2] = torch.eye(2), -torch.eye(2)
    assert torch.equal(rotary_mul(x, r1, r2, mode, matrix), rotary_mul(x, r1, r2, "half"))


def test_nothing_is_written():
    arguments = draw(1, 2, 3, 4), draw(1, 1, 3, 4), draw(1, 1, 3, 4)
    before = [a.clone() for a in arguments]
    output = rotary_mul(*arguments)
    assert output.data_ptr() != arguments[0].data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


X = (2, 3, 5, 8)


@pytest.mark.parametrize(
    ("r", "half", "interleave"),
    [
        ((1, 1, 5, 8), True, True),
        ((2, 1, 5, 8), True, False),
        ((2, 3, 5, 8), True, False),
        ((1, 3, 1, 8), True, True),
        ((2, 3, 1, 8), True, False),
        ((2, 1, 1, 8), True, True),
        ((1, 3, 5, 8), False, False),
        ((1, 1, 1, 8), False, False),
        ((1, 1, 4, 8), False, False),
        ((1, 1, 5, 4), False, False),
        ((1, 1, 5, 1), False, False),
    ],
)
def test_what_broadcasts(r, half, interleave):
    for mode, right in (("half", half), ("interleave", interleave)):
        if right:
            assert rotary_mul(draw(*X), draw(*r), draw(*r), mode).shape == X
        else:
            with pytest.raises(OperatorRejected, match=r"r1 was of shape .* for input \[2, 3, 5, 8\]; allowed"):
                rotary_mul(draw(*X), draw(*r), draw(*r), mode)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize("r", [(3, 1, 16), (3, 5, 16), (1, 5, 16), (1, 1, 16)])
def test_three_axes(dtype, mode, r):
    x, r1, r2 = draw(3, 5, 16, dtype=dtype), draw(*r, dtype=dtype, seed=1), draw(*r, dtype=dtype, seed=2)
    # A tensor of four axes that are full has the same numbers.
    full = [tensor.expand(3, 5, 16).reshape(1, 1, 15, 16) for tensor in (r1, r2)]
    expected = rotary_mul(x.view(1, 1, 15, 16), *full, mode).view(3, 5, 16)
    assert torch.equal(rotary_mul(x, r1, r2, mode), expected)


@pytest.mark.parametrize(("r", "half", "interleave"), [((3, 1, 8), 1, 1), ((3, 5, 8), 1, 0), ((1, 1, 8), 0, 0)])
def test_three_axes_are_a_choice(r, half, interleave):
    for mode, right in (("half", half), ("interleave", interleave)):
        with changed(rotary_mul_three_axes="documented"):
            if right:
                assert rotary_mul(draw(3, 5, 8), draw(*r), draw(*r), mode).shape == (3, 5, 8)
            else:
                with pytest.raises(OperatorRejected, match=r"r1 was of shape .*over input \[T, N, D\]"):
                    rotary_mul(draw(3, 5, 8), draw(*r), draw(*r), mode)
        with (
            changed(rotary_mul_three_axes="rejected"),
            pytest.raises(OperatorRejected, match=r"input was of rank 3, \[3, 5, 8\]; allowed: rank 4"),
        ):
            rotary_mul(draw(3, 5, 8), draw(*r), draw(*r), mode)


@pytest.mark.parametrize("r", [(2, 1, 8), (3, 2, 8), (3, 1, 4)])
def test_three_axes_that_do_not_broadcast(r):
    with pytest.raises(OperatorRejected, match="r1 was of shape"):
        rotary_mul(draw(3, 5, 8), draw(*r), draw(*r))


@pytest.mark.parametrize("x", [(1, 1, 1, 8), (4, 1, 1, 8), (1, 3, 1, 8), (1, 1, 5, 8), (4, 3, 1, 8)])
def test_an_axis_of_size_1_is_full_and_broadcast_at_once(x):
    for mode in ("half", "interleave"):
        if mode == "half" or x != (4, 3, 1, 8):  # as [B, S, N, D]: [B, S, 1, D] is for half alone
            assert rotary_mul(draw(*x), draw(*x), draw(*x), mode).shape == x


@pytest.mark.parametrize(
    ("x", "r", "arguments", "message"),
    [
        (X, (1, 1, 5, 8), ("quarter",), r"rotary_mode was 'quarter'; allowed: 'half' or 'interleave' \[ERR01003\]"),
        (
            X,
            (1, 1, 5, 8),
            ("quarter",),
            "The rotary_mode of npu_rotary_mul should be half or interleave, but got quarter",
        ),
        (X, (1, 1, 5, 8), ("interleave-half",), "rotary_mode was 'interleave-half'"),
        (X[2:], X[2:], (), r"input was of rank 2, \[5, 8\]; allowed: rank 3 or 4"),
        (X[1:], X, (), r"r1 was of rank 4, \[2, 3, 5, 8\]; allowed: rank 3, as input"),
        ((1, 5, 7), (1, 5, 7), (), "input was of head dim 7"),
        ((3, 1000, 2), (3, 1, 2), (), r"input was of shape \[3, 1000, 2\]; allowed: heads below 1000"),
        (X, (1, 5, 8), (), r"r1 was of rank 3, \[1, 5, 8\]; allowed: rank 4, as input"),
        ((1, 1, 5, 7), (1, 1, 5, 7), (), "input was of head dim 7; allowed: an even head dim below 896"),
        ((1, 1, 1, 896), (1, 1, 1, 896), (), "input was of head dim 896"),
        ((1, 1, 1, 0), (1, 1, 1, 0), (), "input was of head dim 0"),
        (X, (1, 1, 5, 8), ("half", torch.ones(8)), r"rotate was of shape \[8\]; allowed: \[8, 8\], \[D, D\]"),
        (X, (1, 1, 5, 8), ("half", torch.ones(8, 8).int()), "rotate was int32; allowed: float16 or bfloat16"),
    ],
)
def test_rejections(x, r, arguments, message):
    with pytest.raises(OperatorRejected, match=message):
        rotary_mul(draw(*x), draw(*r), draw(*r), *arguments)


def test_rejected_dtypes_and_unequal_tables():
    with pytest.raises(OperatorRejected, match="input was float64; allowed: float16 or bfloat16 or float32"):
        rotary_mul(draw(*X).double(), draw(1, 1, 5, 8), draw(1, 1, 5, 8))
    with pytest.raises(OperatorRejected, match="r2 was int32"):
        rotary_mul(draw(*X), draw(1, 1, 5, 8), draw(1, 1, 5, 8).int())
    with pytest.raises(OperatorRejected, match=r"r2 was of shape \[1, 3, 1, 8\]; allowed: \[1, 1, 5, 8\], as r1"):
        rotary_mul(draw(*X), draw(1, 1, 5, 8), draw(1, 3, 1, 8))


@pytest.mark.parametrize(
    ("x", "r", "mode", "right"),
    [
        ((1, 999, 1, 2), (1, 1, 1, 2), "half", True),
        ((1, 1000, 2, 2), (1, 1, 2, 2), "half", False),
        ((1, 2000, 3, 2), (1, 2000, 1, 2), "half", True),  # 2,000 positions of BSND
        ((1, 3, 1000, 2), (1, 3, 1, 2), "half", False),
        ((40, 25, 3, 2), (1, 1, 3, 2), "half", True),
        ((40, 25, 3, 2), (1, 1, 3, 2), "interleave", False),
        ((37, 27, 3, 2), (1, 1, 3, 2), "interleave", True),
    ],
)
def test_documented_sizes(x, r, mode, right):
    if right:
        rotary_mul(draw(*x), draw(*r), draw(*r), mode)
        return
    with pytest.raises(OperatorRejected, match=r"input was of shape .*; allowed: batch (and|times) heads below 1000"):
        rotary_mul(draw(*x), draw(*r), draw(*r), mode)
    with changed(rotary_mul_sizes="any"):
        rotary_mul(draw(*x), draw(*r), draw(*r), mode)
