"""``sgemmv_shrink`` and ``sgemmv_expand`` against products of float64, token by token; what stays; what is refused."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected, UndefinedBehaviour

TOKENS, HIDDEN, RANK, ADAPTERS = 7, 48, 32, 3
LENGTHS, INDICES, RANKS = [2, 1, 3], [2, -1, 0], [16, 8, 32]


def draw(*shape, dtype=torch.float16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def adapters():
    return int32(*INDICES), int32(*LENGTHS), int32(*RANKS)


def of_tokens():
    """Return the adapter of each token, or None; the last token is in no segment."""
    named = [index for index, length in zip(INDICES, LENGTHS, strict=True) for _ in range(length)]
    return [index if index >= 0 else None for index in named] + [None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("axes", [3, 4])
def test_shrink(dtype, axes):
    x, weight = draw(TOKENS, HIDDEN, dtype=dtype), draw(ADAPTERS, RANK, HIDDEN, dtype=dtype, seed=1)
    scales, y = torch.tensor([0.5, 2.0, 0.25]).half(), draw(TOKENS, RANK, dtype=torch.float32, seed=2)
    before = y.clone()
    given = weight if axes == 3 else weight[:, None]
    assert torch.ops.npu.sgemmv_shrink(x, given, *adapters(), scales, y) is None
    for t, adapter in enumerate(of_tokens()):
        rank = 0 if adapter is None else RANKS[adapter]
        if rank:
            terms = weight[adapter, :rank].double() * x[t].double()
            exact, size = terms.sum(-1) * scales[adapter].double(), terms.abs().sum(-1)
            assert ((y[t, :rank].double() - exact).abs() <= 1e-6 * size).all()
        assert torch.equal(y[t, rank:], before[t, rank:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bounds", [[0, 64], [0, 16, 48, 64]])
def test_expand(dtype, bounds):
    slices = len(bounds) - 1
    x, weight = draw(TOKENS, slices * RANK, dtype=torch.float32), draw(ADAPTERS, 64, RANK, dtype=dtype, seed=1)
    y = draw(TOKENS, 64, dtype=dtype, seed=2)
    before = y.clone()
    out = torch.ops.npu.sgemmv_expand(x, weight, *adapters(), int32(*bounds), y)
    assert torch.equal(out, y)
    for t, adapter in enumerate(of_tokens()):
        if adapter is None:
            assert torch.equal(y[t], before[t])
            continue
        rank = RANKS[adapter]
        for i in range(slices):
            columns = slice(bounds[i], bounds[i + 1])
            low = x[t, i * rank : (i + 1) * rank].double()  # slices lie as wide as the adapter's own rank
            terms = weight[adapter, columns, :rank].double() * low
            exact, size = before[t, columns].double() + terms.sum(-1), terms.abs().sum(-1) + before[t, columns].abs()
            unit = torch.finfo(dtype).eps / 2
            assert ((y[t, columns].double() - exact).abs() <= unit * exact.abs() + 1e-6 * size).all()


def test_slices_lie_as_wide_as_the_adapters_own_rank():
    """What ``shrink`` writes is what ``expand`` reads; the wide matrix is one of 3 * 16 rows, of which 24 are used."""
    x, weight, y = draw(3, 80), draw(1, 48, 80, seed=1), torch.full((3, 48), 9.0)
    one = (int32(0), int32(3), int32(8))
    torch.ops.npu.sgemmv_shrink(x, weight, *one, torch.ones(1).half(), y, 3)
    exact = x.double() @ weight[0, :24].double().T
    assert ((y[:, :24].double() - exact).abs() <= 1e-6 * (x.double().abs() @ weight[0, :24].double().abs().T)).all()
    assert (y[:, 24:] == 9).all()
    second, out = draw(1, 48, 16, seed=2), torch.zeros(3, 48).half()
    torch.ops.npu.sgemmv_expand(y, second, *one, int32(0, 16, 32, 48), out)
    for i in range(3):
        columns = slice(16 * i, 16 * i + 16)
        terms = y[:, None, 8 * i : 8 * i + 8].double() * second[0, columns, :8].double()
        exact, size = terms.sum(-1), terms.abs().sum(-1)
        assert ((out[:, columns].double() - exact).abs() <= 2.0**-11 * exact.abs() + 1e-6 * size + 2.0**-25).all()


def test_an_adapter_of_rank_0_leaves_its_tokens_alone():
    x, weight, y = draw(2, HIDDEN), draw(1, RANK, HIDDEN), torch.full((2, RANK), 3.0)
    torch.ops.npu.sgemmv_shrink(x, weight, int32(0), int32(2), int32(0), torch.ones(1).half(), y)
    assert (y == 3).all()


@pytest.fixture
def shrink():
    y = torch.zeros(TOKENS, RANK)
    return [draw(TOKENS, HIDDEN), draw(ADAPTERS, RANK, HIDDEN), *adapters(), torch.ones(ADAPTERS).half(), y, 1]


@pytest.fixture
def expand():
    y = torch.zeros(TOKENS, 64).half()
    return [draw(TOKENS, RANK).float(), draw(ADAPTERS, 64, RANK), *adapters(), int32(0, 64), y]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, draw(TOKENS, HIDDEN).float(), "only support half and bf16"),
        (0, draw(TOKENS, HIDDEN, 1), r"x should be \[batch_size, hidden_in\]"),
        (1, draw(RANK, HIDDEN), "weight should be"),
        (6, torch.zeros(TOKENS), r"y should be \[batch_size, hidden_out\]"),
        (6, torch.zeros(TOKENS, HIDDEN), "hidden in should be greater than hidden out"),
    ],
)
def test_what_shrink_refuses(shrink, place, value, words):
    torch.ops.npu.sgemmv_shrink(*shrink)
    shrink[place] = value
    with pytest.raises(OperatorRejected, match=words):
        torch.ops.npu.sgemmv_shrink(*shrink)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (1, draw(ADAPTERS, RANK, HIDDEN, dtype=torch.bfloat16), "weight is bfloat16 and is read as float16"),
        (2, torch.tensor(INDICES), "lora_indices is int64"),
        (2, int32(0, 1), "lora_indices has 2 elements for 3 segments"),
        (3, int32(2, -1, 3), "seq_len is"),
        (4, int32(16, 8, 12), r"ranks \[12\] are no multiples of 8 up to 32"),
        (4, int32(16, 8, 40), r"ranks \[40\]"),
        (5, torch.ones(ADAPTERS), "lora_scales is float32 and is read as float16"),
        (6, torch.zeros(TOKENS, RANK).half(), "y is float16 and is read as float32"),
        (6, torch.zeros(TOKENS, 16), "weight is"),
        (0, draw(HIDDEN, TOKENS).T, "x has strides"),
        (7, 3, "slice_count is 3, and y has 32 columns"),
        (7, 2, r"ranks \[32\] are no multiples of 8 up to 16"),
    ],
)
def test_what_shrink_misreads_is_undefined(shrink, place, value, words):
    shrink[place] = value
    with pytest.raises(UndefinedBehaviour, match=words):
        torch.ops.npu.sgemmv_shrink(*shrink)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, draw(TOKENS, RANK), "x is float16 and is read as float32"),
        (4, int32(16, 8, 24), r"ranks \[24\] are not among \[8, 16, 32, 64\] up to 32"),
        (4, int32(16, 8, 64), r"ranks \[64\]"),
        (5, int32(0, 32, 64), "for 2 slices"),
        (5, torch.tensor([0, 64]), "sliceOffsets is int64"),
        (5, int32(0, 40), r"sliceOffsets is \[0, 40\], no multiples of 16"),
    ],
)
def test_what_expand_misreads_is_undefined(expand, place, value, words):
    torch.ops.npu.sgemmv_expand(*expand)
    expand[place] = value
    with pytest.raises(UndefinedBehaviour, match=words):
        torch.ops.npu.sgemmv_expand(*expand)


def test_what_expand_refuses(expand):
    with pytest.raises(OperatorRejected, match=r"y was float32.*only support half and bf16"):
        torch.ops.npu.sgemmv_expand(*expand[:-1], torch.zeros(TOKENS, 64))


def test_adapters_and_slices_outside_are_faults(shrink, expand):
    shrink[2] = int32(2, -1, 3)
    with pytest.raises(DeviceFault, match="there are 3 adapters"):
        torch.ops.npu.sgemmv_shrink(*shrink)
    expand[5] = int32(0, 80)
    with pytest.raises(DeviceFault, match="sliceOffsets"):
        torch.ops.npu.sgemmv_expand(*expand)
