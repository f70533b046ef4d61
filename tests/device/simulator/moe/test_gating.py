"""Gating operators: values in float64, ties, groups, biases, row indices, and what they refuse."""

import dataclasses
import math

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault, OperatorRejected, use_profile

FLOATS = [torch.float16, torch.bfloat16, torch.float32]


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def top_k_softmax(*arguments, **more):
    return torch.ops.npu.npu_moe_gating_top_k_softmax(*arguments, **more)


def top_k(*arguments, **more):
    return torch.ops.npu.npu_moe_gating_top_k(*arguments, **more)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def logits(*odds):
    """Return logits whose softmax is in proportion to some odds."""
    return torch.tensor([[math.log(odd) for odd in row] for row in odds])


def test_softmax_by_hand():
    y, experts, rows = top_k_softmax(logits([1, 4, 2, 1], [5, 1, 1, 3], [1, 1, 8, 0.5]), k=2)
    assert experts.tolist() == [[1, 2], [0, 3], [2, 0]]
    assert y.flatten().tolist() == pytest.approx([0.5, 0.25, 0.5, 0.3, 8 / 10.5, 1 / 10.5])
    # Column-major: the first experts of all three rows are 0, 1, 2, their second ones 3, 4, 5.
    assert rows.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert (y.dtype, experts.dtype, rows.dtype) == (torch.float32, torch.int32, torch.int32)
    assert rows.is_contiguous()


def test_row_indices_count_all_leading_axes():
    _, _, rows = top_k_softmax(draw(2, 3, 8), k=2)
    assert rows.tolist() == [[[0, 6], [1, 7], [2, 8]], [[3, 9], [4, 10], [5, 11]]]


def test_finished_rows_have_an_expert_that_does_not_exist():
    x = draw(3, 5)
    y, experts, rows = top_k_softmax(x, torch.tensor([False, True, False]), 2)
    plain = top_k_softmax(x, k=2)
    assert experts[1].tolist() == [5, 5]
    assert torch.equal(experts[::2], plain[1][::2])
    assert torch.equal(y, plain[0])
    assert torch.equal(rows, plain[2])


@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_against_float64(dtype):
    x = draw(7, 65, dtype=dtype)
    y, experts, _ = top_k_softmax(x, k=9)
    exact = torch.softmax(x.double(), -1)
    assert y.dtype == dtype
    chosen = exact.gather(-1, experts.long())
    assert ((y - chosen).abs() <= (torch.finfo(dtype).eps / 2 + 1e-6) * chosen).all()
    assert (chosen[:, :-1] >= chosen[:, 1:]).all()
    assert torch.allclose(chosen, exact.topk(9, -1).values, rtol=1e-6)


def test_of_equal_probabilities_the_lower_expert_is_first():
    x = torch.zeros(1, 300)
    assert top_k_softmax(x, k=5)[1].tolist() == [[0, 1, 2, 3, 4]]
    x[0, [7, 200]] = 3
    assert top_k_softmax(x, k=4)[1].tolist() == [[7, 200, 0, 1]]


def test_order_of_logits_with_one_probability():
    # Both vanish beside exp(200).
    x = torch.tensor([[200.0, -1.0, 1.0]])
    assert top_k_softmax(x, k=3)[1].tolist() == [[0, 1, 2]]
    with changed(moe_gating_softmax_order="logits"):
        assert top_k_softmax(x, k=3)[1].tolist() == [[0, 2, 1]]


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (torch.zeros(4), {}, r"x was of rank 1, \[4\]; allowed: rank 2 or 3"),
        (torch.zeros(2, 4).double(), {}, "x was float64; allowed: float16 or bfloat16 or float32"),
        (torch.zeros(2, 4), {"k": 5}, "k was 5; allowed: 1 to 4"),
        (torch.zeros(2, 4), {"k": 0}, "k was 0; allowed: 1 to 4"),
        (torch.zeros(2, 1100), {"k": 1025}, "k was 1025; allowed: 1 to 1024"),
        (torch.zeros(2, 4), {"finished": torch.zeros(2)}, "finished was float32; allowed: bool"),
        (torch.zeros(2, 4), {"finished": torch.zeros(3).bool()}, r"finished was of shape \[3\]; allowed: \[2\]"),
    ],
)
def test_softmax_rejections(x, more, message):
    with pytest.raises(OperatorRejected, match=message):
        top_k_softmax(x, **more)


def test_sigmoid_by_hand():
    # Sigmoids of log(odds) are odds / (1 + odds): 3/4, 1/2, 1/4, 4/5.
    x = logits([3, 1, 1 / 3, 4])
    y, experts, norm = top_k(x, 2, norm_type=1)
    assert experts.tolist() == [[3, 0]]
    assert y.tolist()[0] == pytest.approx([0.8 / 1.55, 0.75 / 1.55])
    assert norm is None
    y, experts, norm = top_k(x, 2, norm_type=1, out_flag=True, routed_scaling_factor=2.5, eps=0.45)
    assert y.tolist()[0] == pytest.approx([2.5 * 0.8 / 2, 2.5 * 0.75 / 2])
    assert norm.tolist()[0] == pytest.approx([0.75, 0.5, 0.25, 0.8])
    assert (norm.dtype, experts.dtype) == (torch.float32, torch.int32)


def test_the_bias_chooses_and_does_not_weigh():
    x = logits([3, 1, 1 / 3, 4])
    y, experts, norm = top_k(x, 2, bias=torch.tensor([0, 0, 1.0, 0]), norm_type=1, out_flag=True)
    assert experts.tolist() == [[2, 3]]
    assert y.tolist()[0] == pytest.approx([0.25 / 1.05, 0.8 / 1.05])
    assert norm.tolist()[0] == pytest.approx([0.75, 0.5, 0.25, 0.8])


def test_softmax_weights_are_not_normalised_again_but_with_renorm():
    x = logits([1, 4, 2, 1])
    assert top_k(x, 2)[0].tolist()[0] == pytest.approx([0.5, 0.25])
    assert top_k(x, 2, renorm=1)[0].tolist()[0] == pytest.approx([2 / 3, 1 / 3])
    with changed(moe_gating_renorm="ignored"):
        assert top_k(x, 2, renorm=1)[0].tolist()[0] == pytest.approx([0.5, 0.25])
        assert top_k(x, 2, renorm=1, norm_type=1)[0].sum().item() == pytest.approx(1)
    with use_profile("pessimistic"), pytest.raises(OperatorRejected, match="renorm was 1; allowed: 0 "):
        top_k(x, 2, renorm=1)


def test_groups_by_hand():
    # Sigmoids in tenths: groups (9 1 1), (6 6 1), (5 5 5), whose best are 9, 6, 5 and best two 10, 12, 10.
    tenths = torch.tensor([[9, 1, 1, 6, 6, 1, 5, 5, 5]]) / 10
    x = torch.log(tenths / (1 - tenths))
    groups = {"group_count": 3, "norm_type": 1}
    assert top_k(x, 2, k_group=1, group_select_mode=0, **groups)[1].tolist() == [[0, 1]]
    assert top_k(x, 2, k_group=1, group_select_mode=1, **groups)[1].tolist() == [[3, 4]]
    assert top_k(x, 4, k_group=2, group_select_mode=0, **groups)[1].tolist() == [[0, 3, 4, 1]]
    assert top_k(x, 4, k_group=3, group_select_mode=0, **groups)[1].tolist() == [[0, 3, 4, 6]]
    # The bias lifts a group as it lifts an expert.
    bias = torch.tensor([0, 0, 0, 0, 0, 0, 2.0, 0, 0])
    y, experts, _ = top_k(x, 2, bias=bias, k_group=1, **groups)
    assert experts.tolist() == [[6, 7]]
    assert y.tolist()[0] == pytest.approx([0.5, 0.5])


def test_ties_between_groups_and_experts():
    x = torch.zeros(1, 12)
    assert top_k(x, 5, group_count=4, k_group=2)[1].tolist() == [[0, 1, 2, 3, 4]]
    assert top_k(x, 3, group_count=4, k_group=1, group_select_mode=1)[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_sigmoid_against_float64(dtype):
    x, bias = draw(6, 64, dtype=dtype), draw(64, dtype=dtype, seed=1)
    y, experts, _ = top_k(x, 8, bias=bias, norm_type=1, routed_scaling_factor=2.5)
    exact = torch.sigmoid(x.double())
    chosen = exact.gather(1, experts.long())
    chosen = 2.5 * chosen / chosen.sum(1, keepdim=True)
    assert y.dtype == dtype
    assert ((y - chosen).abs() <= (torch.finfo(dtype).eps / 2 + 2e-6) * chosen).all()
    by_choice = (exact + bias.double()).gather(1, experts.long())
    assert (by_choice[:, :-1] >= by_choice[:, 1:] - 1e-6).all()


def test_experts_that_are_looked_up():
    x = logits([1, 4, 2, 1], [5, 1, 1, 3])
    table = torch.tensor([[0, 1], [3, 2], [1, 0]], dtype=torch.int32)
    y, experts, _ = top_k(x, 2, input_ids=torch.tensor([2, 1]), tid2eid=table)
    assert experts.tolist() == [[1, 0], [3, 2]]
    assert y.flatten().tolist() == pytest.approx([0.5, 0.125, 0.3, 0.1])
    with pytest.raises(DeviceFault, match=r"input_ids\[1\] is 3, there are 3 rows of tid2eid"):
        top_k(x, 2, input_ids=torch.tensor([2, 3]), tid2eid=table)
    with pytest.raises(DeviceFault, match=r"tid2eid\[input_ids\]\[0, 1\] is 4, there are 4 experts"):
        top_k(x, 2, input_ids=torch.tensor([0, 0]), tid2eid=table + 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"x": torch.zeros(8)}, "x was of rank 1"),
        ({"x": torch.zeros(2, 8).int()}, "x was int32"),
        ({"x": torch.zeros(2, 2049)}, "x was of 2049 experts; allowed: at most 2048"),
        ({"bias": torch.zeros(8).half()}, "bias was float16; allowed: float32"),
        ({"bias": torch.zeros(7)}, r"bias was of shape \[7\]; allowed: \[8\]"),
        ({"k": 0}, "k was 0; allowed: 1 to 8"),
        ({"k": 9}, "k was 9; allowed: 1 to 8"),
        ({"k": 5, "group_count": 2}, "k was 5; allowed: 1 to 4"),
        ({"group_count": 3}, "group_count was 3; allowed: a divisor of the 8 experts"),
        ({"group_count": 0}, "group_count was 0"),
        ({"group_count": 4}, "group_count was 4, groups of 2; allowed: groups of more than 2 experts"),
        ({"x": torch.zeros(2, 390), "group_count": 65}, "at most 2048 if each is padded to 32"),
        ({"group_count": 2, "k_group": 3}, "k_group was 3; allowed: 1 to 2"),
        ({"group_select_mode": 2}, "group_select_mode was 2; allowed: 0 or 1"),
        ({"norm_type": 2}, "norm_type was 2; allowed: 0 or 1"),
        ({"renorm": 2}, "renorm was 2; allowed: 0 or 1"),
        ({"input_ids": torch.zeros(2).int()}, "tid2eid was None; allowed: both"),
        ({"tid2eid": torch.zeros(2, 2).int()}, "input_ids was None; allowed: both"),
        ({"input_ids": torch.zeros(2), "tid2eid": torch.zeros(2, 2).int()}, "input_ids was float32"),
        ({"input_ids": torch.zeros(3).int(), "tid2eid": torch.zeros(2, 2).int()}, r"input_ids was of shape \[3\]"),
        ({"input_ids": torch.zeros(2).int(), "tid2eid": torch.zeros(2, 3).int()}, r"tid2eid was of shape \[2, 3\]"),
    ],
)
def test_rejections(more, message):
    arguments = {"x": torch.zeros(2, 8), "k": 2} | more
    with pytest.raises(OperatorRejected, match=message):
        top_k(**arguments)


def test_no_rows():
    assert [tuple(t.shape) for t in top_k_softmax(torch.zeros(0, 8), k=2)] == [(0, 2)] * 3
    assert [tuple(t.shape) for t in top_k(torch.zeros(0, 8), 2, out_flag=True)] == [(0, 2), (0, 2), (0, 8)]
