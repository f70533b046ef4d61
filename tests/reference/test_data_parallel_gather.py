from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.data_parallel_gather import (
    DataParallelGatherInputs,
    data_parallel_gather,
    rank_part,
    rows_of_ranks,
    starts_of_ranks,
)

NAN = torch.nan
SIMPLE = DataParallelGatherInputs(
    states=torch.tensor([[1.0], [2.0], [NAN], [3.0], [NAN]]),
    factors=torch.tensor([[10.0], [100.0]]),
    counts=(2, 1), lengths=(3, 2), attention_ranks=1, mode="sum", replicated=True,
)  # fmt: skip
"""Two groups of one rank: two tokens, one token, and a padded row behind both."""


def drawn(dtype, *, replicated, mode="maximum", counts=(5, 0, 3), length=6, ranks=2, width=32):
    rows = length * len(counts) * ranks
    states = Stream(7, "states").normal((rows, width), torch.float32).to(dtype)
    blocks = states.view(len(counts), ranks, length, width)
    if replicated:
        blocks[:] = blocks[:, :1].clone()
    factors = Stream(7, "factors").normal((len(counts) * ranks, width), torch.float32).to(dtype)
    return DataParallelGatherInputs(states, factors, counts, (length,) * len(counts), ranks, mode, replicated)


def rows_that_are_tokens(inputs):
    starts = starts_of_ranks(inputs)
    counts = [inputs.counts[rank // inputs.attention_ranks] for rank in range(inputs.ranks)]
    return [start + row for start, count in zip(starts, counts, strict=False) for row in range(count)]


def test_two_groups_by_hand():
    outputs = data_parallel_gather(SIMPLE)
    assert outputs["output"].value.tolist() == [[110], [220], [0], [330], [0]]
    assert outputs["real"].value.tolist() == [2, 1]
    assert outputs["output"].bound.flatten()[2].item() == 0
    assert rows_of_ranks(SIMPLE, "output") == [3, 2]
    assert rows_of_ranks(SIMPLE, "real") == [1, 1]
    assert rank_part(SIMPLE, 1).states.flatten()[0].item() == 3


def test_padding_is_not_said_of_a_buffer_that_is_padded_to_the_longest():
    inputs = replace(SIMPLE, mode="maximum", lengths=(3, 3), states=torch.cat([SIMPLE.states, SIMPLE.states[-1:]]))
    bound = data_parallel_gather(inputs)["output"].bound
    assert bound.isposinf().flatten().tolist() == [False, False, True, False, True, True]


def test_rows_of_ranks_of_a_group_add_up_or_are_the_same():
    states = torch.tensor([[1.0], [4.0]])
    inputs = DataParallelGatherInputs(states, torch.tensor([[1.0], [2.0]]), (1,), (1,), 2, "sum", False)
    assert data_parallel_gather(inputs)["output"].value.tolist() == [[15], [15]]
    assert data_parallel_gather(replace(inputs, replicated=True))["output"].value.tolist() == [[3], [3]]


@pytest.mark.parametrize(
    ("count", "real"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [2, 0, 0]), (3, [2, 1, 0]), (5, [2, 2, 1]), (6, [2, 2, 2])]
)
def test_real_rows_of_chunks_by_hand(count, real):
    inputs = DataParallelGatherInputs(
        torch.zeros(18, 1), torch.ones(3, 1), (count,), (6,), 3, "chunks", replicated=True
    )
    assert data_parallel_gather(inputs)["real"].value.tolist() == real
    assert data_parallel_gather(replace(inputs, mode="sum"))["real"].value.tolist() == [count] * 3


@pytest.mark.parametrize("replicated", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_is_a_matrix_of_factors_and_correct_devices_stay_within_the_bound(dtype, replicated):
    inputs = drawn(dtype, replicated=replicated)
    blocks = inputs.states.double().view(3, 2, 6, 32)
    tokens = blocks[:, 0] if replicated else blocks.sum(dim=1)
    right = (tokens * inputs.factors.double().sum(dim=0)).unsqueeze(1).expand(3, 2, 6, 32).reshape(36, 32)
    expected = data_parallel_gather(inputs)
    rows = rows_that_are_tokens(inputs)
    assert torch.allclose(expected["output"].value[rows], right[rows], rtol=0, atol=1e-12)
    blocks = inputs.states.view(3, 2, 6, 32)
    each = blocks[:, 0] if replicated else blocks[:, 0] + blocks[:, 1]
    total = each * inputs.factors[0]
    for factor in inputs.factors[1:]:
        total = total + each * factor
    actual = total.unsqueeze(1).expand(3, 2, 6, 32).reshape(36, 32)
    assert 0.1 < compare(expected, {"output": actual}).worst <= 1
    once = (each.float().unsqueeze(1) * inputs.factors.float().unsqueeze(1)).sum(dim=1).to(dtype)
    actual = once.unsqueeze(1).expand(3, 2, 6, 32).reshape(36, 32)
    assert compare(expected, {"output": actual}).worst <= 1


def test_one_rank_with_powers_of_two_is_exact():
    inputs = DataParallelGatherInputs(
        torch.tensor([[1.5], [-3.0]]), torch.tensor([[0.25]]), (2,), (2,), 1, "sum", replicated=True
    )
    assert not bool(data_parallel_gather(inputs)["output"].bound.any())


def test_ids_are_integers():
    whole = {"states": SIMPLE.states.nan_to_num().int(), "factors": SIMPLE.factors.int()}
    output = data_parallel_gather(replace(SIMPLE, **whole))["output"]
    assert output.dtype is torch.int32
    assert output.value.flatten().tolist() == [110, 220, 0, 330, 0]
    assert not bool(output.bound.any())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "most"}, "mode must be one of"),
        ({"lengths": (3,)}, "there are 2 groups, and lengths of 1"),
        ({"counts": (4, 1)}, r"counts must lie in 0\.\.lengths"),
        ({"counts": (-1, 1)}, r"counts must lie in 0\.\.lengths"),
        ({"mode": "maximum"}, 'lengths must be equal in mode "maximum"'),
        ({"mode": "chunks", "attention_ranks": 2}, r"lengths \(3, 2\) do not divide by 2 ranks"),
        ({"states": torch.zeros(4, 1)}, "states must have 5 rows, got 4"),
        ({"factors": torch.zeros(3, 1)}, r"factors must be \[2, 1\], got \[3, 1\]"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        data_parallel_gather(replace(SIMPLE, **changed))
