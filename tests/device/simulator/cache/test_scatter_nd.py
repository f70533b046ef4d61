"""``npu_scatter_nd_update`` and its in-place form."""

import itertools

import pytest
import torch

from npudiff.device.simulator import DeviceFault, NotSimulated, OperatorRejected

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.int64, torch.int8]


def update_(*arguments):
    return torch.ops.npu.npu_scatter_nd_update_(*arguments)


def expected(target, indices, updates):
    result = target.clone()
    for place in itertools.product(*map(range, indices.shape[:-1])):
        result[tuple(indices[place].tolist())] = updates[place]
    return result


def numbers(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-100, 100, shape, generator=generator)
    return values > 0 if dtype == torch.bool else values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    ("target", "indices"),
    [
        ((6, 4, 5), [[5], [0], [3]]),
        ((4, 5, 6), [[3, 4], [0, 0], [1, 2]]),
        ((3, 4), [[2, 3], [0, 1]]),
        ((9,), [[8], [1]]),
        ((4, 5, 6), [[[3, 4], [0, 0]], [[1, 2], [2, 2]]]),
        ((2, 1, 2, 1, 2, 1, 2, 3), [[1, 0, 1], [0, 0, 0]]),
    ],
    ids=str,
)
def test_rows_are_overwritten(dtype, index_dtype, target, indices):
    tensor = numbers(target, dtype)
    index = torch.tensor(indices, dtype=index_dtype)
    updates = numbers((*index.shape[:-1], *target[index.shape[-1] :]), dtype, seed=1)
    wanted = expected(tensor, index, updates)
    copy = torch.ops.npu.npu_scatter_nd_update(tensor, index, updates)
    assert torch.equal(copy, wanted)
    assert not torch.equal(tensor, wanted)
    assert update_(tensor, index, updates) is tensor
    assert torch.equal(tensor, wanted)


def test_as_sglang_writes_a_pool():
    """k_buffer.view(-1, 1, D), loc.view(-1, 1): the write reaches the pool."""
    pool = torch.zeros(2, 3 * 4, 1, 16, dtype=torch.bfloat16)
    buffer = pool[1].view(3, 4, 1, 16)
    key = numbers((3, 1, 16), torch.bfloat16)
    update_(buffer.view(-1, 1, 16), torch.tensor([5, 0, 11], dtype=torch.int32).view(-1, 1), key)
    assert torch.equal(pool[1][[5, 0, 11]], key)
    assert not pool[0].any()
    assert not pool[1][[1, 2, 3, 4, 6, 7, 8, 9, 10]].any()


def test_nz_rows_as_sglang_writes_them():
    """Blocks of 4, D = 32, seen as [-1, 16]: token 5 has rows 9 and 13."""
    cache = torch.zeros(2, 4, 1, 32, dtype=torch.float16)
    token = torch.arange(1, 33, dtype=torch.float16)
    update_(cache.view(-1, 1, 16), torch.tensor([[9], [13]]), token.view(2, 1, 16))
    assert cache.view(-1, 16).any(1).nonzero().flatten().tolist() == [9, 13]


def test_strides_do_not_matter():
    tensor, pool = numbers((4, 6), torch.float32), torch.zeros(6, 8)
    target = pool[:, ::2].t()
    target.copy_(tensor)
    index, updates = torch.tensor([[0, 3], [9, 1]])[:, 1:], numbers((6, 2), torch.float32, seed=2).t()
    assert update_(target, index, updates) is target
    assert torch.equal(target, expected(tensor, index, updates))
    assert not pool[:, 1::2].any()


def test_equal_indices_keep_the_last_update():
    target, updates = torch.zeros(8, 3), torch.arange(1, 601).view(200, 3).float()
    index = torch.tensor([1, 5] * 100).view(-1, 1)
    update_(target, index, updates)
    assert torch.equal(target[[1, 5]], updates[-2:])


def test_all_places_of_a_matrix_are_different():
    places = torch.tensor(list(itertools.product(range(2), range(5))))
    target, updates = torch.zeros(2, 5), torch.arange(1, 11).float()
    update_(target, places, updates)
    assert torch.equal(target, updates.view(2, 5))


def test_bits_are_not_changed():
    bits = torch.tensor([0x7E01, 0x7C01, -0x8000], dtype=torch.int16)
    target = torch.zeros(4, dtype=torch.float16)
    update_(target, torch.tensor([[3], [1], [2]]), bits.view(torch.float16))
    assert target.view(torch.int16).tolist() == [0, 0x7C01, -0x8000, 0x7E01]


def test_no_index_writes_nothing():
    target = torch.ones(4, 3)
    update_(target, torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 3))
    assert (target == 1).all()


@pytest.mark.parametrize(("index", "given"), [([[0], [6]], 6), ([[0], [-1]], -1)])
def test_indices_outside_fault_and_nothing_is_written(index, given):
    target = torch.zeros(6, 4)
    message = rf"npu_scatter_nd_update_: index 1 of indices is \[{given}\], input has shape \[6, 4\]"
    with pytest.raises(DeviceFault, match=message):
        update_(target, torch.tensor(index), torch.ones(2, 4))
    assert not target.any()


def test_a_part_of_an_index_outside_faults():
    """[0, 4] would be element 4 of the memory, which is inside."""
    with pytest.raises(DeviceFault, match=r"index 0 of indices is \[0, 4\]"):
        update_(torch.zeros(6, 4), torch.tensor([[0, 4]]), torch.ones(1))


@pytest.mark.parametrize(
    ("target", "indices", "updates", "message"),
    [
        ((4,), (3,), (3,), r"indices was of rank 1, \[3\]; allowed: rank 2 or more"),
        ((4,), (3, 2), (3,), r"indices was of 2 numbers per index; allowed: up to 1, the rank of input"),
        ((), (3, 1), (3,), r"input was of rank 0; allowed: rank 1 to 8"),
        ((1,) * 9, (3, 1), (3, *(1,) * 8), r"input was of rank 9"),
        ((4, 5), (3, 1), (3, 4), r"updates was of shape \[3, 4\]; allowed: \[3, 5\], indices without its last axis"),
        ((8, 1, 2, 16), (3, 1), (3, 2, 16), r"updates was of shape \[3, 2, 16\]; allowed: \[3, 1, 2, 16\]"),
    ],
)
def test_refused_shapes(target, indices, updates, message):
    with pytest.raises(OperatorRejected, match=message):
        update_(torch.zeros(target), torch.zeros(indices, dtype=torch.int64), torch.zeros(updates))


def test_refused_dtypes():
    index = torch.tensor([[0]])
    with pytest.raises(
        OperatorRejected, match=r"input was int32; allowed: float32 or float16 or bool or bfloat16 or int64 or int8"
    ):
        update_(torch.zeros(4, dtype=torch.int32), index, torch.zeros(1, dtype=torch.int32))
    with pytest.raises(OperatorRejected, match="updates was float32; allowed: float16, as input"):
        update_(torch.zeros(4, dtype=torch.float16), index, torch.zeros(1))
    with pytest.raises(OperatorRejected, match="indices was float32; allowed: int32 or int64"):
        torch.ops.npu.npu_scatter_nd_update(torch.zeros(4), index.float(), torch.zeros(1))


def test_indices_of_no_numbers_are_not_simulated():
    with pytest.raises(NotSimulated, match="indices was of 0 numbers per index"):
        update_(torch.zeros(4), torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, 4))
