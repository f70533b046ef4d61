"""``npu_clipped_swiglu``: which elements meet, limits, groups, and what it refuses."""

import dataclasses
import math

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, UndefinedBehaviour, use_profile
from npudiff.device.simulator.errors import DeviceFault
from npudiff.device.simulator.norms.unwritten import unwritten


def clipped(x, **more):
    return torch.ops.npu.npu_clipped_swiglu(x, **more)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def one(a, b, alpha=1.702, limit=7.0, bias=1.0):
    """The formula for one pair."""
    a, b = min(a, limit), max(-limit, min(b, limit))
    return a / (1 + math.exp(-alpha * a)) * (b + bias)


def close(values):
    return pytest.approx(values, rel=2e-6, abs=1e-6)


ROW = [1.0, 2.0, 3.0, 4.0, -5.0, 6.0]


def test_neighbours_meet_by_default():
    assert clipped(torch.tensor([ROW])).tolist()[0] == close([one(1, 2), one(3, 4), one(-5, 6)])


def test_halves_meet_when_not_interleaved():
    output = clipped(torch.tensor([ROW]), interleaved=False).tolist()[0]
    assert output == close([one(1, 4), one(2, -5), one(3, 6)])


def test_the_gate_has_an_upper_limit_only_and_the_other_two():
    output = clipped(torch.tensor([[9.0, 9.0, -9.0, -9.0]])).tolist()[0]
    assert output == close([7 / (1 + math.exp(-1.702 * 7)) * 8, -9 / (1 + math.exp(1.702 * 9)) * -6])


def test_constants():
    output = clipped(torch.tensor([[3.0, 5.0]]), alpha=0.5, limit=4.0, bias=-2.0)
    assert output.tolist()[0] == close([one(3, 5, 0.5, 4.0, -2.0)])
    assert output.tolist()[0] == close([3 / (1 + math.exp(-1.5)) * 2])


def test_axes_after_the_split_are_elements_of_the_row():
    """With dim 0 the whole tensor is one row: neighbours are those of memory, not of the axis."""
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, -5.0, 6.0]])
    assert clipped(x, dim=0).tolist() == [close([one(1, 2), one(3, 4), one(-5, 6)])]
    assert clipped(x, dim=0, interleaved=False).tolist() == [close([one(1, 4), one(2, -5), one(3, 6)])]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_round_once(dtype):
    x = draw(5, 3, 8, dtype=dtype) * 4
    assert torch.equal(clipped(x), clipped(x.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_beyond_the_groups_are_not_written(dtype):
    x = draw(2, 3, 4, dtype=dtype)
    output = clipped(x, group_index=torch.tensor([1, 0, 3])).view(6, 2)
    assert torch.equal(output[:4], clipped(x).view(6, 2)[:4])
    assert torch.equal(output[4:], unwritten((2, 2), dtype))
    assert bool(output.isfinite().all())


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ([2, -1], UndefinedBehaviour, "group_index gives a group a negative number of rows"),
        ([2, 2], DeviceFault, "group_index counts 4 rows and there are 3"),
    ],
)
def test_groups_that_are_none(counts, error, message):
    with pytest.raises(error, match=message):
        clipped(draw(3, 4), group_index=torch.tensor(counts))


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (draw(4), {}, r"x was of rank 1, \[4\]; allowed: rank 2 to 8"),
        (draw(2, 3), {}, r"x was of shape \[2, 3\]; allowed: an even size of axis 1"),
        (draw(2, 4).int(), {}, "x was int32; allowed: float16 or bfloat16 or float32"),
        (draw(2, 4), {"dim": 2}, "dim was 2; allowed: -2 to 1"),
        (draw(2, 4), {"group_index": torch.tensor([1]).int()}, "group_index was int32; allowed: int64"),
        (draw(2, 4), {"group_index": torch.tensor([[1]])}, r"group_index was of rank 2, \[1, 1\]; allowed: rank 1"),
    ],
)
def test_rejections(x, more, message):
    with pytest.raises(OperatorRejected, match=f"npu_clipped_swiglu: {message}"):
        clipped(x, **more)


def test_non_contiguous_follows_the_profile():
    x = draw(4, 6).t()
    assert torch.equal(clipped(x), clipped(x.contiguous()))
    strict = dataclasses.replace(PROFILES["8.5"], name="strict", non_contiguous="rejected")
    with use_profile(strict), pytest.raises(OperatorRejected, match="x was not contiguous"):
        clipped(x)
