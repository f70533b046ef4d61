"""``npu_moe_init_routing`` and ``npu_moe_compute_expert_tokens``: orders worked out by hand, and what is refused."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected, UndefinedBehaviour

GARBAGE = 0x5A5A5A5A


def init_routing(*arguments, **more):
    return torch.ops.npu.npu_moe_init_routing(*arguments, **more)


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


def column_major(rows, k):
    return torch.arange(rows * k, dtype=torch.int32).view(k, rows).t().contiguous()


def tokens(rows, width=2, dtype=torch.float32):
    """Return rows that say which they are."""
    return (torch.arange(rows).view(-1, 1) * 10 + torch.arange(width)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_by_hand(dtype):
    # Pairs in row-major order: token 0 has experts 2 and 0, token 1 has 1 and 2, token 2 has 0 and 1.
    # Numbered by column: 0: t0, 1: t1, 2: t2 (first experts), 3: t0, 4: t1, 5: t2 (second ones).
    # By expert, stably in row-major order: expert 0: t0 second (3), t2 first (2); expert 1: t1 first (1), t2 second
    # (5); expert 2: t0 first (0), t1 second (4).
    experts = int32([[2, 0], [1, 2], [0, 1]])
    x, places, order = init_routing(tokens(3, dtype=dtype), column_major(3, 2), experts, 3)
    assert order.tolist() == [0, 0, 1, 1, 2, 2]
    assert (x[:, 0] / 10).tolist() == [0, 2, 1, 2, 0, 1]
    # Number 0 went to row 4, number 1 to row 2, and so on.
    assert places.tolist() == [4, 2, 1, 0, 5, 3]
    assert (x.dtype, places.dtype, order.dtype) == (dtype, torch.int32, torch.int32)


def test_active_num_counts_tokens():
    experts = int32([[2, 0], [1, 2], [0, 1]])
    for active, rows in ((0, 0), (1, 2), (2, 4), (3, 6), (9, 6)):
        x, places, order = init_routing(tokens(3), column_major(3, 2), experts, active)
        assert (x[:, 0] / 10).tolist() == [0, 2, 1, 2, 0, 1][:rows]
        assert (len(places), len(order)) == (6, 6)


def test_the_numbers_of_the_caller_are_taken_as_they_are():
    # Numbers that are row-major give other tokens: number 3 of two rows is token 1 in any case, number 1 too.
    x, places, _ = init_routing(tokens(2), int32([[0, 1], [2, 3]]), int32([[1, 0], [1, 0]]), 2)
    assert (x[:, 0] / 10).tolist() == [1, 1, 0, 0]
    assert places.tolist() == [2, 0, 3, 1]
    # What no number names is not written.
    _, places, _ = init_routing(tokens(2), int32([[0, 0], [2, 3]]), int32([[1, 0], [1, 0]]), 2)
    assert places[1].item() == GARBAGE


def test_no_rows():
    x, places, order = init_routing(tokens(0), column_major(0, 2), column_major(0, 2), 3)
    assert (x.shape, places.shape, order.shape) == ((0, 2), (0,), (0,))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": torch.zeros(6)}, "x was of rank 1"),
        ({"x": torch.zeros(3, 2).int()}, "x was int32; allowed: float16 or bfloat16 or float32"),
        ({"row_idx": int32([0, 1])}, "row_idx was of rank 1"),
        ({"row_idx": column_major(3, 2).long()}, "row_idx was int64; allowed: int32"),
        ({"expert_idx": column_major(3, 2).long()}, "expert_idx was int64; allowed: int32"),
        ({"expert_idx": column_major(4, 2)}, r"expert_idx was of shape \[4, 2\]; allowed: \[3, 2\]"),
        ({"row_idx": column_major(3, 1)}, r"row_idx was of shape \[3, 1\]; allowed: \[3, 2\]"),
        ({"active_num": -1}, "active_num was -1; allowed: 0 or more"),
    ],
)
def test_rejections(other, message):
    good = {"x": tokens(3), "row_idx": column_major(3, 2), "expert_idx": column_major(3, 2), "active_num": 3}
    with pytest.raises(OperatorRejected, match=message):
        init_routing(**good | other)


@pytest.mark.parametrize("number", [-1, 6])
def test_numbers_that_are_none(number):
    numbers = column_major(3, 2)
    numbers[2, 0] = number
    with pytest.raises(DeviceFault, match=rf"row_idx\[2, 0\] is {number}, there are 6 rows"):
        init_routing(tokens(3), numbers, column_major(3, 2), 3)


def compute(experts, count):
    return torch.ops.npu.npu_moe_compute_expert_tokens(int32(experts), count)


def test_ends_by_hand():
    ends = compute([0, 0, 2, 2, 2, 5], 5)
    assert ends.tolist() == [2, 2, 5, 5, 5]
    assert ends.dtype == torch.int32
    assert compute([0, 0, 2, 2, 2, 5], 7).tolist() == [2, 2, 5, 5, 5, 6, 6]
    assert compute([], 2).tolist() == [0, 0]
    assert compute([3], 2).tolist() == [0, 0]


def test_experts_must_be_sorted():
    with pytest.raises(UndefinedBehaviour, match=r"\[2\] is 1, after 2; it must not decrease"):
        compute([0, 2, 1, 3], 4)


@pytest.mark.parametrize(
    ("experts", "count", "message"),
    [
        (int32([[0]]), 1, "sorted_expert_for_source_row was of rank 2"),
        (torch.zeros(2).long(), 1, "sorted_expert_for_source_row was int64; allowed: int32"),
        (int32([0]), 0, "num_expert was 0; allowed: 1 to 2048"),
        (int32([0]), 2049, "num_expert was 2049"),
        (int32([0]).expand(2**24), 1, "sorted_expert_for_source_row was of 16777216 rows; allowed: at most 16777215"),
    ],
)
def test_compute_rejections(experts, count, message):
    with pytest.raises(OperatorRejected, match=message):
        torch.ops.npu.npu_moe_compute_expert_tokens(experts, count)
