"""``npu_grouped_matmul`` with small whole numbers: which rows meet which weight, in all forms of groups and outputs."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected, UndefinedBehaviour

FLOATS = [torch.float16, torch.bfloat16, torch.float32]
# Weight of expert e is 10**e times the identity, but for one more in a corner.
WEIGHT = torch.stack([torch.eye(3)[:, :2] * 2**e + torch.tensor([[0, 0], [0, 0], [0, 1]]) for e in range(4)])
X = torch.arange(15.0).view(5, 3)


def grouped(x, weight, **more):
    return torch.ops.npu.npu_grouped_matmul(x, weight, **more)


def listed(x, weight, **more):
    return torch.ops.npu.npu_grouped_matmul.List(x, weight, **more)


def rows(x, weight, experts):
    """Multiply row by row in Python's numbers."""
    output = []
    for row, expert in zip(x.tolist(), experts, strict=True):
        columns = zip(*weight[expert].tolist(), strict=True)
        output.append([sum(a * b for a, b in zip(row, column, strict=True)) for column in columns])
    return output


def one(x, weight, group_list, **more):
    more = {"split_item": 2, "group_type": 0, "group_list_type": 0} | more
    output = grouped([x], [weight], group_list=torch.tensor(group_list), **more)
    assert len(output) == 1
    return output[0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("kind", "groups"), [(0, [2, 2, 3, 5]), (1, [2, 0, 1, 2])])
@pytest.mark.parametrize("split_item", [2, 3])
def test_rows_of_experts(dtype, kind, groups, split_item):
    output = one(X.to(dtype), WEIGHT.to(dtype), groups, group_list_type=kind, split_item=split_item)
    assert output.tolist() == rows(X, WEIGHT, [0, 0, 2, 3, 3])
    assert output.dtype == dtype


def test_by_hand():
    # Row [3, 4, 5] by expert 1, whose weight is [[2, 0], [0, 2], [0, 1]].
    assert one(X, WEIGHT, [0, 2, 0, 0], group_list_type=1)[1].tolist() == [6, 13]


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_behind_the_groups_are_not_written(gmm, dtype):
    output = one(X.to(dtype), WEIGHT.to(dtype), [1, 1, 3, 3])
    assert output[:3].tolist() == rows(X[:3], WEIGHT, [0, 2, 2])
    assert gmm.is_garbage(output[3:])
    assert output.isfinite().all()
    assert gmm.is_garbage(one(X.to(dtype), WEIGHT.to(dtype), [0, 0, 0, 0]))


def test_weights_as_a_list_and_as_a_transposed_view():
    expected = one(X, WEIGHT, [2, 2, 3, 5])
    assert torch.equal(one(X, WEIGHT.transpose(1, 2).contiguous().transpose(1, 2), [2, 2, 3, 5]), expected)
    output = grouped([X], list(WEIGHT), group_list=torch.tensor([2, 2, 3, 5]), split_item=2, group_type=0)
    assert torch.equal(output[0], expected)
    output = listed([X], list(WEIGHT), group_list=[2, 2, 3, 5], split_item=3)
    assert torch.equal(output[0], expected)
    output = listed([X], [WEIGHT], group_list=[2, 2, 3, 5], split_item=2)
    assert torch.equal(output[0], expected)


@pytest.mark.parametrize("split_item", [0, 1])
def test_ends_on_the_host_give_an_output_per_group(split_item):
    outputs = listed([X], list(WEIGHT), group_list=[2, 2, 3, 4], split_item=split_item)
    assert [tuple(output.shape) for output in outputs] == [(2, 2), (0, 2), (1, 2), (1, 2)]
    assert torch.cat(outputs).tolist() == rows(X[:4], WEIGHT, [0, 0, 2, 3])


def test_several_x():
    parts = [X[:2], X[2:2], X[2:3], X[3:]]
    expected = rows(X, WEIGHT, [0, 0, 2, 3, 3])
    for split_item in (0, 1):
        outputs = grouped(parts, list(WEIGHT), split_item=split_item, group_type=-1)
        assert [len(output) for output in outputs] == [2, 0, 1, 2]
        assert torch.cat(outputs).tolist() == expected
    assert torch.cat(listed(parts, list(WEIGHT), split_item=0)).tolist() == expected
    assert listed(parts, list(WEIGHT), split_item=3)[0].tolist() == expected
    assert grouped(parts, list(WEIGHT), split_item=2, group_type=0)[0].tolist() == expected
    # Without groups, weights may differ in all and x have more axes.
    wide = grouped([X.view(5, 1, 3), X[:, :2]], [WEIGHT[1], torch.ones(2, 7)], split_item=0, group_type=-1)
    assert [tuple(output.shape) for output in wide] == [(5, 1, 2), (5, 7)]
    assert wide[0][:, 0].tolist() == rows(X, WEIGHT, [1] * 5)
    assert wide[1][:, 3].tolist() == X[:, :2].sum(1).tolist()


def test_pairs_of_expert_and_count(gmm):
    x, weight = gmm.integers(5, 3), gmm.integers(4, 3, 2, seed=1)
    groups = torch.tensor([[2, 1], [0, 3], [0, 0], [3, 1]])
    output = grouped(
        [x], [weight], group_list=groups, group_list_type=2, split_item=2, group_type=0, output_dtype=torch.int32
    )[0]
    assert output[:4].tolist() == rows(x[:4], weight, [2, 0, 0, 0])
    assert output[4].tolist() == [0x5A5A5A5A] * 2
    # The first pair without rows ends the list.
    ended = torch.tensor([[2, 1], [0, 0], [0, 3], [3, 1]])
    output = grouped([x], [weight], group_list=ended, group_list_type=2, split_item=2, group_type=0, output_dtype=3)
    assert output[0][:1].tolist() == rows(x[:1], weight, [2])
    assert output[0][1:].tolist() == [[0x5A5A5A5A] * 2] * 4
    with pytest.raises(OperatorRejected, match="group_list_type was 2; allowed: 0 or 1, with x of float32"):
        one(X, WEIGHT, groups.tolist(), group_list_type=2)
    groups[1, 0] = 4
    with pytest.raises(DeviceFault, match=r"group_list\[1, 0\] is 4, there are 4 experts"):
        grouped([x], [weight], group_list=groups, group_list_type=2, split_item=2, group_type=0, output_dtype=3)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("kind", "groups"), [(0, [2, 2, 3]), (1, [2, 0, 1])])
def test_groups_of_the_inner_axis(gmm, dtype, kind, groups):
    x, weight = X[:4].to(dtype), torch.arange(8.0).view(4, 2).to(dtype)
    transposed = x.contiguous().t()  # [3, 4], as a view of [4, 3]
    more = {"group_list": torch.tensor(groups), "group_list_type": kind, "split_item": 2, "group_type": 2}
    output = grouped([transposed], [weight], **more)[0]
    assert output.shape == (3, 3, 2)
    assert output[0].tolist() == rows(x[:2].t(), weight[:2][None], [0] * 3)
    assert output[1].tolist() == [[0, 0]] * 3
    assert output[2].tolist() == rows(x[2:3].t(), weight[2:3][None], [0] * 3)
    with gmm.changed(gmm_empty_k_group="unwritten"):
        assert gmm.is_garbage(grouped([transposed], [weight], **more)[0][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_rounding(dtype):
    """Sums and bias are float32: 256 + 1 + 1 has no other value than 258, and 2048 + 1 + 1 none than 2050."""
    large = 256.0 if dtype == torch.bfloat16 else 2048.0
    x, weight = torch.tensor([[large, 1.0]]).to(dtype), torch.ones(1, 2, 1).to(dtype)
    bias = torch.ones(1, 1, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    assert one(x, weight, [1], bias=[bias]).item() == large + 2
    # Half to even.
    assert one(x, weight, [1]).item() == large
    assert one(x, weight, [1], bias=[2 * bias]).item() == large + 4


@pytest.mark.parametrize("dtype", FLOATS)
def test_against_float64(dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((40, 300), (3, 300, 70)))
    output = one(x, weight, [17, 20, 40])
    for start, stop, expert in ((0, 17, 0), (17, 20, 1), (20, 40, 2)):
        exact = x[start:stop].double() @ weight[expert].double()
        size = x[start:stop].double().abs() @ weight[expert].double().abs()
        bound = torch.finfo(dtype).eps / 2 * exact.abs() + 300 * 2.0**-24 * size
        assert ((output[start:stop] - exact).abs() <= bound).all()


def test_bias_of_each_expert():
    bias = torch.tensor([[1.0, 2], [10, 20], [100, 200], [1000, 2000]])
    output = one(X, WEIGHT, [2, 2, 3, 5], bias=[bias])
    plain = torch.tensor(rows(X, WEIGHT, [0, 0, 2, 3, 3]))
    assert torch.equal(output - plain, bias[[0, 0, 2, 3, 3]])
    outputs = listed([X], list(WEIGHT), group_list=[2, 2, 3, 5], split_item=1, bias=list(bias))
    assert torch.equal(torch.cat(outputs) - plain, bias[[0, 0, 2, 3, 3]])


@pytest.mark.parametrize(
    ("groups", "kind", "error", "message"),
    [
        ([2, 1, 3, 5], 0, UndefinedBehaviour, "group 1 of group_list has -1 rows, with group_list_type 0"),
        ([2, 1, -3, 5], 1, UndefinedBehaviour, "group 2 of group_list has -3 rows, with group_list_type 1"),
        ([-1, 1, 3, 5], 0, UndefinedBehaviour, "group 0 of group_list has -1 rows"),
        ([2, 2, 2, 6], 0, DeviceFault, "the groups of group_list have 6 rows, there are 5"),
        ([2, 2, 2, 0], 1, DeviceFault, "the groups of group_list have 6 rows, there are 5"),
    ],
)
def test_groups_that_are_none(groups, kind, error, message):
    with pytest.raises(error, match=message):
        one(X, WEIGHT, groups, group_list_type=kind)


def test_no_rows(gmm):
    assert one(X[:0], WEIGHT, [0, 0, 0, 0]).shape == (0, 2)
