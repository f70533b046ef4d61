"""``npu_top_k_top_p``: which tokens stay, token by token in Python's arithmetic; ties, corners, refusals."""

import dataclasses
import math

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, UndefinedBehaviour, use_profile


def filtered(logits, p=None, k=None):
    p = None if p is None else torch.tensor(p).to(logits.dtype)
    k = None if k is None else torch.tensor(k, dtype=torch.int32)
    return torch.ops.npu.npu_top_k_top_p(logits, p, k)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def survivors(row, p, k):
    """Return the indices that stay, as the documentation has it, and the least distance to a limit of p."""
    order = sorted(range(len(row)), key=lambda i: (row[i], i))  # ascending, stable
    threshold = -math.inf if k is None else row[order[len(row) - k]]
    order = [i for i in order if row[i] >= threshold]
    if p is None:
        return set(order), 1.0
    weights = [math.exp(row[i] - row[order[-1]]) for i in order]
    kept, total, margin = {order[-1]}, 0.0, 1.0
    for i, weight in zip(order, weights, strict=True):
        total += weight / math.fsum(weights)
        margin = min(margin, abs(total - (1 - p)))
        if total > 1 - p:
            kept.add(i)
    return kept, margin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("use", ["both", "p", "k"])
def test_the_documented_tokens_stay(dtype, use):
    logits = (torch.randn(40, 60, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    generator = torch.Generator().manual_seed(1)
    p = (torch.randint(1, 64, (40,), generator=generator) / 64).tolist() if use != "k" else None  # exact in each dtype
    k = torch.randint(1, 61, (40,), generator=generator).tolist() if use != "p" else None
    out = filtered(logits, p, k)
    judged = 0
    for i, (row, given) in enumerate(zip(logits.tolist(), out.tolist(), strict=True)):
        kept, margin = survivors(row, p and p[i], k and k[i])
        if margin < 1e-5:
            continue
        judged += 1
        assert given == [value if j in kept else -math.inf for j, value in enumerate(row)]
    assert judged > 35
    assert out.dtype == dtype


def test_all_that_tie_with_the_kth_stay():
    out = filtered(torch.tensor([[1.0, 3, 2, 2, 0]]), k=[2])
    assert out.isfinite().tolist() == [[False, True, True, True, False]]


def test_of_equal_tokens_at_the_limit_of_p_the_first_go():
    out = filtered(torch.zeros(3, 4), p=[0.5, 0.25, 0.0])
    assert out.isfinite().tolist() == [[False, False, True, True], [False, False, False, True], [False] * 3 + [True]]


@pytest.mark.parametrize("k", [0, -3, 7, 1000])
def test_k_out_of_range_keeps_all(k):
    logits = torch.tensor([[1.0, 3, 2, 5, 0]])
    assert torch.equal(filtered(logits, k=[k]), logits)
    with changed(top_k_out_of_range="undefined"), pytest.raises(UndefinedBehaviour, match=rf"k is \[{k}\]"):
        filtered(logits, k=[k])


def test_k_beyond_the_documented_1024_is_a_choice():
    logits = torch.arange(2000.0)[None]
    assert filtered(logits, k=[1500]).isfinite().sum() == 1500
    with changed(top_k_out_of_range="undefined"), pytest.raises(UndefinedBehaviour, match="has 1 to 1024"):
        filtered(logits, k=[1500])


@pytest.mark.parametrize(("choice", "expected"), [("float32", 2), ("dtype_of_p", 1)])
def test_where_p_is_taken_from_one_is_a_choice(choice, expected):
    """129 / 512 from 1 is 383 / 512, which is 0.75 in bfloat16; the third of four quarters is no more than that."""
    logits = torch.zeros(1, 4).bfloat16()
    with changed(top_p_complement=choice):
        out = filtered(logits, p=[129 / 512])
    assert out.isfinite().sum() == expected


def test_p_of_one_keeps_what_has_any_probability():
    out = filtered(torch.tensor([[0.0, -50, -200, 1]]), p=[1.0])
    assert out.isfinite().tolist() == [[True, True, False, True]]  # exp(-201) is 0


def test_corners():
    assert filtered(torch.empty(0, 5), p=[]).shape == (0, 5)
    assert filtered(torch.tensor([[2.0]]), p=[0.0], k=[1]).tolist() == [[2.0]]
    logits = torch.tensor([[-math.inf, 1.0, -math.inf]])
    assert torch.equal(filtered(logits, p=[0.9], k=[3]), logits)
    strided = torch.randn(4, 10)[:, ::2]
    assert torch.equal(filtered(strided, k=[2] * 4), filtered(strided.contiguous(), k=[2] * 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3),), "p was None; .*: The inputs, p and k, should not be nullptr at the same time"),
        ((torch.ones(2, 3).int(), None, torch.ones(2).int()), "logits was int32"),
        ((torch.ones(3), torch.ones(3)), r"logits was of rank 1"),
        ((torch.ones(2, 3), torch.ones(2).half()), "p was float16; allowed: float32, as logits"),
        ((torch.ones(2, 3), None, torch.ones(2).long()), "k was int64; allowed: int32"),
        ((torch.ones(2, 3), torch.ones(3)), r"p was of shape \[3\]; allowed: \[2\]"),
        ((torch.ones(2, 3), None, torch.ones(2, 1).int()), r"k was of shape \[2, 1\]; allowed: \[2\]"),
    ],
)
def test_rejections(arguments, message):
    with pytest.raises(OperatorRejected, match=f"npu_top_k_top_p: {message}"):
        torch.ops.npu.npu_top_k_top_p(*arguments)
