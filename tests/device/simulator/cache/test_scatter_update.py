"""``scatter_update``: the loops of aclnn's page, written out, and what is refused."""

from __future__ import annotations

import pytest
import torch

from npudiff.device.simulator import DeviceFault, NotSimulated, OperatorRejected


def numbers(*shape, start=0, dtype=torch.float16):
    count = torch.Size(shape).numel()
    return (torch.arange(count) + start).view(shape).to(dtype)


def by_hand(target, indices, updates, axis):
    """Write element by element."""
    result = target.clone()
    for place in torch.cartesian_prod(*(torch.arange(size) for size in updates.shape)).tolist():
        to = list(place)
        to[axis] += int(indices.view(-1)[place[0]])
        result[tuple(to)] = updates[tuple(place)]
    return result


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float16", "float32", "int32", "bfloat16"])
@pytest.mark.parametrize(
    ("axis", "update"), [(-2, (3, 4, 1, 2)), (2, (3, 4, 3, 2)), (-1, (2, 4, 5, 1)), (1, (3, 2, 5, 2))]
)
def test_offsets_of_each_batch(dtype, axis, update):
    dtype = getattr(torch, dtype)
    target, updates = numbers(3, 4, 5, 2, dtype=dtype), numbers(*update, start=100, dtype=dtype)
    indices = torch.tensor([1, 0, 1][: update[0]])
    wanted = by_hand(target, indices, updates, axis)
    before = target.clone()
    assert torch.equal(torch.ops.npu.scatter_update(target, indices.int(), updates, axis), wanted)
    assert torch.equal(target, before)
    assert not torch.equal(before, wanted)
    result = torch.ops.npu.scatter_update_(target, indices, updates, axis)
    assert torch.equal(target, wanted)
    assert result.data_ptr() == target.data_ptr()


def test_one_index_without_an_axis_is_one_batch():
    target, updates = numbers(1, 3, 2), numbers(1, 1, 2, start=50)
    torch.ops.npu.scatter_update_(target, torch.tensor(2), updates, 1)
    assert target[0].tolist() == [[0, 1], [2, 3], [50, 51]]


def test_strides_are_kept():
    base = torch.zeros(2, 3, 8, dtype=torch.float16)
    torch.ops.npu.scatter_update_(base[..., ::2], torch.tensor([0, 2]), numbers(2, 1, 4, start=1), -2)
    assert base[0, 0].tolist() == [1, 0, 2, 0, 3, 0, 4, 0]
    assert base[1, 2].tolist() == [5, 0, 6, 0, 7, 0, 8, 0]
    assert base.count_nonzero() == 8


@pytest.mark.parametrize("indices", [[0, 3], [0, -1]])
def test_an_offset_outside_is_a_fault(indices):
    with pytest.raises(DeviceFault, match="index 1 of indices"):
        torch.ops.npu.scatter_update(numbers(2, 4, 3), torch.tensor(indices), numbers(2, 2, 3), 1)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"axis": 0}, "axis"),
        ({"axis": 3}, "axis"),
        ({"axis": -3}, "axis"),
        ({"updates": numbers(2, 1, 3, dtype=torch.float32)}, "updates"),
        ({"updates": numbers(1, 1, 3)}, "updates"),
        ({"updates": numbers(2, 1, 2)}, "updates"),
        ({"updates": numbers(2, 0, 3)}, "updates"),
        ({"input": numbers(2, 4, 3, dtype=torch.float64)}, "input"),
        ({"input": numbers(24)}, "input"),
        ({"indices": torch.tensor([0.0, 1.0])}, "indices"),
        ({"indices": torch.zeros(1, 1, 2, dtype=torch.int32)}, "indices"),
        ({"indices": torch.zeros(3, dtype=torch.int32)}, "indices"),
    ],
)
def test_what_is_refused(more, said):
    arguments = {"input": numbers(2, 4, 3), "indices": torch.tensor([0, 1]), "updates": numbers(2, 1, 3), "axis": 1}
    with pytest.raises(OperatorRejected, match=said) as caught:
        torch.ops.npu.scatter_update_(**arguments | more)
    assert (caught.value.operator, caught.value.argument) == ("scatter_update_", said)


def test_pairs_of_indices_are_not_simulated():
    with pytest.raises(NotSimulated, match="rank 2"):
        torch.ops.npu.scatter_update(numbers(2, 4, 3), torch.zeros(2, 2).int(), numbers(2, 1, 3), 1)
